"""The noised diffusion classifier: K classes scored with shared noise, in full network batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from ..common.checks import check_integer, check_kind, check_seed, check_seeds, check_sigma
from ..common.images import content_hash
from ..common.noise import fresh_seed, standard_normal
from ..common.seeds import derive_seeds
from .denoiser import SAME_NOISE, Denoiser, check_evaluation_mode, inference
from .likelihoods import get_likelihood
from .noise_levels import NoiseLevels, SiftingRule
from .sifting import Copy, Decided, Pool, alike, filling, handing_out


POOL_BATCHES = 4
"""Network batches that the triples under way should fill: with fewer, more copies are taken."""

OPENED_BATCHES = 16
"""Network batches that the triples of the copies taken at a time may fill, unless it is one copy."""

SAME_SIGMA = 1e-5
"""Largest relative difference between the noise that levels were calibrated for and the one that they are used at."""

LATENT_NOISE = (
    "A certificate is about Gaussian noise on the pixels; encoded to latents that is neither Gaussian nor of a known "
    "level, so that a latent model cannot be told of it. Accepted for noisy images is a pixel-space denoiser in front "
    "of it, after which it classifies clean ones: `DenoisedDiffusionClassifier`, or `pixel_unet` and "
    "`pixel_scheduler` of `LatentDiffusionClassifierPipeline`."
)


class Classified(NamedTuple):
    """What `classify_each` finds out about an image.

    Args:
        image_hash: Its content hash.
        logits: Shape `(K,)`.
        evaluations: Network evaluations that it took.
    """

    image_hash: str
    logits: torch.Tensor
    evaluations: int


def model_images(images: torch.Tensor) -> torch.Tensor:
    """Images from pixel units, [0, 1], to the diffusion model's, [-1, 1]."""
    return 2 * images - 1


def pixel_images(images: torch.Tensor) -> torch.Tensor:
    """Images from the diffusion model's units, [-1, 1], to pixel units, [0, 1]."""
    return (images + 1) / 2


def model_sigma(sigma: float) -> float:
    """A noise level from pixel units to the diffusion model's, where images have twice the range."""
    return 2 * sigma


def check_trained_sigma(sigma: float, denoiser: Denoiser) -> None:
    """Refuse noise of images (pixel units) that is outside of what the model was trained for, or its largest."""
    low, high = denoiser.sigma_range
    if not low <= model_sigma(sigma) < high:
        raise ValueError(
            f"`sigma` is {sigma} (pixel units); accepted for this model is {low / 2:.4g} to {high / 2:.4g}, the "
            "noise that it was trained with."
        )


