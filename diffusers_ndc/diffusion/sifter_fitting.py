"""Fitting the class sifter on labelled images: a linear discriminant with a shrunken covariance, cross-fitted.

Only sums over the images are kept, so that memory does not grow with their number. The images are read twice: once for
the map, once for the gap. Scores that set the gap are of maps that were fitted without the image, so that a map that
has learned its images by heart gets a wide gap and costs evaluations, not accuracy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..common.checks import check_integer, check_number
from ..common.images import ImageRows
from ..common.noise import standard_normal
from ..common.seeds import derive_seeds
from .class_sifter import FeatureSift
from .classifier import NoisedDiffusionClassifier
from .features import WHOLE, check_cells, default_blocks, read_features
from .trained_levels import check_trained_sigma
from .units import model_sigma


NUM_FOLDS = 4
"""Parts of the images; each is scored by a map that was fitted on the others."""

SHRINKAGE = 0.01
"""Share of a multiple of the identity in the covariance, which makes it invertible."""

CLEAN_NOISE = 0.2
"""Noise, model units, at which features of clean images are read (or the nearest that the network was trained for)."""

GROUP = 32
"""Images that are read at a time."""

MAX_COPIES = 10_000
"""Largest number of noisy copies of an image."""


@dataclass(frozen=True)
class SiftFitting:
    """How a sift is fitted.

    Args:
        sift_quantile: Share of the noisy copies whose true class must be a candidate: the gap is this quantile of the
            distance between the score of the true class and the best score.
        num_copies: Noisy copies of each image.
        cells: Rows and columns of the grid whose cells the features are of.
        scores_quantile: As `sift_quantile`, for scores that count in the loss.

    Raises:
        TypeError, ValueError: A value is not as described.
    """

    sift_quantile: float = 0.998
    num_copies: int = 4
    cells: tuple[int, int] = WHOLE
    scores_quantile: float = 0.995

    def __post_init__(self) -> None:
        expected = "a fraction above 0 and up to 1"
        for name in ("sift_quantile", "scores_quantile"):
            quantile = check_number(name, getattr(self, name), expected)
            if not 0 < quantile <= 1:
                raise ValueError(f"`{name}` must be {expected}, got {quantile}.")
            object.__setattr__(self, name, quantile)
        check_integer("num_copies", self.num_copies, 1, MAX_COPIES, "a number of noisy copies")
        check_cells(self.cells)


@dataclass(frozen=True)
class CrossFit:
    """Sifts fitted on labelled images.

    Args:
        sift: Fitted on all images.
        folds: Each fitted without the images of its fold, with the same gap.
        fold_of: Number of each image's fold, shape `(N,)`.
    """

    sift: FeatureSift
    folds: list[FeatureSift]
    fold_of: np.ndarray


class Moments:
    """Sums over labelled features: all that a linear discriminant needs of them.

    Args:
        num_classes: Number of classes K.
        num_features: Number of features D.
    """

    def __init__(self, num_classes: int, num_features: int):
        self.counts = torch.zeros(num_classes, dtype=torch.double)
        self.sums = torch.zeros(num_classes, num_features, dtype=torch.double)
        self.products = torch.zeros(num_features, num_features, dtype=torch.double)

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add features of shape `(N, D)` of images with these classes."""
        self.counts.index_add_(0, labels, torch.ones(len(labels), dtype=torch.double))
        self.sums.index_add_(0, labels, features)
        self.products.addmm_(features.T, features)

    @classmethod
    def total(cls, parts: "Sequence[Moments]") -> "Moments":
        """Moments of all these features."""
        total = cls(*parts[0].sums.shape)
        for part in parts:
            total.counts += part.counts
            total.sums += part.sums
            total.products += part.products
        return total

    def discriminant(self, left_out: "Moments | None" = None) -> dict[str, torch.Tensor]:
        """The linear discriminant of these features, perhaps without some of them.

        Features are standardised; their covariance within the classes is mixed with `SHRINKAGE` of the identity times
        its mean variance. Classes are equally likely.

        Args:
            left_out: Moments of features that are among these and are to be left out.

        Returns:
            Parameters of a `FeatureSift`.
        """
        counts, sums, products = self.counts, self.sums, self.products
        if left_out is not None:
            counts, sums = counts - left_out.counts, sums - left_out.sums
            products = products - left_out.products
        total = counts.sum()
        mean = sums.sum(dim=0) / total
        covariance = products / total - torch.outer(mean, mean)
        scale = covariance.diagonal().clamp(min=1e-12).sqrt()
        centres = (sums / counts[:, None] - mean) / scale
        within = covariance / torch.outer(scale, scale) - (centres * (counts / total)[:, None]).T @ centres
        mean_variance = within.diagonal().mean().clamp(min=1e-6)
        shrunken = (1 - SHRINKAGE) * within + SHRINKAGE * mean_variance * torch.eye(len(mean), dtype=torch.double)
        weight = torch.linalg.solve(shrunken, centres.T).T
        bias = -(weight * centres).sum(dim=1) / 2
        return {"mean": mean, "scale": scale, "weight": weight, "bias": bias}


