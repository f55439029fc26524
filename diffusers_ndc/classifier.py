"""The noised diffusion classifier: K classes scored with shared noise, in full network batches."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from .denoiser import Denoiser
from .likelihoods import get_likelihood
from .noise import check_seed, check_sigma, derive_seeds, fresh_seed, standard_normal
from .noise_levels import NoiseLevels


def model_images(images: torch.Tensor) -> torch.Tensor:
    """Images from pixel units, [0, 1], to the diffusion model's, [-1, 1]."""
    return 2 * images - 1


def model_sigma(sigma: float) -> float:
    """A noise level from pixel units to the diffusion model's, where images have twice the range."""
    return 2 * sigma


def default_levels(sigma: float, denoiser: Denoiser) -> NoiseLevels:
    """Twelve ELBO-weighted levels, evenly in `log sigma`, from just above the image's noise to 9 (model units).

    Args:
        sigma: Noise that the images carry, pixel units.
        denoiser: The model, whose largest trained noise level is not exceeded.
    """
    tau = model_sigma(sigma)
    return NoiseLevels.log_grid(max(0.5, 1.5 * tau), min(max(9.0, 6 * tau), denoiser.sigma_range[1]))


class NoisedDiffusionClassifier(nn.Module):
    """A diffusion model as a classifier of images, clean or carrying Gaussian noise (Chen et al., arXiv:2402.02316).

    A class scores `logit_y = -sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2`, the sum over pixels; under `elbo`
    weights logits differ by log-likelihood ratios in nats. All classes of an image see the same noise at the same
    levels. Levels with `thresholds` drop the classes that are clearly worse on the way, each image by its own losses:
    that is part of this classifier's definition, the same function for every image, so certificates stay sound.

    Args:
        denoiser: The network and its scheduler.
        sigma: Standard deviation of the Gaussian noise that the images carry, pixel units; 0 for clean images.
        method: `dc` (clean images), `epndc`, `apndc` or `apndc-clean` (noisy images). Default: `dc` or `apndc`.
        levels: Noise levels and weights, model units, all above `2 * sigma`. Default: `default_levels`.
        batch_size: (image, class, level) triples per network evaluation; peak memory depends on it, not on the number
            of images, classes or levels.
        seed: If given, every image meets the same noise and the classifier is a fixed function; its noise is otherwise
            fresh in each call, or by the `seeds` of the call.

    `evaluations` counts the network evaluations spent so far.

    Raises:
        TypeError: `sigma`, `batch_size` or `levels` is of a wrong type.
        ValueError: An argument is out of the range that the method or the network has.
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
        check_sigma(sigma)
        self.likelihood = get_likelihood(method, sigma)
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}; accepted is a whole number of at least 1.")
        check_seed(seed)
        tau = model_sigma(sigma)
        low, high = denoiser.sigma_range
        if sigma > 0 and not low <= tau < high:
            raise ValueError(
                f"`sigma` is {sigma} (pixel units); accepted for this model is {low / 2:.4g} to {high / 2:.4g}, the "
                "noise that it was trained with."
            )
        levels = default_levels(sigma, denoiser) if levels is None else levels
        if not isinstance(levels, NoiseLevels):
            raise TypeError(f"`levels` is a {type(levels).__name__}; accepted is NoiseLevels or None.")
        lowest, highest = min(levels.sigmas), max(levels.sigmas)
        if lowest <= tau or lowest < low or highest > high:
            raise ValueError(
                f"`levels` go from {lowest:.4g} to {highest:.4g} (model units); accepted are levels above {tau:.4g}, "
                f"the noise that the image carries (2 * sigma), within the model's {low:.4g} to {high:.4g}."
            )
        self.denoiser = denoiser
        self.sigma = sigma
        self.levels = levels
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
            "dtype": str(self.denoiser.unet.dtype).removeprefix("torch."),
            "seed": self.seed,
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
            ValueError: The network cannot take images of this shape, or there are not N `seeds`.
            FloatingPointError: A loss is not finite (NaN in the images, or an overflow in half precision).
        """
        batch = self._prepare(images, seeds)
        if self.levels.thresholds is not None:
            return -self._sifted_losses(batch)
        return -torch.einsum("ntk,t->nk", self._all_errors(batch), batch.level_weights)

    def squared_errors(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """`||h(x_i, sigma_i, y) - target_i||^2`, shape (images, levels, classes): what the logits weigh and sum.

        Arguments and errors are those of `forward`. Every class is scored at every level.
        """
        return self._all_errors(self._prepare(images, seeds))

    def _prepare(self, images: torch.Tensor, seeds: Sequence[int] | None) -> "_Batch":
        self.denoiser.check_images(images)
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        if seeds is None:
            seeds = derive_seeds((fresh_seed(),), len(images)) if self.randomized else [self.seed] * len(images)
        if len(seeds) != len(images):
            raise ValueError(f"`seeds` has {len(seeds)} values for {len(images)} images; accepted is one for each.")
        x_tau, x0_hat = model_images(images), None
        if self.likelihood.uses_denoised:
            parts = x_tau.split(self.batch_size)
            x0_hat = torch.cat([self.denoiser.denoise(part, model_sigma(self.sigma)) for part in parts])
            self.evaluations += len(x_tau) * self.denoiser.null_evaluations
        return _Batch(
            x_tau,
            x0_hat,
            level_sigmas=x_tau.new_tensor(self.levels.sigmas),
            level_weights=x_tau.new_tensor(self.levels.weights),
            pair_seeds=[seed for image_seed in seeds for seed in derive_seeds((image_seed,), len(self.levels))],
        )

    def _all_errors(self, batch: "_Batch") -> torch.Tensor:
        shape = (len(batch.x_tau), len(self.levels), self.num_classes)
        return self._errors(batch, range(math.prod(shape))).view(shape)

    def _sifted_losses(self, batch: "_Batch") -> torch.Tensor:
        """Weighted losses, the classes dropped on the way by `levels.thresholds`; shape (images, classes).

        A dropped class keeps, behind the winner, the gap that it had when it was dropped. An image with one class left
        is decided and costs no more evaluations.
        """
        num_levels, num_classes = len(self.levels), self.num_classes
        losses = batch.x_tau.new_zeros(len(batch.x_tau), num_classes)
        alive, gaps = torch.ones_like(losses, dtype=torch.bool), torch.zeros_like(losses)
        for level in range(num_levels):
            image, label = (alive & (alive.sum(1, keepdim=True) > 1)).nonzero(as_tuple=True)
            if len(image) == 0:
                break
            errors = self._errors(batch, ((image * num_levels + level) * num_classes + label).cpu())
            losses = losses.index_put((image, label), batch.level_weights[level] * errors, accumulate=True)
            if level < num_levels - 1:
                gap = losses - losses.masked_fill(~alive, math.inf).amin(1, keepdim=True)
                kept = alive & (gap <= self.levels.thresholds[level])
                if self.levels.max_classes is not None:
                    rank = gap.masked_fill(~kept, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
                    kept &= rank < self.levels.max_classes
                gaps, alive = torch.where(alive & ~kept, gap, gaps), kept
        return torch.where(alive, losses, losses.masked_fill(~alive, math.inf).amin(1, keepdim=True) + gaps)

    def _errors(self, batch: "_Batch", triples: range | torch.Tensor) -> torch.Tensor:
        """Squared errors of (image, level, class) triples, in network batches of which only the last is not full.

        Triples are numbered with the class running fastest, and come in ascending order. The noise of an (image,
        level) pair comes from a seed of its own: all classes share it, and a pair that two batches share is drawn
        twice, alike.
        """
        num_levels, num_classes, x_tau = len(self.levels), self.num_classes, batch.x_tau
        errors = []
        for start in range(0, len(triples), self.batch_size):
            numbers = torch.as_tensor(triples[start : start + self.batch_size])
            pairs, row = (numbers // num_classes).unique_consecutive(return_inverse=True)
            noise = [standard_normal(x_tau.shape[1:], batch.pair_seeds[p], x_tau.dtype, x_tau.device) for p in pairs]
            image, level, row, label = (
                index.to(x_tau.device)
                for index in (pairs // num_levels, pairs % num_levels, row, numbers % num_classes)
            )
            sigma = batch.level_sigmas[level]
            x_i, target = self.likelihood.pair(
                x_tau[image],
                None if batch.x0_hat is None else batch.x0_hat[image],
                model_sigma(self.sigma),
                sigma.view(-1, 1, 1, 1),
                torch.stack(noise),
            )
            x0 = self.denoiser.denoise(x_i[row], sigma[row], label)
            errors.append((x0 - target[row]).square().flatten(1).sum(1))
        self.evaluations += len(triples)
        errors = torch.cat(errors)
        if not errors.isfinite().all():
            raise FloatingPointError(
                "A loss is not finite: NaN or infinity in the images, or an overflow in the network's dtype "
                f"({self.denoiser.unet.dtype})."
            )
        return errors


class _Batch(NamedTuple):
    """Images in model units and all that their (image, level, class) triples are scored with."""

    x_tau: torch.Tensor
    x0_hat: torch.Tensor | None
    level_sigmas: torch.Tensor
    level_weights: torch.Tensor
    pair_seeds: list[int]
