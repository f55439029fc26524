"""The noised diffusion classifier: K classes scored with shared noise, in full network batches."""

from collections.abc import Sequence

import torch

from ..common.checks import AUTO, BatchSize, check_kind, check_seed, check_seeds, check_sigma, checked_batch_size
from ..common.copies import Copy
from ..common.noise import NoiseSource, fresh_seed, standard_normal
from ..common.seeds import derive_seeds
from ..common.transfer import to_device
from .base import DenoiserClassifier
from .class_sifter import FeatureSift, check_sift
from .denoiser import Denoiser
from .features import read_features
from .likelihoods import get_likelihood
from .networks import check_evaluation_mode
from .noise_levels import NoiseLevels
from .open_copies import OpenCopies, Triples, in_one_copy
from .sifting import POOL_BATCHES, SiftingPool
from .trained_levels import check_calibration, check_told_sigma, check_trained_sigma, default_levels, known_levels
from .units import model_images, model_sigma


LATENT_NOISE = (
    "A certificate is about Gaussian noise on the pixels. Encoded to latents that noise is neither Gaussian nor of a "
    "known level, so that a latent model cannot be told its level. For noisy images put a pixel-space denoiser in "
    "front, after which the latent model classifies clean images: `DenoisedDiffusionClassifier`, or `pixel_unet` and "
    "`pixel_scheduler` of `LatentDiffusionClassifierPipeline`."
)

HELD = 8
"""Tensors of the size of its images that a batch of triples needs beside the network: noise, `x_i`, targets, ..."""

NOT_FINITE = (
    "Losses must be finite, got NaN or infinity: in the images, or by an overflow in the network's dtype ({dtype})."
)


