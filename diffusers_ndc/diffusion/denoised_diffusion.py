"""Diffusion denoised smoothing with a generative classifier: the way to certificates for latent diffusion models."""

from collections.abc import Callable, Iterator, Sequence

import torch

from ..common.checks import check_seeds
from .classifier import NoisedDiffusionClassifier, StreamingClassifier
from .denoised import check_channels, check_front, denoise_once, preprocess
from .denoiser import Denoiser, check_evaluation_mode
from .sifting import Copy, Decided


class DenoisedDiffusionClassifier(StreamingClassifier):
    """A diffusion classifier of clean images, made to take noisy ones by one denoising step in pixel space.

    That is `DenoisedClassifier` (Carlini et al. 2022, arXiv:2206.10550) with a generative classifier at the end, which
    may live in a latent space (Li et al. 2023, arXiv:2303.16203). The Gaussian noise is on the pixels, and all that
    follows belongs to the base classifier: the denoising, the clamp to the range of images, the resizing to the
    classifier's size, the encoder, and the classifier's own noise. So `SmoothedClassifier` certifies it as any other,
    with the radius in the pixels that the *denoiser* sees.

    Args:
        denoiser: A diffusion model in pixel space, with classes or without (`num_classes=0`).
        classifier: A classifier of clean images (`sigma=0`), with as many channels as the denoiser, or three where
            that has one (grey). Its `batch_size` is also the denoiser's.
        sigma: Standard deviation of the Gaussian noise that the images carry, pixel units, above 0.

    Raises:
        TypeError: `sigma` is no number, or `denoiser` or `classifier` of another kind.
        ValueError: An argument is out of the range that the networks have, or the denoiser is none of pixels.
    """

    def __init__(self, denoiser: Denoiser, classifier: NoisedDiffusionClassifier, sigma: float):
        super().__init__()
        check_front(denoiser, sigma)
        check_evaluation_mode(denoiser)
        if not isinstance(classifier, NoisedDiffusionClassifier):
            raise TypeError(
                f"`classifier` is a {type(classifier).__name__}; accepted is a NoisedDiffusionClassifier with sigma=0."
            )
        if classifier.sigma > 0:
            raise ValueError(f"`classifier` has sigma={classifier.sigma}; accepted is 0: it meets denoised images.")
        check_channels(denoiser, classifier.denoiser.image_channels)
        self.denoiser = denoiser
        self.classifier = classifier
        self.sigma = sigma
        self.denoised = 0

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
        return self.denoised * self.denoiser.null_evaluations + self.classifier.evaluations

    @property
    def settings(self) -> dict:
        """What defines this classifier besides the networks' weights, as plain values."""
        return {
            "method": "dds",
            "classifier": self.classifier.settings,
            "null_source": self.denoiser.null_source,
            "dtype": self.denoiser.dtype,
        }

    def forward(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of a batch of images; differentiable where gradients are on.

        Args:
            images: Shape `(N, C, H, W)`, pixel units (clean images in [0, 1]), carrying noise `sigma`.
            seeds: As for `NoisedDiffusionClassifier`.

        Returns:
            Logits of shape `(N, K)`, float32 (float64 for float64 images).

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: The networks cannot take images of this shape, or there are not N `seeds`.
            FloatingPointError: A denoised image or a loss is not finite.
        """
        self.check_images(images)
        if seeds is not None:
            check_seeds(seeds, len(images))
        return self.classifier(self._denoise(images), seeds)

    def stream(self, take: Callable[[int], Sequence[Copy]]) -> Iterator[Decided]:
        """Classify copies as they come, as `NoisedDiffusionClassifier.stream` does.

        Args:
            take: Called with the most copies that are wanted. Returns a list of them, empty where none are at hand.

        Raises:
            FloatingPointError: A denoised image or a loss is not finite.
        """

        def taken(wanted):
            if not (copies := take(wanted)):
                return []
            images = self._denoise(torch.stack([copy.image for copy in copies]))
            return [copy._replace(image=image) for copy, image in zip(copies, images, strict=True)]

        for decided in self.classifier.stream(taken):
            spent = [evaluations + self.denoiser.null_evaluations for evaluations in decided.evaluations]
            yield decided._replace(evaluations=spent)

    def _denoise(self, images: torch.Tensor) -> torch.Tensor:
        """Clean images as the classifier takes them."""
        batch_size, target = self.classifier.batch_size, self.classifier.denoiser
        clean = torch.cat([denoise_once(self.denoiser, part, self.sigma) for part in images.split(batch_size)])
        self.denoised += len(images)
        fixed = target.image_size
        size = None if fixed in (None, tuple(images.shape[2:])) else {"height": fixed[0], "width": fixed[1]}
        return preprocess(clean, target.image_channels, size, "bicubic", None, None)
