"""What every classifier pipeline can do without certificates: classify images, and calibrate its noise levels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.utils import BaseOutput

from ..common.checks import BatchSize, check_seed, check_sigma
from ..common.images import check_pixel_range
from ..common.noise import resolve_seed
from ..diffusion.calibration import ROUNDS, calibrate_levels, calibrate_sifted, check_calibrating, check_labels
from ..diffusion.class_sifter import ClassSifter, FeatureSift
from ..diffusion.classifier import NoisedDiffusionClassifier
from ..diffusion.denoised_diffusion import DenoisedDiffusionClassifier
from ..diffusion.denoiser import Denoiser
from ..diffusion.feature_classifier import FeatureClassifier
from ..diffusion.levels_table import levels_key
from ..diffusion.likelihoods import get_likelihood
from ..diffusion.noise_levels import NoiseLevels
from ..diffusion.sifter_fitting import SiftFitting, check_enough
from ..diffusion.trained_levels import default_levels
from .inputs import Image, Images, one_of, to_pixel_batch
from .reading import ImagesOrPaths, ReadBatch
from .saving import SharedPipeline


DiffusionClassifier = NoisedDiffusionClassifier | DenoisedDiffusionClassifier | FeatureClassifier
"""The modules that `classifier` returns."""

Sift = Literal["candidates", "scores", False]
"""What a sifter does for a classifier."""


@dataclass
class ClassifierOutput(BaseOutput):
    """Output of a classifier pipeline for a batch of N images and K classes.

    Args:
        labels: Class indices, N of them.
        probs: Softmax of the logits, shape `(N, K)`, float32, on the CPU. With `elbo` weights an estimate of the
            posterior under a uniform prior; its confidence is not calibrated, and it is no certificate.
        logits: Minus the weighted denoising losses, shape `(N, K)`, float32, on the CPU.
    """

    labels: list[int]
    probs: torch.Tensor
    logits: torch.Tensor


class ClassifierPipeline(SharedPipeline, ABC):
    """Base class of the pipelines: a diffusion model as a classifier of images.

    A subclass registers the components, among them the `sifter` (or `None`), and the config values `id2label` and
    `levels`.
    """

    @property
    @abstractmethod
    def denoiser(self) -> Denoiser:
        """The current components as the denoiser `h(x_sigma, sigma, y)` that scores the classes."""

    @abstractmethod
    def classifier(
        self,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        seed: int | None = None,
        sift: Sift | None = None,
    ) -> DiffusionClassifier:
        """The classifier as a `torch.nn.Module` from images `(N, C, H, W)` in pixel units to logits `(N, K)`.

        Args:
            sigma: Standard deviation of the Gaussian noise that the images carry, pixel units; 0 for clean images.
            method: Name of the method. Default: the usual one of the model for clean or noisy images.
            levels: Noise levels and weights. Default: the levels that were calibrated, else `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            seed: Seed of the noise that every image meets. Default: fresh noise for each image.
            sift: What the pipeline's `sifter` does for each image: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted for this sigma and method and no `levels` are given, else False.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
        """

    @torch.no_grad()
    def __call__(
        self,
        images: Images | None = None,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        return_dict: bool = True,
        *,
        sift: Sift | None = None,
        image: Images | None = None,
    ) -> ClassifierOutput | tuple:
        """Classify images: clean ones (`sigma=0`), or images that carry Gaussian noise.

        Clean images are scored by the diffusion classifier (Li et al. 2023, arXiv:2303.16203), noisy ones by a noised
        diffusion classifier (Chen et al., arXiv:2402.02316).

        Args:
            images: PIL images, numpy arrays `(H, W[, C])` or `(N, H, W, C)`, tensors `(C, H, W)` or `(N, C, H, W)`, or
                a list of them; uint8, or floats in pixel units ([0, 1] plus the noise). PIL images are resized to the
                network's size.
            sigma: Standard deviation of the Gaussian noise that the images carry, pixel units.
            method: `dc` for clean images, for noisy ones `apndc`, `epndc` or `apndc-clean` (a latent model: `dds`).
                Default: `dc` for clean images, else `apndc` (a latent model: `dds`).
            levels: Noise levels and weights. Default: the levels that were calibrated for this sigma and method, else
                `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            generator: Source of the seed. An image's noise depends on seed and image, not on its place in a batch.
            seed: The seed itself, instead of a `generator`. Default: from the operating system's entropy.
            return_dict: Whether to return a `ClassifierOutput` or a plain tuple of its three values.
            sift: What the pipeline's `sifter` does for each image: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted for this sigma and method and no `levels` are given, else False.
            image: The same as `images`, by the name that other pipelines use. Give one of the two.

        Returns:
            Labels, probabilities and logits, one row per image.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> pipe(image, seed=0).labels  # doctest: +SKIP
            [7]
        """
        images = one_of(images, image)
        classifier = self.classifier(sigma, method, levels, batch_size, sift=sift)
        seed = resolve_seed(generator, seed)
        batch, _ = self._preprocess(images, classifier)
        check_pixel_range(batch, sigma)
        rows = {}
        with self.progress_bar(total=len(batch)) as bar:
            for index, classified in classifier.classify_each(batch, seed):
                rows[index] = classified.logits
                bar.update()
        self.maybe_free_model_hooks()
        logits = torch.stack([rows[index] for index in range(len(batch))]).float().cpu()
        output = ClassifierOutput(logits.argmax(dim=1).tolist(), logits.softmax(dim=1), logits)
        return output if return_dict else output.to_tuple()

    def calibrate(
        self,
        images: ImagesOrPaths,
        labels: Sequence[int],
        sigma: float = 0.25,
        num_levels: int = 12,
        method: str | None = None,
        candidates: NoiseLevels | None = None,
        quantile: float | None = 0.9995,
        batch_size: BatchSize = 64,
        seed: int = 0,
        sift: str | None = "features",
        sift_quantile: float = 0.998,
        num_copies: int = 4,
        cells: tuple[int, int] = (1, 1),
        scores_quantile: float = 0.995,
    ) -> NoiseLevels:
        """Fit a sifter and choose a few noise levels, with weights, on labelled images; keep them with the model.

        From then on they are the default for this sigma and method, and `save_pretrained` saves them. The sifter
        (`ClassSifter`) chooses a noisy copy's candidate classes by features of the pass without a class, so that its
        cost hardly depends on the number of classes. Fewer levels, and fewer classes at most of them, make every later
        call cheaper still. The certificates stay sound whatever is chosen; but accuracies mean something only on
        images that were not used here.

        Args:
            images: Clean labelled images, a few hundred at least: an array `(N, H, W, C)`, a tensor `(N, C, H, W)`, or
                a sequence of PIL images, arrays, tensors or paths; uint8, or floats in [0, 1]. Each image is read anew
                when it is needed, a few times, so that a lazy sequence such as a column of `datasets` may be larger
                than memory. All are read and checked before the network is called.
            labels: Their class indices, with each class among them.
            sigma: Standard deviation of the smoothing noise that the levels are for, pixel units; 0 for clean images.
            num_levels: Largest number of levels to keep. If classes are sifted, few copies reach the later levels, so
                that more levels cost little.
            method: Method that the levels are for: `dc` for clean images, else `apndc`, `epndc` or `apndc-clean`.
                Default: `dc` for clean images, else `apndc`.
            candidates: Levels to choose from, and the weights towards which the new ones are shrunk. Default:
                `default_levels`.
            quantile: Share of the noisy copies whose true class must survive the sifting after each level: classes
                are dropped whose loss exceeds the best one by more than the true class's loss does in this share. Only
                copies count that are classified correctly without sifting: the others are lost anyway. `None`: no
                sifting between levels.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            seed: Seed of the noise.
            sift: `features`: fit a sifter, which needs two images of each class, and sift between levels.
                `losses`: all classes are scored at the first level, and sifted from there on. `None`: all classes are
                scored at all levels.
            sift_quantile: Share of the same copies whose true class must be a candidate (with `features`).
            num_copies: Noisy copies of each image (with `features`).
            cells: Rows and columns of the grid whose cells give features of their own (with `features`). One cell
                forgets where things are; where this makes the class (two digits side by side, say), more cells leave
                fewer candidates. They need more images, since there are more features.
            scores_quantile: As `sift_quantile`, where the scores count in the loss (`sift="scores"`): of the copies
                that scores and levels classify correctly together. The gap is never wider than that of the candidates.

        Returns:
            The chosen levels.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> levels = pipe.calibrate(images, labels, sigma=0.25)  # doctest: +SKIP
            >>> pipe.save_pretrained("calibrated")  # doctest: +SKIP
        """
        sigma = check_sigma(sigma)
        if candidates is None:
            candidates = default_levels(sigma, self.denoiser)
        if sift is not None and not (isinstance(sift, str) and sift in ("features", "losses")):
            raise ValueError(f"`sift` must be 'features', 'losses' or None, got {sift!r}.")
        fitting = SiftFitting(sift_quantile, num_copies, cells, scores_quantile)
        classifier = self._diffusion_classifier(sigma, method, candidates, batch_size)
        batch = ReadBatch(images, classifier.denoiser, self._execution_device)
        check_seed(seed)
        classes = check_labels(labels, len(batch), classifier.num_classes)
        check_calibrating(classifier, num_levels, quantile)
        if sift == "features":
            check_enough(classes)
        fitted: FeatureSift | None = None
        with self.progress_bar(total=len(batch) * (1 + (ROUNDS if sift == "features" else 1))) as bar:
            batch.check(bar.update)
            if sift == "features":
                levels, fitted = calibrate_sifted(
                    classifier, batch, classes, num_levels, quantile, fitting, seed, bar.update
                )
            else:
                quantile = quantile if sift == "losses" else None
                levels = calibrate_levels(classifier, batch, classes, num_levels, quantile, seed, bar.update)
        self.maybe_free_model_hooks()
        self._keep_sift(fitted, sigma, classifier.likelihood.name)
        table = {key: dict(methods) for key, methods in (self.config.levels or {}).items()}
        table.setdefault(levels_key(sigma), {})[classifier.likelihood.name] = levels.to_dict()
        self.register_to_config(levels=table)
        return levels

    def _keep_sift(self, fitted: FeatureSift | None, sigma: float, method: str) -> None:
        """Make `fitted` the sift for a noise and method; `None`: there is none any more."""
        sifter = ClassSifter() if self.sifter is None else self.sifter
        sifter = sifter.without(sigma, method) if fitted is None else sifter.with_sift(fitted)
        self.register_modules(sifter=sifter if sifter.all_sifts() else None)

    def _diffusion_classifier(
        self,
        sigma: float,
        method: str | None,
        levels: NoiseLevels | None,
        batch_size: BatchSize,
        seed: int | None = None,
        sift: Sift | None = None,
    ) -> NoisedDiffusionClassifier:
        """The classifier that scores the classes with `denoiser`, by default with the calibrated levels and sifter."""
        sigma = check_sigma(sigma)
        method = get_likelihood(method, sigma).name
        found = None if self.sifter is None else self.sifter.find(sigma, method)
        if sift is None:
            sift = "candidates" if found is not None and levels is None else False
        check_sift_argument(sift, found, sigma, method)
        if sift is False:
            found = None
        if sift == "scores" and found is not None:
            found, scored_levels = found.with_scores()
            levels = scored_levels if levels is None else levels
        calibrated = (self.config.levels or {}).get(levels_key(sigma), {}).get(method)
        if levels is None and calibrated is not None:
            levels = NoiseLevels.from_dict(calibrated)
        return NoisedDiffusionClassifier(self.denoiser, sigma, method, levels, batch_size, seed, found)

    def _feature_classifier(self, sigma: float, batch_size: BatchSize) -> FeatureClassifier:
        """The sifter alone."""
        sigma = check_sigma(sigma)
        found = None if self.sifter is None else self.sifter.find(sigma)
        if found is None or sigma == 0:
            raise ValueError(
                "`method` must be a likelihood without a sifter that was fitted for noisy images with this sigma (see "
                f"`calibrate`), got 'features' for sigma={sigma}."
            )
        return FeatureClassifier(self.denoiser, found, batch_size)

    def _preprocess(self, images: Images, classifier: DiffusionClassifier) -> tuple[torch.Tensor, bool]:
        """One batch on the pipeline's device, shape `(N, C, H, W)`, and whether `images` was a single image."""
        denoiser = classifier.denoiser
        batch, single = to_pixel_batch(images, denoiser.image_channels, denoiser.image_size)
        denoiser.check_images(batch)
        return batch.to(self._execution_device), single

    def _preprocess_one(self, image: Image, classifier: DiffusionClassifier) -> torch.Tensor:
        """A single image on the pipeline's device, shape `(C, H, W)`."""
        batch, single = self._preprocess(image, classifier)
        if not single:
            raise ValueError(f"`image` must be a single image, got a batch of {len(batch)}.")
        return batch[0]