class NoisedDiffusionClassifier(DenoiserClassifier):
    """A diffusion model as a classifier of images, clean or carrying Gaussian noise (Chen et al., arXiv:2402.02316).

    A class scores `logit_y = -sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2`, the sum over pixels; under `elbo`
    weights logits differ by log-likelihood ratios in nats. All classes of an image see the same noise at the same
    levels. Levels with a `sifting` rule drop the classes that are clearly worse on the way, each image by its own
    losses. That is part of this classifier's definition, the same function for every image, so certificates stay
    sound.

    Args:
        denoiser: The network and its scheduler.
        sigma: Standard deviation of the Gaussian noise that the images carry, pixel units; 0 for clean images.
        method: `dc` (clean images), `epndc`, `apndc` or `apndc-clean` (noisy images). Default: `dc` or `apndc`.
        levels: Noise levels and weights, model units, all above `2 * sigma`. Default: `default_levels`. A model with a
            learned time embedding uses the nearest levels that it knows; the attribute `levels` has those.
        batch_size: (copy, level, class) triples per network batch. Peak memory depends on it, not on the number of
            images, classes or levels. "auto": found by a short trial on the device (see `batch_size`), without
            gradients.
        seed: If given, every image meets the same noise and the classifier is a fixed function. Default: fresh noise
            in each call, or by the `seeds` of the call.
        sift: Chooses each copy's candidate classes by the features of its pass without a class; the other classes are
            not scored. It must have been fitted for this `sigma` and method. Default: all classes are candidates.

    The attribute `evaluations` counts the network evaluations spent so far.

    Raises:
        TypeError: `denoiser`, `sigma` or `levels` is of a wrong type.
        ValueError: An argument is out of the range that the method or the network has, or the network is in training
            mode and has dropout.

    Example:
        >>> classifier = pipe.classifier(sigma=0.25)  # doctest: +SKIP
        >>> classifier(images + 0.25 * torch.randn_like(images)).argmax(dim=1)  # doctest: +SKIP
        tensor([7, 2, 1])
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        seed: int | None = None,
        sift: FeatureSift | None = None,
    ):
        super().__init__()
        check_kind("denoiser", denoiser, Denoiser)
        sigma = check_sigma(sigma)
        self.likelihood = get_likelihood(method, sigma)
        self.batch_size = checked_batch_size(batch_size)
        check_seed(seed)
        check_evaluation_mode(denoiser)
        if denoiser.num_classes == 0:
            raise ValueError("`denoiser` must be class-conditional, got one without classes.")
        if sigma > 0:
            if denoiser.encoder is not None:
                raise ValueError(f"`sigma` must be 0 for a latent model, got {sigma}. {LATENT_NOISE}")
            told = self.likelihood.uses_denoised or sift is not None
            check_trained_sigma(sigma, denoiser, told)
        if self.likelihood.uses_denoised:
            check_told_sigma(sigma, denoiser)
        levels = default_levels(sigma, denoiser) if levels is None else levels
        check_kind("levels", levels, NoiseLevels)
        self.levels = known_levels(levels, sigma, denoiser)
        check_calibration(levels, sigma, self.likelihood.name)
        if sift is not None:
            check_sift(sift, sigma, self.likelihood.name, denoiser)
        self.denoiser = denoiser
        self.sigma = sigma
        self.seed = seed
        self.sift = sift
        self.evaluations = 0

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.denoiser.num_classes

    @property
    def randomized(self) -> bool:
        """Whether `forward` draws noise of its own for each image, by its `seeds`."""
        return self.seed is None

    @property
    def opening_evaluations(self) -> int:
        """Network evaluations by which an image is denoised, or its candidates are chosen, before it is scored."""
        if self.likelihood.uses_denoised:
            return self.denoiser.null_evaluations
        return 0 if self.sift is None else 1

    @property
    def expected_classes(self) -> float:
        """Mean number of classes that are scored at the first level."""
        return self.num_classes if self.sift is None else self.sift.expected_classes

    @property
    def evaluations_per_image(self) -> int:
        """Network evaluations that one image costs; the largest number if classes are sifted."""
        return len(self.levels) * self.num_classes + self.opening_evaluations

    @property
    def settings(self) -> dict:
        """What defines this classifier besides the network's weights, as plain values; `levels` in model units."""
        settings = {
            "method": self.likelihood.name,
            "levels": self.levels.to_dict(),
            **(self.denoiser.unconditional_settings if self.opening_evaluations else {"null_source": None}),
            "dtype": self.denoiser.dtype,
            "seed": self.seed,
            **self.denoiser.conditioning.settings,
        }
        return settings if self.sift is None else {**settings, "sifter": self.sift.settings}

    def forward(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of a batch of images; differentiable where gradients are on.

        Args:
            images: Shape `(N, C, H, W)`, pixel units (clean images in [0, 1]), carrying noise `sigma`.
            seeds: One seed of 63 bits per image for the classifier's own noise. Default: the classifier's `seed`, or
                fresh entropy.

        Returns:
            Logits of shape `(N, K)`, float32 (float64 for float64 images).

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: The network cannot take images of this shape, or `seeds` are not N integers of 63 bits.
            FloatingPointError: A loss is not finite (NaN in the images, or an overflow in half precision).
        """
        return self.logits_of(self._copies(images, seeds))

    def pool(self) -> SiftingPool:
        """An empty pool. All copies in it share full network batches, at whatever levels, with whatever classes."""
        return SiftingPool(self)

    def squared_errors(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """`||h(x_i, sigma_i, y) - target_i||^2` of all classes at all levels: what the logits weigh and sum.

        Nothing is sifted here.

        Args:
            images: Shape `(N, C, H, W)`, pixel units, carrying noise `sigma`.
            seeds: One seed of 63 bits per image for the classifier's own noise. Default: the classifier's `seed`, or
                fresh entropy.

        Returns:
            Shape `(N, levels, classes)`.

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: The network cannot take images of this shape, or `seeds` are not N integers of 63 bits.
            FloatingPointError: A loss is not finite.
        """
        copies = self.open_copies(self._copies(images, seeds), sift=False)
        triples = Triples.next_levels(copies.in_play_on_cpu, len(self.levels))
        errors = self.squared_errors_of(copies, triples)
        self.require_finite(bool(errors.isfinite().all()))
        return errors.view(len(images), len(self.levels), self.num_classes)

    def _copies(self, images: torch.Tensor, seeds: Sequence[int] | None) -> list[Copy]:
        self.denoiser.check_images(images)
        if seeds is not None:
            check_seeds(seeds, len(images))
        elif self.seed is not None:
            seeds = [self.seed] * len(images)
        else:
            seeds = derive_seeds((fresh_seed(),), len(images))
        return [Copy(number, image, seed) for number, (image, seed) in enumerate(zip(images, seeds, strict=True))]

    def to_model(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(N, C, H, W)` in pixel units as the network denoises them: in model units, or latents; float32."""
        x_tau = model_images(images)
        if self.denoiser.encoder is None:
            return x_tau
        # The trial is not for the encoder: one image at a time fits, and most of the work comes after it.
        size = 1 if self.batch_size == AUTO else self.batch_size
        return torch.cat([self.denoiser.encode(part) for part in x_tau.split(size)])

    def open_copies(self, copies: Sequence[Copy], sift: bool = True) -> OpenCopies:
        """Copies before their first level (for the pool).

        Args:
            copies: The copies.
            sift: Whether the sift, if there is one, chooses the classes in play. Without it all of them are.
        """
        x_tau = self.to_model(torch.stack([copy.image for copy in copies]))
        seeds = [derive_seeds((self._seed_of(copy),), len(self.levels) + 1) for copy in copies]
        x0_hat, scores = self._pass_without_class(x_tau, [own[-1] for own in seeds], sift)
        zeros = x_tau.new_zeros(len(copies), self.num_classes)
        opened = OpenCopies(
            keys=[copy.key for copy in copies],
            pair_seeds=[own[:-1] for own in seeds],
            evaluations=[0 if x0_hat is None and scores is None else self.opening_evaluations] * len(copies),
            x_tau=x_tau,
            x0_hat=x0_hat,
            level=[0] * len(copies),
            losses=zeros,
            gaps=zeros,
            in_play=torch.ones_like(zeros, dtype=torch.bool),
            in_play_on_cpu=torch.ones(len(copies), self.num_classes, dtype=torch.bool),
        )
        self.evaluations += sum(opened.evaluations)
        if self.sift is None or scores is None:
            return opened
        in_play = self.sift.candidates(scores)
        on_cpu, finite = in_one_copy(in_play, scores.isfinite().all())
        self.require_finite(finite)
        return opened.sifted_by(self.sift, scores, in_play, on_cpu, len(self.levels))

    def _pass_without_class(
        self, x_tau: torch.Tensor, seeds: list[int], sift: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The denoised images, and the scores of the classes; `None` for what is not needed."""
        batch_size = self.network_batch_for(x_tau)
        if self.sift is not None and sift:
            used = self.likelihood.uses_denoised
            x0_hat, features = read_features(
                self.denoiser,
                x_tau,
                self.sigma,
                self.sift.blocks,
                self.sift.noise,
                seeds,
                batch_size,
                denoise=used,
                cells=self.sift.cells,
            )
            return x0_hat if used else None, self.sift(features).to(x_tau)
        if self.likelihood.uses_denoised:
            return self.denoiser.denoise(x_tau, model_sigma(self.sigma), batch_size=batch_size), None
        return None, None

    def _seed_of(self, copy: Copy) -> int:
        seed = self.seed if copy.seed is None else copy.seed
        if seed is None:  # all such copies would meet the same noise, and their votes not be independent
            raise ValueError("`seed` must be given with the copy or the classifier, got None for both.")
        return seed

    def squared_errors_of(
        self, copies: OpenCopies, triples: Triples, noise: NoiseSource = standard_normal
    ) -> torch.Tensor:
        """Squared error of each (copy, level, class) triple, finite or not (for the pool).

        The noise of a (copy, level) pair comes from a seed of its own, and all classes share it. All work
        but the network's is done for `POOL_BATCHES` batches at a time, which is faster than in between them.

        Args:
            copies: The copies.
            triples: In ascending order.
            noise: Where standard normal noise comes from.
        """
        parts = triples.split(POOL_BATCHES * self.network_batch_for(copies.x_tau))
        errors = torch.cat([self._errors(copies, part, noise) for part in parts])
        self.evaluations += len(triples)
        return errors

    def require_finite(self, finite: bool) -> None:
        """Raise a `FloatingPointError` unless the losses are finite (for the pool)."""
        if not finite:
            raise FloatingPointError(NOT_FINITE.format(dtype=self.denoiser.unet.dtype))

    def _errors(self, copies: OpenCopies, triples: Triples, noise: NoiseSource) -> torch.Tensor:
        x_tau, cap = copies.x_tau, self.levels.cap
        rows, levels, pair_of_triple = triples.distinct_pairs()
        seeds = [copies.pair_seeds[row][level] for row, level in zip(rows.tolist(), levels.tolist(), strict=True)]
        eps = noise(tuple(x_tau.shape[1:]), seeds, x_tau.dtype, x_tau.device)
        sigma = torch.tensor(self.levels.sigmas, dtype=x_tau.dtype)[levels]
        rows, sigma, pair_of_triple, label = (
            to_device(values, x_tau.device) for values in (rows, sigma, pair_of_triple, triples.label)
        )
        x_i, target = self.likelihood.pair(
            x_tau[rows],
            None if copies.x0_hat is None else copies.x0_hat[rows],
            model_sigma(self.sigma),
            sigma.view(-1, 1, 1, 1),
            eps,
        )
        h = self.denoiser.denoise(x_i[pair_of_triple], sigma[pair_of_triple], label, self.network_batch)
        if cap is not None:
            h = h.clamp(-1, 1)
        errors = (h - target[pair_of_triple]).square().flatten(1).sum(dim=1)
        return errors if cap is None else errors.clamp(max=cap * h[0].numel())

    def evaluate(self, images: torch.Tensor) -> None:
        """Denoise one batch of what the network gets, beside memory for all that a pool holds (for the trial)."""
        held = images.new_empty(HELD * POOL_BATCHES * len(images), *images.shape[1:])
        level = self.levels.sigmas[0]
        labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
        self.denoiser.denoise(level * images, level, labels)
        if self.opening_evaluations and self.denoiser.unconditional_unet is not None:
            self.denoiser.denoise(level * images, level)
        del held
