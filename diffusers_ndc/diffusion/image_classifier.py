"""An image classifier of transformers by itself: what others smooth without a denoiser (Cohen et al. 2019)."""

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.checks import BatchSize, checked_batch_size
from ..common.images import check_floating
from .base import OnePassClassifier
from .networks import check_weights, computing_dtype
from .preprocessing import preprocess, read_preprocessing


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel


class ImageClassifier(OnePassClassifier):
    """A classifier that takes noisy images as they are: the baseline of Cohen et al. 2019 (arXiv:1902.02918).

    The noisy image is normalised as the classifier's image processor would, and classified. It is neither denoised,
    nor clipped to the range of images, nor resized: images get the size of the image processor before they get noise.
    Only a classifier that was trained on images with noise of this kind is good at it. Nothing is drawn: this is a
    fixed function of each image, and `SmoothedClassifier` certifies it like any other.

    Args:
        classifier: An image classification model of transformers (`AutoModelForImageClassification`). It is put in
            evaluation mode.
        image_processor: The classifier's (`AutoImageProcessor`). Its `size` (height and width), `image_mean`,
            `image_std`, `do_resize` and `do_normalize` are used; other steps must be off. With `do_resize=False`
            images of any size are taken.
        batch_size: Images per network evaluation. Peak memory depends on it. "auto": found by a short trial on the
            device.

    The attribute `evaluations` counts the classifier's network evaluations spent so far.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A weight is not finite, `batch_size` is out of range, or the image processor is not supported.

    Example:
        >>> classifier = ImageClassifier.from_pretrained("cnn")  # doctest: +SKIP
        >>> SmoothedClassifier(classifier, sigma=0.25).certify(images, n=10_000)  # doctest: +SKIP
    """

    def __init__(
        self,
        classifier: "PreTrainedModel",
        image_processor: "BaseImageProcessor",
        batch_size: BatchSize = 64,
    ):
        super().__init__()
        self.batch_size = checked_batch_size(batch_size)
        channels = channels_of(classifier)
        check_weights("classifier", classifier)
        preprocessing = read_preprocessing(image_processor, channels)
        size = preprocessing["size"]
        if size is not None and set(size) != {"height", "width"}:
            raise ValueError(
                "`image_processor` must have a size with height and width, or do_resize=False, for a classifier of "
                f"noisy images, got {size}."
            )
        self._size = None if size is None else (size["height"], size["width"])
        self._channels = channels
        self.classifier = classifier
        # images have their size already, so nothing is resized
        self.preprocessing = {**preprocessing, "size": None, "resample": None}
        self.evaluations = 0
        self.eval()

    @classmethod
    def from_pretrained(
        cls, classifier_id: str | Path, batch_size: BatchSize = 64, revision: str = "main"
    ) -> "ImageClassifier":
        """Load a classifier with its image processor, which is needed: mean and size matter.

        Args:
            classifier_id: A local folder or Hub id.
            batch_size: Images per network evaluation, or "auto".
            revision: Branch, tag or commit on the Hub.

        Raises:
            OSError: There is no such model.
            TypeError, ValueError: It has no image processor, or an argument is not as the class needs it.
        """
        return cls(*load_image_classifier(classifier_id, revision), batch_size)

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
        """What defines this classifier besides the network's weights, as plain values."""
        return {
            "method": "gaussian",
            "architecture": type(self.classifier).__name__,
            "image_size": None if self._size is None else list(self._size),
            "image_mean": self.preprocessing["image_mean"],
            "image_std": self.preprocessing["image_std"],
            "dtype": computing_dtype(self.classifier),
        }

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self._channels

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images, `None` if they may differ."""
        return self._size

    @property
    def device(self) -> torch.device:
        """Device for the images."""
        return self.classifier.device

    @property
    def tried_network(self) -> torch.nn.Module:
        """The network that a trial of the batch size is for."""
        return self.classifier

    @property
    def networks_key(self) -> Hashable:
        """The network's dtype; a result is kept for the network anyway."""
        return self.classifier.dtype

    @property
    def evaluations_per_image(self) -> int:
        """Network evaluations that one image costs."""
        return 1

    def check_images(self, images: torch.Tensor) -> None:
        """Raise unless the classifier can take a batch of images.

        Args:
            images: What to check.

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: It does not have the shape `(N, C, H, W)` with N at least 1 and the classifier's channels and
                size.
        """
        check_floating(images)
        sides = self._size or tuple(images.shape[2:])
        expected = (self._channels, *sides)
        if images.ndim != 4 or images.numel() == 0 or tuple(images.shape[1:]) != expected:
            size = "height, width" if self._size is None else f"{sides[0]}, {sides[1]}"
            raise ValueError(
                f"`images` must have the shape (N, {self._channels}, {size}) with at least one image, got "
                f"{tuple(images.shape)}."
            )

    def classify_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of one batch."""
        self.evaluations += len(images)
        inputs = preprocess(images, self._channels, **self.preprocessing)
        exact = torch.float64 if images.dtype == torch.float64 else torch.float32
        return self.classifier(pixel_values=inputs.to(self.classifier.dtype)).logits.to(exact)


def load_image_classifier(
    classifier_id: str | Path, revision: str = "main"
) -> tuple["PreTrainedModel", "BaseImageProcessor"]:
    """Load an image classification model of transformers with its image processor.

    Args:
        classifier_id: A local folder or Hub id.
        revision: Branch, tag or commit on the Hub.

    Raises:
        OSError: There is no such model.
        ValueError: It has no image processor.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification  # takes seconds

    classifier = AutoModelForImageClassification.from_pretrained(classifier_id, revision=revision)
    try:
        image_processor = AutoImageProcessor.from_pretrained(classifier_id, revision=revision)
    except OSError as error:
        raise ValueError(
            "`classifier_id` must be a classifier with an image processor (preprocessor_config.json), got "
            f"{str(classifier_id)!r}. Save one beside it, or give both to the class."
        ) from error
    return classifier, image_processor


def channels_of(classifier: object) -> int:
    """Channels of the images that an image classification model of transformers takes.

    Raises:
        TypeError: It is something else.
    """
    config = getattr(classifier, "config", None)  # models of other tasks have a configuration without labels
    if not hasattr(config, "num_labels"):
        raise TypeError(
            f"`classifier` must be an image classification model of transformers, got {type(classifier).__name__}."
        )
    return getattr(config, "num_channels", 3)  # not every configuration has it


def class_names(classifier: "PreTrainedModel") -> dict[int, str] | None:
    """Names of a model's classes, or `None` if it has only the generic LABEL_0, LABEL_1, ..."""
    names = {int(label): name for label, name in classifier.config.id2label.items()}
    generic = {label: f"LABEL_{label}" for label in range(classifier.config.num_labels)}
    return None if names == generic else names
