"""Diffusion denoised smoothing with a generative classifier: the way to certificates for latent diffusion models."""

from collections.abc import Sequence

import torch

from ..common.checks import check_seeds
from ..common.copies import Copy, Decided, Pool
from .base import DenoiserClassifier
from .classifier import NoisedDiffusionClassifier
from .denoised import check_channels, check_front, denoise_once
from .denoiser import Denoiser
from .networks import check_evaluation_mode
from .preprocessing import preprocess


class DenoisedDiffusionClassifier(DenoiserClassifier):
    """A diffusion classifier of clean images that takes noisy ones by one denoising step in pixel space.

    This is `DenoisedClassifier` (Carlini et al. 2022, arXiv:2206.10550) with a generative classifier at the end, which
    may live in a latent space (Li et al. 2023, arXiv:2303.16203). The Gaussian noise is on the pixels, and all that
    follows belongs to the base classifier: the denoising, the clamp to the range of images, the resizing to the
    classifier's size, the encoder, and the classifier's own noise. `SmoothedClassifier` therefore certifies it like
    any other, with the radius in the pixels that the *denoiser* sees.

    Args:
        denoiser: A diffusion model in pixel space, with classes or without (`num_classes=0`).
        classifier: A classifier of clean images (`sigma=0`), with as many channels as the denoiser, or three if that
            has one (grey). Its `batch_size` is also the denoiser's; if that is "auto", each has its own.
        sigma: Standard deviation of the Gaussian noise that the images carry, pixel units, above 0.

    Raises:
        TypeError: `sigma` is not a number, or `denoiser` or `classifier` is of another kind.
        ValueError: An argument is out of the range that the networks have, or the denoiser is not one of pixels.
    """

    def __init__(self, denoiser: Denoiser, classifier: NoisedDiffusionClassifier, sigma: float):
        super().__init__()
        self.sigma = check_front(denoiser, sigma)
        check_evaluation_mode(denoiser)
        if not isinstance(classifier, NoisedDiffusionClassifier):
            raise TypeError(
                f"`classifier` must be a NoisedDiffusionClassifier with sigma=0, got {type(classifier).__name__}."
            )
        if classifier.sigma > 0:
            raise ValueError(
                f"`classifier` must have sigma=0, since its images are denoised, got sigma={classifier.sigma}."
            )
        check_channels(denoiser, classifier.denoiser.image_channels)
        self.denoiser = denoiser
        self.classifier = classifier
        self.batch_size = classifier.batch_size
        self.num_denoised = 0

    @property
    def network_batch(self) -> int | None:
        """Triples per evaluation of the classifier's network; `None` for "auto" as long as no image has come."""
        return self.classifier.network_batch

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.classifier.num_classes

    @property
    def randomized(self) -> bool:
        """Whether `forward` draws noise of its own for each image, by its `seeds`."""
        return self.classifier.randomized

    @property
    def evaluations(self) -> int:
        """Evaluations of the diffusion networks spent so far; those of an encoder are not counted."""
        return self.num_denoised * self.denoiser.null_evaluations + self.classifier.evaluations

    @property
    def settings(self) -> dict:
        """What defines this classifier besides the networks' weights, as plain values."""
        return {
            "method": "dds",
            "classifier": self.classifier.settings,
            **self.denoiser.unconditional_settings,
            "dtype": self.denoiser.dtype,
        }

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
            ValueError: The networks cannot take images of this shape, or `seeds` are not N integers of 63 bits.
            FloatingPointError: A denoised image or a loss is not finite.
        """
        self.check_images(images)
        if seeds is not None:
            check_seeds(seeds, len(images))
        return self.classifier(self.denoise(images), seeds)

    def evaluate(self, images: torch.Tensor) -> None:
        denoise_once(self.denoiser, images, self.sigma)

    def pool(self) -> "DenoisingPool":
        """An empty pool: the classifier's own, with a denoising step in front."""
        return DenoisingPool(self, self.classifier.pool())

    def denoise(self, images: torch.Tensor) -> torch.Tensor:
        """Clean images in the size and channels of the classifier.

        Args:
            images: Shape `(N, C, H, W)`, pixel units, carrying noise `sigma`.
        """
        batch_size, target = self.network_batch_for(images), self.classifier.denoiser
        clean = torch.cat([denoise_once(self.denoiser, part, self.sigma) for part in images.split(batch_size)])
        self.num_denoised += len(images)
        size = None
        if target.image_size is not None and target.image_size != tuple(images.shape[2:]):
            height, width = target.image_size
            size = {"height": height, "width": width}
        return preprocess(clean, target.image_channels, size, "bicubic", None, None)


class DenoisingPool:
    """A pool whose copies are denoised when they are added; see `common.copies.Pool`.

    Args:
        classifier: The classifier, for its denoising step.
        inner: The pool of the classifier of clean images.
    """

    def __init__(self, classifier: DenoisedDiffusionClassifier, inner: Pool):
        self.classifier = classifier
        self.inner = inner

    @property
    def room(self) -> int:
        """How many copies to add before the next step."""
        return self.inner.room

    def __len__(self) -> int:
        return len(self.inner)

    def add(self, copies: Sequence[Copy]) -> None:
        """Denoise copies and add them."""
        clean = self.classifier.denoise(torch.stack([copy.image for copy in copies]))
        self.inner.add([copy._replace(image=image) for copy, image in zip(copies, clean, strict=True)])

    def step(self) -> Decided:
        """A step of the inner pool; the evaluations of the denoising are added."""
        decided = self.inner.step()
        denoising = self.classifier.denoiser.null_evaluations
        return decided._replace(evaluations=[spent + denoising for spent in decided.evaluations])