def fit_sift(
    classifier: NoisedDiffusionClassifier,
    images: ImageRows,
    labels: np.ndarray,
    fitting: SiftFitting,
    min_classes: int = 2,
    blocks: Sequence[str] | None = None,
    seed: int = 0,
    on_images: Callable[[int], object] | None = None,
) -> CrossFit:
    """Fit the map from features to classes, and the gap of the candidates.

    Args:
        classifier: The classifier that is to be sifted.
        images: Clean images, pixel units: a tensor `(N, C, H, W)`, or what makes its rows when they are read. The
            noise that the classifier expects is added here.
        labels: Their classes, shape `(N,)`. Every class must occur twice.
        fitting: How it is fitted.
        min_classes: Smallest number of candidates.
        blocks: Names of the blocks whose features are read. Default: `default_blocks`.
        seed: Seed of the noise, 63 bits.
        on_images: Called with the number of images after each group of images, in each of two rounds.

    Returns:
        The sifts.

    Raises:
        ValueError: A class occurs only once, the unconditional denoiser was not trained with the classifier's noise,
            or a block's output has no place for the cells.
    """
    check_enough(labels)
    if classifier.sigma > 0:  # a method that is not told of the noise has not checked this
        check_trained_sigma(classifier.sigma, classifier.denoiser)
    blocks = default_blocks(classifier.denoiser.unconditional_network) if blocks is None else blocks
    copies = _CopyFeatures(classifier, images, fitting, blocks, seed, on_images)
    fold_of = folds_of(labels)
    everything, by_fold = _moments(copies, labels, fold_of, classifier.num_classes)

    def sift_of(parameters: dict[str, torch.Tensor], gap: float = 0.0) -> FeatureSift:
        sift = FeatureSift(
            smoothing_sigma=classifier.sigma,
            method=classifier.likelihood.name,
            num_classes=classifier.num_classes,
            num_features=len(parameters["mean"]),
            blocks=blocks,
            noise=copies.noise,
            gap=gap,
            min_classes=min_classes,
            dtype=classifier.denoiser.dtype,
            cells=fitting.cells,
        )
        sift.load_state_dict(parameters)
        return sift.eval()

    maps = [everything.discriminant(moments) for moments in by_fold]
    distances = _distances(copies, labels, fold_of, [sift_of(parameters) for parameters in maps])
    gap = float(np.quantile(distances, fitting.sift_quantile))
    device = classifier.denoiser.unet.device
    folds = [sift_of(parameters, gap).to(device) for parameters in maps]
    return CrossFit(sift_of(everything.discriminant(), gap).to(device), folds, fold_of)


