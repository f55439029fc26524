"""The sifter alone as a classifier: a linear map of features of one pass, without any likelihood."""

import torch

from ..common.checks import BatchSize, check_kind, check_sigma, checked_batch_size
from .base import DenoiserClassifier, OnePassClassifier
from .class_sifter import FeatureSift, check_sift
from .denoiser import Denoiser
from .features import read_features
from .networks import check_evaluation_mode
from .trained_levels import check_trained_sigma
from .units import model_images


class FeatureClassifier(OnePassClassifier, DenoiserClassifier):
    """The class with the best score of a sifter: the baseline that a sifted likelihood must beat.

    One evaluation a noisy copy. Such a discriminative classifier on a diffusion model's features owes its accuracy to
    labels (`calibrate`), where the likelihood owes its own to the model. Nothing is drawn: it is a fixed function of
    each image, and `SmoothedClassifier` certifies it like any other.

    Args:
        denoiser: The network and its scheduler.
        sift: The sifter of a smoothing noise above 0, which is the noise that images must carry.
        batch_size: Images per network evaluation. Peak memory depends on it. "auto": found by a short trial on the
            device.

    The attribute `evaluations` counts the network evaluations spent so far.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The sifter is for clean images or another model, or an argument is out of range.

    Example:
        >>> classifier = pipe.classifier(sigma=0.25, method="features")  # doctest: +SKIP
    """

    def __init__(self, denoiser: Denoiser, sift: FeatureSift, batch_size: BatchSize = 64):
        super().__init__()
        check_kind("denoiser", denoiser, Denoiser)
        check_kind("sift", sift, FeatureSift)
        check_sigma(sift.smoothing_sigma)
        if sift.smoothing_sigma == 0:
            raise ValueError("`sift` must be fitted for noisy images, got one for sigma=0.")
        self.batch_size = checked_batch_size(batch_size)
        check_evaluation_mode(denoiser)
        check_trained_sigma(sift.smoothing_sigma, denoiser)
        check_sift(sift, sift.smoothing_sigma, sift.method, denoiser)
        self.denoiser = denoiser
        self.sift = sift
        self.sigma = sift.smoothing_sigma
        self.evaluations = 0

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.sift.num_classes

    @property
    def settings(self) -> dict:
        """What defines this classifier besides the network's weights, as plain values."""
        return {
            "method": "features",
            "sifter": self.sift.settings,
            **self.denoiser.unconditional_settings,
            "dtype": self.denoiser.dtype,
        }

    @property
    def evaluations_per_image(self) -> int:
        """Network evaluations that one image costs."""
        return 1

    def classify_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of one batch."""
        x_tau = model_images(images)
        no_seeds = [0] * len(images)  # used for clean images only
        sift = self.sift
        _, features = read_features(
            self.denoiser, x_tau, self.sigma, sift.blocks, sift.noise, no_seeds, denoise=False, cells=sift.cells
        )
        self.evaluations += len(images)
        logits = self.sift(features).to(x_tau)
        if not logits.isfinite().all():
            raise FloatingPointError("Features must be finite, got NaN or infinity: in the images, or by an overflow.")
        return logits
