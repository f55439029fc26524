"""Diffusion denoised smoothing (Carlini et al. 2022, arXiv:2206.10550): any image classifier behind a denoiser."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.checks import BatchSize, check_kind, check_sigma, checked_batch_size
from .base import DenoiserClassifier, OnePassClassifier
from .denoiser import Denoiser
from .image_classifier import channels_of, class_names, load_image_classifier
from .networks import computing_dtype
from .preprocessing import preprocess, read_preprocessing
from .trained_levels import check_told_sigma, check_trained_sigma
from .units import model_images, model_sigma, pixel_images


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel


class DenoisedClassifier(OnePassClassifier, DenoiserClassifier):
    """A classifier of clean images that takes noisy ones by one denoising step (Carlini et al. 2022, Algorithm 1).

    The noisy image is denoised once, without a class, at the noise level that it carries, clamped to the range of
    images, prepared as the classifier's image processor would, and classified. Nothing is drawn: this is a fixed
    function of each image, and `SmoothedClassifier` certifies it like any other.

    Args:
        denoiser: The diffusion model.
        classifier: An image classification model of transformers (`AutoModelForImageClassification`), with as many
            channels as the denoiser, or three if that has one (grey). Both networks are put in evaluation mode.
        image_processor: The classifier's (`AutoImageProcessor`). Its `size`, `resample` (bilinear or bicubic),
            `image_mean`, `image_std`, `do_resize` and `do_normalize` are used; others must be off.
        sigma: Standard deviation of the Gaussian noise that the images carry, pixel units, above 0.
        batch_size: Images per evaluation of either network. Peak memory depends on it. "auto": found by a short trial
            on the device.

    The attribute `evaluations` counts the denoiser's network evaluations spent so far, not the classifier's.

    Raises:
        TypeError: `sigma` is not a number, or another argument is of another kind.
        ValueError: An argument is out of the range that the networks have, or the image processor is not supported.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: "PreTrainedModel",
        image_processor: "BaseImageProcessor",
        sigma: float,
        batch_size: BatchSize = 64,
    ):
        super().__init__()
        self.sigma = check_front(denoiser, sigma)
        self.batch_size = checked_batch_size(batch_size)
        self.num_channels = channels_of(classifier)
        check_channels(denoiser, self.num_channels)
        self.denoiser = denoiser
        self.classifier = classifier
        self.preprocessing = read_preprocessing(image_processor, self.num_channels)
        self.evaluations = 0
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        denoiser: Denoiser,
        classifier_id: str | Path,
        sigma: float,
        batch_size: BatchSize = 64,
        revision: str = "main",
    ) -> "DenoisedClassifier":
        """Load a classifier with its image processor, which is needed: mean and size matter.

        Args:
            denoiser: The diffusion model; the classifier goes to its device.
            classifier_id: A local folder or Hub id.
            sigma: Standard deviation of the Gaussian noise that the images carry, pixel units, above 0.
            batch_size: Images per evaluation of either network, or "auto".
            revision: Branch, tag or commit on the Hub.

        Raises:
            OSError: There is no such model.
            TypeError, ValueError: It has no image processor, or an argument is not as the class needs it.
        """
        classifier, image_processor = load_image_classifier(classifier_id, revision)
        return cls(denoiser, classifier.to(denoiser.unet.device), image_processor, sigma, batch_size)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.classifier.config.num_labels

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes, or `None` if the classifier has only the generic LABEL_0, LABEL_1, ..."""
        return class_names(self.classifier)

    @property
    def settings(self) -> dict:
        """What defines this classifier besides the networks' weights, as plain values."""
        return {
            "method": "dds",
            "classifier": self.classifier.name_or_path or None,
            "preprocessing": self.preprocessing,
            **self.denoiser.unconditional_settings,
            "dtype": self.denoiser.dtype,
            "classifier_dtype": computing_dtype(self.classifier),
        }

    @property
    def tried_network(self) -> torch.nn.Module:
        """The network behind the denoiser, whose batches a trial is for too."""
        return self.classifier

    @property
    def evaluations_per_image(self) -> int:
        """Network evaluations of the denoiser that one image costs."""
        return self.denoiser.null_evaluations

    def classify_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of one batch."""
        clean = denoise_once(self.denoiser, images, self.sigma)
        self.evaluations += len(images) * self.evaluations_per_image
        inputs = preprocess(clean, self.num_channels, **self.preprocessing)
        return self.classifier(pixel_values=inputs.to(self.classifier.dtype)).logits.to(clean.dtype)


def check_front(denoiser: Denoiser, sigma: float) -> float:
    """Raise if a denoiser cannot stand in front of a classifier of images that carry this noise.

    Args:
        denoiser: The denoiser.
        sigma: Noise of the images, pixel units.

    Returns:
        `sigma` as a float.

    Raises:
        TypeError, ValueError: `sigma` is not a noise level that the denoiser can be told, or `denoiser` is of another
            kind, or a latent model.
    """
    check_kind("denoiser", denoiser, Denoiser)
    sigma = check_sigma(sigma)
    if denoiser.encoder is not None:
        raise ValueError("`denoiser` must be a model in pixel space, where the noise is, got a latent model.")
    check_trained_sigma(sigma, denoiser)
    check_told_sigma(sigma, denoiser)
    return sigma


def check_channels(denoiser: Denoiser, num_channels: int) -> None:
    """Raise a `ValueError` if a classifier with `num_channels` channels cannot take the denoiser's images."""
    channels = denoiser.image_channels
    if channels != num_channels and (channels, num_channels) != (1, 3):
        raise ValueError(
            f"`classifier` must take as many channels as the denoiser has ({channels}), or 3 for a grey denoiser, got "
            f"{num_channels}."
        )


def denoise_once(denoiser: Denoiser, images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Denoise images without a class, in one step, to images in [0, 1].

    Args:
        denoiser: The diffusion model, in pixel space.
        images: Shape `(N, C, H, W)`, pixel units, carrying noise `sigma`; one batch for the network.
        sigma: Pixel units.

    Returns:
        Shape `(N, C, H, W)`, pixel units, float32, or float64 for float64 images.

    Raises:
        FloatingPointError: A denoised image is not finite.
    """
    x0_hat = denoiser.denoise(model_images(images), model_sigma(sigma))
    if not x0_hat.isfinite().all():  # clamping would make an image of an infinity
        raise FloatingPointError(
            "Denoised images must be finite, got NaN or infinity: in the images, or by an overflow in the network's "
            f"dtype ({denoiser.unet.dtype})."
        )
    return pixel_images(x0_hat.clamp(-1, 1))