class _CopyFeatures:
    """Features of noisy copies of the images, made anew each time that they are iterated over.

    Yields:
        Features of one copy of a few images, float64 on the CPU, shape `(n, D)`, and the numbers of these images.
    """

    def __init__(self, classifier, images, fitting, blocks, seed, on_images):
        self.classifier, self.images, self.fitting = classifier, images, fitting
        self.blocks, self.seed, self.on_images = blocks, seed, on_images
        denoiser = classifier.denoiser
        low, high = denoiser.unconditional_sigma_range
        clean_noise = denoiser.nearest_unconditional_sigma(min(max(CLEAN_NOISE, low), high))
        self.noise = model_sigma(classifier.sigma) or clean_noise

    def __iter__(self) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        for first in range(0, len(self.images), GROUP):
            rows = np.arange(first, min(first + GROUP, len(self.images)))
            part = self.images[rows]
            for copy in range(self.fitting.num_copies):
                yield self._features(part, rows, copy), rows
            if self.on_images is not None:
                self.on_images(len(rows))

    def _features(self, part: torch.Tensor, rows: np.ndarray, copy: int) -> torch.Tensor:
        classifier, sigma = self.classifier, self.classifier.sigma
        noisy, seeds = noisy_copies(part, rows, copy, sigma, self.seed)
        with classifier.inference():
            x_tau = classifier.to_model(noisy)
            size = classifier.network_batch_for(x_tau)
            _, features = read_features(
                classifier.denoiser,
                x_tau,
                sigma,
                self.blocks,
                self.noise,
                seeds,
                size,
                denoise=False,
                cells=self.fitting.cells,
            )
        features = features.double().cpu()
        if not features.isfinite().all():
            raise FloatingPointError("Features must be finite, got NaN or infinity: in the images, or by an overflow.")
        return features


def _moments(
    copies: _CopyFeatures, labels: np.ndarray, fold_of: np.ndarray, num_classes: int
) -> tuple[Moments, list[Moments]]:
    """Moments of all copies, and of those of each fold."""
    by_fold: list[Moments] = []
    for features, rows in copies:
        by_fold = by_fold or [Moments(num_classes, features.shape[1]) for _ in range(NUM_FOLDS)]
        for fold, chosen in _by_fold(fold_of[rows]):
            by_fold[fold].add(features[chosen], torch.from_numpy(labels[rows[chosen]]))
    return Moments.total(by_fold), by_fold


def _distances(copies: _CopyFeatures, labels: np.ndarray, fold_of: np.ndarray, folds: list[FeatureSift]) -> np.ndarray:
    """Distance of the true class's score from the best one, for each copy, by the map that did not see its image."""
    distances = []
    for features, rows in copies:
        for fold, chosen in _by_fold(fold_of[rows]):
            scores = folds[fold](features[chosen].float())
            true_scores = scores[np.arange(len(scores)), labels[rows[chosen]]]
            distances.append((scores.amax(dim=1) - true_scores).numpy())
    return np.concatenate(distances)


def _by_fold(fold_of: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each fold that occurs, and which entries are of it."""
    for fold in np.unique(fold_of):
        yield int(fold), fold_of == fold


def noisy_copies(
    images: torch.Tensor, rows: np.ndarray, copy: int, sigma: float, seed: int
) -> tuple[torch.Tensor, list[int]]:
    """A numbered noisy copy of each image, and the seeds of the classifier's own noise for them.

    Args:
        images: Clean images, shape `(N, C, H, W)`.
        rows: Their numbers, on which their noise depends.
        copy: Number of the copy.
        sigma: Noise, pixel units.
        seed: Seed of the noise, 63 bits.
    """
    seeds = [derive_seeds((seed, "calibrate", int(row), copy), 2) for row in rows]
    eps = standard_normal(tuple(images.shape[1:]), [own for own, _ in seeds], images.dtype, images.device)
    return images + sigma * eps, [own for _, own in seeds]


def folds_of(labels: np.ndarray) -> np.ndarray:
    """Number of each image's fold: the images of each class are dealt out in turn."""
    fold_of = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        fold_of[rows] = np.arange(len(rows)) % NUM_FOLDS
    return fold_of


def check_enough(labels: np.ndarray) -> None:
    """Raise a `ValueError` if a class occurs once: a map fitted without that image would not know the class."""
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            "`labels` must have at least two images of each class to fit a sifter of features, got one of the classes "
            f'{classes[counts < 2].tolist()}. Give more images, or `sift="losses"`.'
        )