def check_sift_argument(sift: Sift, found: FeatureSift | None, sigma: float, method: str) -> None:
    """Raise a `ValueError` unless this is a possible value of `sift` with the sift that was found, or none."""
    if sift is not False and not (isinstance(sift, str) and sift in ("candidates", "scores")):
        raise ValueError(f"`sift` must be 'candidates', 'scores', False or None, got {sift!r}.")
    if sift is not False and found is None:
        raise ValueError(
            f"`sift` must be False or None without a sifter that was fitted for sigma={sigma} and method={method!r} "
            f"(see `calibrate`), got {sift!r}."
        )


def recorded_sift(settings: dict) -> Sift:
    """What the sifter did for the base classifier of a record."""
    if "sifter" not in settings:
        return False
    return "scores" if settings["sifter"]["loss_weight"] > 0 else "candidates"


def integer_labels(id2label: dict | None) -> dict[int, str] | None:
    """`id2label` with integer keys (JSON makes strings of them), or `None`.

    Raises:
        ValueError: `id2label` is neither `None` nor a dictionary of class index to name.
    """
    if id2label is None:
        return None
    try:
        names = {int(label): str(name) for label, name in id2label.items()}
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        names = {}
    if not names:
        raise ValueError(f"`id2label` must be a dictionary of class index to name, got {id2label!r}.")
    return names


def check_names(id2label: dict[int, str] | None, num_classes: int) -> None:
    """Raise a `ValueError` unless `id2label` is `None` or has one name for each class."""
    if id2label is not None and sorted(id2label) != list(range(num_classes)):
        raise ValueError(f"`id2label` must have the keys 0 to {num_classes - 1}, got {sorted(id2label)}.")
