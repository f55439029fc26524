"""Diffusion denoised smoothing (Carlini et al. 2022, arXiv:2206.10550): any image classifier behind a denoiser."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..common.checks import check_kind, check_sigma
from .classifier import (
    StreamingClassifier,
    check_batch_size,
    check_told_sigma,
    check_trained_sigma,
    model_images,
    model_sigma,
    pixel_images,
)
from .denoiser import Denoiser, computing_dtype
from .sifting import Copy, Decided


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel


RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Numbers that PIL gives to ways of resizing, and torch's names of them."""

TRANSLATED = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}
"""Steps of an image processor that exist here on tensors."""


class DenoisedClassifier(StreamingClassifier):
    """A classifier of clean images, made to take noisy ones by one denoising step (Carlini et al. 2022, Algorithm 1).

    The noisy image is denoised once, without a class, at the noise level that it carries, clamped to the range of
    images, prepared as the classifier's image processor would, and classified. Nothing is drawn: this is a fixed
    function of each image, and `SmoothedClassifier` certifies it as any other.

    Args:
        denoiser: The diffusion model.
        classifier: An image classification model of transformers (`AutoModelForImageClassification`), with as many
            channels as the denoiser, or three where that has one (grey). Both networks are put in evaluation mode.
        image_processor: The classifier's (`AutoImageProcessor`). Its `size`, `resample` (bilinear or bicubic),
            `image_mean`, `image_std`, `do_resize` and `do_normalize` count; others that do more are refused.
        sigma: Standard deviation of the Gaussian noise that the images carry, pixel units, above 0.
        batch_size: Images per evaluation of either network; peak memory depends on it.

    `evaluations` counts the denoiser's network evaluations spent so far, and not the classifier's one for each image.

    Raises:
        TypeError: `sigma` is no number, or another argument of another kind.
        ValueError: An argument is out of the range that the networks have, or the image processor does what is not
            supported.
    """

    randomized = False

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: "PreTrainedModel",
        image_processor: "BaseImageProcessor",
        sigma: float,
        batch_size: int = 64,
    ):
        super().__init__()
        check_front(denoiser, sigma)
        check_batch_size(batch_size)
        if not hasattr(getattr(classifier, "config", None), "num_labels"):
            raise TypeError(
                f"`classifier` is a {type(classifier).__name__}; accepted is an image classification model of "
                "transformers."
            )
        self.num_channels = getattr(classifier.config, "num_channels", 3)
        check_channels(denoiser, self.num_channels)
        self.denoiser = denoiser
        self.classifier = classifier
        self.preprocessing = read_preprocessing(image_processor, self.num_channels)
        self.sigma = sigma
        self.batch_size = batch_size
        self.evaluations = 0
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        denoiser: Denoiser,
        classifier_id: str | Path,
        sigma: float,
        batch_size: int = 64,
        revision: str = "main",
    ) -> "DenoisedClassifier":
        """Load a classifier and its image processor. One that was saved without is refused: mean and size matter.

        Args:
            denoiser: The diffusion model; the classifier goes to its device.
            classifier_id: A local folder or Hub id.
            sigma: As for the class, and so `batch_size`.
            revision: Branch, tag or commit on the Hub.

        Raises:
            OSError: There is no such model.
            TypeError, ValueError: It has no image processor, or an argument is refused as by the class.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification  # takes seconds

        classifier = AutoModelForImageClassification.from_pretrained(classifier_id, revision=revision)
        try:
            image_processor = AutoImageProcessor.from_pretrained(classifier_id, revision=revision)
        except OSError as error:
            raise ValueError(
                f"`classifier_id` is {str(classifier_id)!r}, which has no image processor (preprocessor_config.json); "
                "accepted is a classifier that was saved with one, or `DenoisedClassifier` with the two parts."
            ) from error
        return cls(denoiser, classifier.to(denoiser.unet.device), image_processor, sigma, batch_size)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.classifier.config.num_labels

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes, or `None` where the classifier has only the generic LABEL_0, LABEL_1, ..."""
        names = {int(label): name for label, name in self.classifier.config.id2label.items()}
        return None if names == {label: f"LABEL_{label}" for label in range(self.num_classes)} else names

    @property
    def settings(self) -> dict:
        """What defines this classifier besides the networks' weights, as plain values."""
        return {
            "method": "dds",
            "classifier": self.classifier.name_or_path or None,
            "preprocessing": self.preprocessing,
            "null_source": self.denoiser.null_source,
            "dtype": self.denoiser.dtype,
            "classifier_dtype": computing_dtype(self.classifier),
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images; differentiable where gradients are on.

        Args:
            images: Shape `(N, C, H, W)`, pixel units (clean images in [0, 1]), carrying noise `sigma`.

        Returns:
            Logits of shape `(N, K)`, float32 (float64 for float64 images).

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: The denoiser cannot take images of this shape.
            FloatingPointError: A denoised image is not finite.
        """
        self.check_images(images)
        return torch.cat([self._classify(part) for part in images.split(self.batch_size)])

    def stream(self, take: Callable[[int], Sequence[Copy]]) -> Iterator[Decided]:
        """Classify copies as they come, those of several images in one batch.

        Args:
            take: Called with the most copies that are wanted. Returns a list of them, empty where none are at hand;
                the stream ends then.

        Raises:
            FloatingPointError: A denoised image is not finite.
        """
        while copies := take(self.batch_size):
            logits = self._classify(torch.stack([copy.image for copy in copies]))
            yield Decided([copy.key for copy in copies], logits, [self.denoiser.null_evaluations] * len(copies))

    def _classify(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of one batch."""
        clean = denoise_once(self.denoiser, images, self.sigma)
        self.evaluations += len(images) * self.denoiser.null_evaluations
        inputs = preprocess(clean, self.num_channels, **self.preprocessing)
        return self.classifier(pixel_values=inputs.to(self.classifier.dtype)).logits.to(clean.dtype)


def check_front(denoiser: Denoiser, sigma: float) -> None:
    """Refuse a denoiser that cannot stand in front of a classifier: none of pixels, or none for this noise.

    Raises:
        TypeError, ValueError: `sigma` is no number, `denoiser` is none or a latent model, or it cannot be told of
            `sigma`.
    """
    check_kind("denoiser", denoiser, Denoiser)
    check_sigma(sigma)
    if denoiser.encoder is not None:
        raise ValueError("`denoiser` is a latent model; accepted is one in pixel space, where the noise is.")
    check_trained_sigma(sigma, denoiser)
    check_told_sigma(sigma, denoiser)


def check_channels(denoiser: Denoiser, num_channels: int) -> None:
    """Refuse a denoiser whose images a classifier with so many channels cannot take."""
    given = denoiser.image_channels
    if (given, num_channels) != (1, 3) and given != num_channels:
        raise ValueError(
            f"`classifier` takes {num_channels} channels and the denoiser {given}; accepted are as many, or three for "
            "a grey denoiser."
        )


def denoise_once(denoiser: Denoiser, images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Noisy images denoised without a class, as images in [0, 1]: float32, or float64 as they are.

    Args:
        denoiser: The diffusion model, in pixel space.
        images: Shape `(N, C, H, W)`, pixel units, carrying noise `sigma`; one batch for the network.
        sigma: Pixel units.

    Raises:
        FloatingPointError: A denoised image is not finite.
    """
    x_tau = model_images(images)
    x_tau = x_tau.to(torch.promote_types(x_tau.dtype, torch.float32))
    x0_hat = denoiser.denoise(x_tau, model_sigma(sigma))
    if not x0_hat.isfinite().all():  # clamping would make an image of an infinity
        raise FloatingPointError(
            "A denoised image is not finite: NaN or infinity in the images, or an overflow in the network's dtype "
            f"({denoiser.unet.dtype})."
        )
    return pixel_images(x0_hat.clamp(-1, 1))


def preprocess(
    images: torch.Tensor,
    num_channels: int,
    size: dict[str, int] | None,
    resample: str | None,
    image_mean: list[float] | None,
    image_std: list[float] | None,
) -> torch.Tensor:
    """What an image processor does, on tensors: each image by itself, and differentiable.

    Args:
        images: Shape `(N, C, H, W)` in [0, 1], float32 or float64.
        num_channels: Channels of the result; one grey channel is repeated.
        size: `height` and `width`, or `shortest_edge`, which keeps the aspect ratio; `None` keeps the size.
        resample: `bilinear` or `bicubic`, both with antialiasing as PIL has it.
        image_mean: To subtract, one for all channels or one each; `None`: no normalisation.
        image_std: To divide by.
    """
    if size is not None and resample is not None:
        sides = images.shape[2:]
        edge = size.get("shortest_edge")
        target = [edge * side // min(sides) for side in sides] if edge else [size["height"], size["width"]]
        # the cubic kernel overshoots; images in whole numbers, for which classifiers are trained, end at 0 and 1
        images = F.interpolate(images, target, mode=resample, antialias=True).clamp(0, 1)
    images = images.expand(-1, num_channels, -1, -1)
    if image_mean is None:
        return images
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
    return (images - mean) / std


def read_preprocessing(image_processor: "BaseImageProcessor", num_channels: int) -> dict:
    """The arguments of `preprocess` that an image processor of transformers stands for, as plain values.

    Raises:
        TypeError: It is none.
        ValueError: It takes a step, or has a setting, that is not among them.
    """
    if not hasattr(image_processor, "to_dict"):
        raise TypeError(
            f"`image_processor` is a {type(image_processor).__name__}; accepted is an image processor of transformers."
        )
    config = image_processor.to_dict()
    name = type(image_processor).__name__
    steps = {step for step, value in config.items() if step.startswith("do_") and value}
    # `crop_pct` crops while resizing, the other two change the normalisation
    others = {setting for setting in ("crop_pct", "include_top", "rescale_offset") if config.get(setting)}
    if unsupported := sorted((steps - TRANSLATED) | others):
        raise ValueError(
            f"`image_processor` ({name}) has {unsupported}, not supported here; accepted are {sorted(TRANSLATED)}. "
            "Where the classifier can do without, set them to False or None."
        )
    if "do_rescale" not in steps or not math.isclose(config["rescale_factor"], 1 / 255):
        raise ValueError(
            f"`image_processor` ({name}) has do_rescale={config.get('do_rescale')} and "
            f"rescale_factor={config.get('rescale_factor')}; accepted are True and 1 / 255: values in [0, 1]."
        )
    size = resample = mean = std = None
    if "do_resize" in steps:
        size, resample = dict(config["size"]), RESAMPLING.get(config["resample"])
        if set(size) not in ({"height", "width"}, {"shortest_edge"}) or resample is None:
            raise ValueError(
                f"`image_processor` ({name}) has size={size} and resample={config['resample']!r}; accepted are "
                f"height and width, or shortest_edge, and {RESAMPLING}."
            )
    if "do_normalize" in steps:
        mean, std = (
            [values] if isinstance(values, (int, float)) else list(values or ())
            for values in (config["image_mean"], config["image_std"])
        )
        if {len(mean), len(std)} - {1, num_channels}:
            raise ValueError(
                f"`image_processor` ({name}) has image_mean={mean} and image_std={std}; accepted is one value, or one "
                f"for each of the classifier's {num_channels} channels."
            )
    return {"size": size, "resample": resample, "image_mean": mean, "image_std": std}