def check_told_sigma(sigma: float, denoiser: Denoiser) -> None:
    """Refuse noise of images (pixel units) that the model cannot be told truthfully before it denoises them."""
    nearest = denoiser.nearest_sigma(model_sigma(sigma)) / 2
    if not math.isclose(sigma, nearest, rel_tol=SAME_NOISE):
        raise ValueError(
            f"`sigma` is {sigma} (pixel units); this model has a learned time embedding, which knows the noise of "
            f"whole training steps only: accepted for denoising is one of these, such as {nearest:.6g}."
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size that is no whole number of at least 1."""
    check_integer("batch_size", batch_size, 1, 2**31 - 1)


def default_levels(sigma: float, denoiser: Denoiser) -> NoiseLevels:
    """Twelve ELBO-weighted levels, evenly in `log sigma`, from just above the image's noise to 9 (model units).

    Args:
        sigma: Noise that the images carry, pixel units.
        denoiser: The model, whose largest trained noise level is not exceeded.

    Raises:
        ValueError: The model was not trained with this much noise, or this little.
    """
    if sigma > 0:
        check_trained_sigma(sigma, denoiser)
    tau, (lowest, highest) = model_sigma(sigma), denoiser.sigma_range
    low, high = max(0.5, 1.5 * tau), min(max(9.0, 6 * tau), highest)
    return NoiseLevels.log_grid(low if low < high else math.sqrt(max(tau, lowest) * high), high)


class StreamingClassifier(nn.Module):
    """A classifier behind a denoiser that takes images as they come: what follows from its `stream`."""

    denoiser: Denoiser

    def check_images(self, images: torch.Tensor) -> None:
        """Refuse a batch that the denoiser cannot take; errors as of `Denoiser.check_images`."""
        self.denoiser.check_images(images)

    def stream(self, take: Callable[[int], Sequence[Copy]]) -> Iterator[Decided]:
        """Classify copies as they come, each as soon as it is decided.

        Args:
            take: Called with the most copies that are wanted. Returns a list of them, empty where none are at hand.
        """
        raise NotImplementedError

    def inference(self) -> torch.no_grad | torch.inference_mode:
        """Context for evaluations without gradients."""
        return inference(self)

    def classify_each(self, images: Iterable[torch.Tensor], seed: int) -> Iterator[tuple[int, Classified]]:
        """Classify images as they come, each as soon as it is decided; without gradients.

        Args:
            images: Images of shape `(C, H, W)`, pixel units, carrying noise `sigma`. Those of one shape, dtype and
                device, one after another, share batches.
            seed: Seed of the noise. That of an image depends on this and on the image, not on its place or company.

        Yields:
            The image's place among the images, and its result.

        Raises:
            FloatingPointError: A loss is not finite.
        """

        def copies(group):
            for place, image in group:
                image_hash = content_hash(image)
                (own,) = derive_seeds((seed, image_hash, "classify"), 1)
                yield Copy((place, image_hash), image, own)

        # as a decorator, the context is left whenever the caller has the word
        stream = self.inference()(self.stream)
        for group in alike(images):
            for decided in stream(handing_out(copies(group))):
                for (place, image_hash), logits, spent in zip(*decided, strict=True):
                    yield place, Classified(image_hash, logits, spent)


class NoisedDiffusionClassifier(StreamingClassifier):
    """A diffusion model as a classifier of images, clean or carrying Gaussian noise (Chen et al., arXiv:2402.02316).

    A class scores `logit_y = -sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2`, the sum over pixels; under `elbo`
    weights logits differ by log-likelihood ratios in nats. All classes of an image see the same noise at the same
    levels. Levels with a `sifting` rule drop the classes that are clearly worse on the way, each by its own losses:
    that is part of this classifier's definition, the same function for every image, so certificates stay sound.

    Args:
        denoiser: The network and its scheduler.
        sigma: Standard deviation of the Gaussian noise that the images carry, pixel units; 0 for clean images.
        method: `dc` (clean images), `epndc`, `apndc` or `apndc-clean` (noisy images). Default: `dc` or `apndc`.
        levels: Noise levels and weights, model units, all above `2 * sigma`. Default: `default_levels`. A model with a
            learned time embedding is given the nearest levels that it knows, and `levels` then says which.
        batch_size: (image, class, level) triples per network evaluation; peak memory depends on it, not on the number
            of images, classes or levels.
        seed: If given, every image meets the same noise and the classifier is a fixed function; its noise is otherwise
            fresh in each call, or by the `seeds` of the call.

    `evaluations` counts the network evaluations spent so far.

    Raises:
        TypeError: `denoiser`, `sigma` or `levels` is of a wrong type.
        ValueError: An argument is out of the range that the method or the network has, or the network is in training
            mode and has dropout.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        seed: int | None = None,
    ):
        super().__init__()
        check_kind("denoiser", denoiser, Denoiser)
        check_sigma(sigma)
        self.likelihood = get_likelihood(method, sigma)
        check_batch_size(batch_size)
        check_seed(seed)
        check_evaluation_mode(denoiser)
        if denoiser.num_classes == 0:
            raise ValueError("`denoiser` has no classes; accepted is a class-conditional one.")
        if sigma > 0:
            if denoiser.encoder is not None:
                raise ValueError(f"`sigma` is {sigma} with a latent model; accepted is 0. {LATENT_NOISE}")
            check_trained_sigma(sigma, denoiser)
        if self.likelihood.uses_denoised:
            check_told_sigma(sigma, denoiser)
        tau = model_sigma(sigma)
        low, high = denoiser.sigma_range
        levels = default_levels(sigma, denoiser) if levels is None else levels
        if not isinstance(levels, NoiseLevels):
            raise TypeError(f"`levels` is a {type(levels).__name__}; accepted is NoiseLevels or None.")
        # where the network knows the noise of whole steps only, that is the noise which is added
        told = replace(levels, sigmas=tuple(denoiser.nearest_sigma(level) for level in levels.sigmas))
        lowest, highest = min(levels.sigmas + told.sigmas), max(levels.sigmas + told.sigmas)
        if lowest <= tau or lowest < low or highest > high:
            raise ValueError(
                f"`levels` go from {lowest:.4g} to {highest:.4g} (model units); accepted are levels above {tau:.4g}, "
                f"the noise that the image carries (2 * sigma), within the model's {low:.4g} to {high:.4g}."
            )
        calibrated = levels.smoothing_sigma is None or math.isclose(levels.smoothing_sigma, sigma, rel_tol=SAME_SIGMA)
        if not calibrated or levels.method not in (None, self.likelihood.name):
            raise ValueError(
                f"`levels` were calibrated for sigma={levels.smoothing_sigma} and method={levels.method!r}, but "
                f"`sigma` is {sigma} and `method` {self.likelihood.name!r}; accepted are levels for these."
            )
        self.denoiser = denoiser
        self.sigma = sigma
        self.levels = told
        self.batch_size = batch_size
        self.seed = seed
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
    def evaluations_per_image(self) -> int:
        """Network evaluations that one image costs, at most where the levels sift the classes."""
        denoising = self.denoiser.null_evaluations if self.likelihood.uses_denoised else 0
        return len(self.levels) * self.num_classes + denoising

    @property
    def settings(self) -> dict:
        """What defines this classifier besides the network's weights, as plain values; `levels` in model units."""
        return {
            "method": self.likelihood.name,
            "levels": self.levels.to_dict(),
            "null_source": self.denoiser.null_source if self.likelihood.uses_denoised else None,
            "dtype": self.denoiser.dtype,
            "seed": self.seed,
            **self.denoiser.conditioning.settings,
        }

    def forward(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of a batch of images; differentiable where gradients are on.

        Args:
            images: Shape `(N, C, H, W)`, pixel units (clean images in [0, 1]), carrying noise `sigma`.
            seeds: One seed of 63 bits per image for the classifier's own noise. Default: the classifier's `seed`, or
                fresh entropy where it has none.

        Returns:
            Logits of shape `(N, K)`, float32 (float64 for float64 images).

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: The network cannot take images of this shape, or `seeds` are not N whole numbers of 63 bits.
            FloatingPointError: A loss is not finite (NaN in the images, or an overflow in half precision).
        """
        rows: dict[int, torch.Tensor] = {}
        for decided in self.stream(handing_out(self._copies(images, seeds))):
            rows.update(zip(decided.keys, decided.logits, strict=True))
        return torch.stack([rows[index] for index in range(len(images))])

    def stream(self, take: Callable[[int], Sequence[Copy]]) -> Iterator[Decided]:
        """Classify copies as they come; all that are under way share full network batches.

        They may stand at different levels, with different classes left, and belong to different images. Each leaves as
        soon as it is decided, and so not in order: the easy ones are early. Who counts votes must wait for *all* draws
        up to a number that was set beforehand; the first hundred to come back are not a fair sample.

        Args:
            take: Called with the most copies that are wanted. Returns a list of them, empty where none are at hand:
                the stream asks again when copies have left, and ends when none are under way either.

        Raises:
            FloatingPointError: A loss is not finite.
        """
        null_evaluations = self.denoiser.null_evaluations if self.likelihood.uses_denoised else 0
        span = len(self.levels) if self.levels.sifting is None else 1  # levels between two looks at the losses
        # a full batch for the unconditional denoiser, but no heap of triples where each copy has many
        most = OPENED_BATCHES * self.batch_size // (span * self.num_classes)
        wanted = max(1, min(most, self.batch_size // max(1, null_evaluations)))
        pool = None
        while True:
            while pool is None or span * sum(pool.sizes) < POOL_BATCHES * self.batch_size:
                copies = take(wanted)
                if not copies:
                    break
                opened = self._open(copies)
                pool = opened if pool is None else pool.joined(opened)
            if pool is None or not pool.keys:
                return
            self._score(pool, filling([span * size for size in pool.sizes], self.batch_size), span)
            pool, decided = pool.split(len(self.levels))
            if decided.keys:
                yield decided

    def squared_errors(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """`||h(x_i, sigma_i, y) - target_i||^2`, shape (images, levels, classes): what the logits weigh and sum.

        Arguments and errors are those of `forward`. Every class is scored at every level.
        """
        pool = self._open(self._copies(images, seeds))
        shape = (len(images), len(self.levels), self.num_classes)
        return self._errors(pool, torch.arange(math.prod(shape))).view(shape)

    def _copies(self, images: torch.Tensor, seeds: Sequence[int] | None) -> list[Copy]:
        self.denoiser.check_images(images)
        if seeds is None:
            seeds = [self.seed] * len(images) if self.seed is not None else derive_seeds((fresh_seed(),), len(images))
        else:
            check_seeds(seeds, len(images))
        return [Copy(index, image, seed) for index, (image, seed) in enumerate(zip(images, seeds, strict=True))]

    def _open(self, copies: Sequence[Copy]) -> Pool:
        """Copies before their first level, with all classes in play."""
        x_tau, x0_hat, spent = model_images(torch.stack([copy.image for copy in copies])), None, 0
        x_tau = x_tau.to(torch.promote_types(x_tau.dtype, torch.float32))
        if self.denoiser.encoder is not None:
            x_tau = torch.cat([self.denoiser.encode(part) for part in x_tau.split(self.batch_size)])
        if self.likelihood.uses_denoised:
            x0_hat = self.denoiser.denoise(x_tau, model_sigma(self.sigma), batch_size=self.batch_size)
            spent = self.denoiser.null_evaluations
            self.evaluations += len(copies) * spent
        zeros = x_tau.new_zeros(len(copies), self.num_classes)
        return Pool(
            keys=[copy.key for copy in copies],
            pair_seeds=[derive_seeds((self._seed_of(copy),), len(self.levels)) for copy in copies],
            evaluations=[spent] * len(copies),
            sizes=[self.num_classes] * len(copies),
            x_tau=x_tau,
            x0_hat=x0_hat,
            level=zeros.new_zeros(len(copies), dtype=torch.long),
            losses=zeros,
            gaps=zeros,
            alive=torch.ones_like(zeros, dtype=torch.bool),
        )

    def _seed_of(self, copy: Copy) -> int:
        seed = self.seed if copy.seed is None else copy.seed
        if seed is None:  # all such copies would meet the same noise, and their votes not be independent
            raise ValueError("A copy has the seed None, and so has the classifier; accepted is a seed in one of them.")
        return seed

    def _score(self, pool: Pool, rows: list[int], span: int) -> None:
        """Take these rows of the pool through their next `span` levels: all classes in play, then the sifting."""
        image, step, label = pool.alive[rows][:, None].expand(-1, span, -1).nonzero(as_tuple=True)
        image = torch.tensor(rows, device=image.device)[image]
        level = pool.level[image] + step
        errors = self._errors(pool, ((image * len(self.levels) + level) * self.num_classes + label).cpu())
        weights = errors.new_tensor(self.levels.weights)
        losses = pool.losses.index_put((image, label), weights[level] * errors, accumulate=True)
        for row in rows:
            pool.evaluations[row] += span * pool.sizes[row]
        rule = self.levels.sifting or SiftingRule((math.inf,) * 0)
        by_level = rule.thresholds or (math.inf,) * (len(self.levels) - 1)
        thresholds = errors.new_tensor((*by_level, math.inf))
        pool.advance(rows, span, losses, thresholds, rule.relative, rule.max_classes)

    def _errors(self, pool: Pool, triples: torch.Tensor) -> torch.Tensor:
        """Squared errors of (row, level, class) triples, in network batches of which only the last is not full.

        Triples are numbered with the class running fastest, and come in ascending order. The noise of a (row, level)
        pair comes from a seed of its own, and all classes share it. What is no evaluation of the network is done for
        `POOL_BATCHES` batches at a time, which is quicker than in between them.
        """
        num_levels, num_classes, cap, x_tau = len(self.levels), self.num_classes, self.levels.cap, pool.x_tau
        sigmas = x_tau.new_tensor(self.levels.sigmas)
        errors = []
        for numbers in triples.split(POOL_BATCHES * self.batch_size):
            pairs, row = (numbers // num_classes).unique_consecutive(return_inverse=True)
            seeds = [pool.pair_seeds[pair // num_levels][pair % num_levels] for pair in pairs.tolist()]
            image, level, row, label = (
                index.to(x_tau.device)
                for index in (pairs // num_levels, pairs % num_levels, row, numbers % num_classes)
            )
            sigma = sigmas[level]
            x_i, target = self.likelihood.pair(
                x_tau[image],
                None if pool.x0_hat is None else pool.x0_hat[image],
                model_sigma(self.sigma),
                sigma.view(-1, 1, 1, 1),
                standard_normal(tuple(x_tau.shape[1:]), seeds, x_tau.dtype, x_tau.device),
            )
            x0 = self.denoiser.denoise(x_i[row], sigma[row], label, self.batch_size)
            if cap is not None:
                x0 = x0.clamp(-1, 1)
            error = (x0 - target[row]).square().flatten(1).sum(1)
            errors.append(error if cap is None else error.clamp(max=cap * x0[0].numel()))
        self.evaluations += len(triples)
        joined = torch.cat(errors)
        if not joined.isfinite().all():
            raise FloatingPointError(
                "A loss is not finite: NaN or infinity in the images, or an overflow in the network's dtype "
                f"({self.denoiser.unet.dtype})."
            )
        return joined
