"""Calibration: a few noise levels and their weights, chosen on labelled images.

The choice is made before any image is certified, and is part of the base classifier's definition. Every choice, even
a bad one, leaves all certificates sound. It only determines how often the classifier is correct.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..common.checks import check_integer, check_number, class_indices
from ..common.images import ImageRows
from ..common.noise import standard_normal
from ..common.seeds import derive_seeds
from .candidate_errors import CandidateErrors, as_array, candidate_errors
from .class_sifter import FeatureSift
from .classifier import NoisedDiffusionClassifier
from .level_fitting import choose_levels, classified_correctly, sift_thresholds
from .noise_levels import NoiseLevels
from .sifter_fitting import SiftFitting, fit_sift
from .sifting_rule import SiftingRule


GROUP = 32
"""Images that are scored in one call, and whose noise is derived from one seed."""

ROUNDS = 3
"""Times that `calibrate_sifted` reads each image."""

NO_TELLING_LEVEL = (
    "`candidates` must include a level at which the model can tell the classes of `labels` apart, got none."
)


def calibrate_levels(
    classifier: NoisedDiffusionClassifier,
    images: ImageRows,
    labels: ArrayLike,
    num_levels: int,
    quantile: float | None = 0.9995,
    seed: int = 0,
    on_images: Callable[[int], object] | None = None,
) -> NoiseLevels:
    """The best `num_levels` of a classifier's levels and weights for them, by greedy maximum likelihood.

    Every image is scored once at every candidate level, with noise that all classes share. Levels are then added one
    at a time: always the one with which `softmax(-sum_i w_i * error_i)`, its weights `w >= 0` fitted anew, gives the
    labels the highest likelihood (a convex problem, see `fit_weights`). The weights are shrunk towards those of the
    candidates, so that a few hundred images are enough. The images are read once. The errors of all classes are kept,
    so that memory is proportional to images times levels times classes.

    Args:
        classifier: The classifier to calibrate. Its levels are the candidates, their weights are the prior of the fit.
        images: Clean images, pixel units: a tensor `(N, C, H, W)`, or what makes its rows when they are read. The
            noise that the classifier expects is added here.
        labels: Their classes, shape `(N,)`. Every class must occur.
        num_levels: Number of levels to choose.
        quantile: Fraction of the noisy copies whose true class survives each level's sifting, of those that all levels
            classify correctly. `None`: no sifting.
        seed: Seed of the noise, 63 bits.
        on_images: Called with the number of images after each group of images.

    Returns:
        At most `num_levels` levels, for the classifier's `sigma` and method. Fewer if further levels do not help.

    Raises:
        TypeError: `quantile` is not a number.
        ValueError: `quantile` is out of range; `labels` are not one per image, within the model's classes and with
            every class among them; there are fewer candidates than `num_levels`; or the model tells the classes apart
            at none of them.
    """
    classes = check_labels(labels, len(images), classifier.num_classes)
    check_calibrating(classifier, num_levels, quantile)
    errors = noisy_errors(classifier, images, seed, on_images)
    everything = np.ones((len(classes), classifier.num_classes), dtype=bool)
    data = CandidateErrors(errors, classes, everything, np.zeros(everything.shape))
    chosen = fit_levels(classifier, data, num_levels)
    if chosen is None:
        raise ValueError(NO_TELLING_LEVEL)
    return chosen.sifting(data, quantile)


def check_calibrating(classifier: NoisedDiffusionClassifier, num_levels: int, quantile: float | None) -> None:
    """Raise unless levels of a classifier can be chosen with these arguments of `calibrate_levels`."""
    check_integer("num_levels", num_levels, 1, len(classifier.levels), "a number of candidates")
    if quantile is not None:
        expected = "a fraction above 0 and up to 1, or None"
        quantile = check_number("quantile", quantile, expected)
        if not 0 < quantile <= 1:
            raise ValueError(f"`quantile` must be {expected}, got {quantile}.")


@dataclass(frozen=True)
class ChosenLevels:
    """Levels that were chosen by the errors of the candidates, without thresholds yet.

    Args:
        levels: The levels with their weights.
        rows: Their places among the levels whose errors they were chosen by; the scores of the sifter, if they count
            as a first level, are place 0.
        weights: The weights of `rows`.
        with_scores: Whether the scores count.
    """

    levels: NoiseLevels
    rows: list[int]
    weights: np.ndarray
    with_scores: bool

    def right(self, data: CandidateErrors) -> np.ndarray:
        """Which noisy copies these levels classify correctly, without sifting; shape `(N,)`."""
        return classified_correctly(self._errors(data), self.weights, data.labels, data.kept)

    def gap(self, data: CandidateErrors, quantile: float, widest: float) -> float:
        """How far behind the best score the true class is in this share of the copies that are classified correctly.

        Args:
            data: Errors of the candidates.
            quantile: The share.
            widest: The gap if it would be wider, or if no copy is classified correctly, nats.
        """
        right = self.right(data)
        return min(widest, float(np.quantile(data.gaps()[right], quantile))) if right.any() else widest

    def sifting(self, data: CandidateErrors, quantile: float | None) -> NoiseLevels:
        """The levels with thresholds (`sift_thresholds`) for these candidates; without any if `quantile` is `None`."""
        if quantile is None:
            return self.levels
        given = int(self.with_scores)
        thresholds = sift_thresholds(self._errors(data), self.weights, data.labels, quantile, data.kept, given)
        return replace(self.levels, sifting=SiftingRule(tuple(thresholds), relative=True))

    def _errors(self, data: CandidateErrors) -> np.ndarray:
        """Errors at these levels, shape `(N, len(rows), C)`."""
        return errors_of(data, self.with_scores)[:, self.rows]


def errors_of(data: CandidateErrors, with_scores: bool) -> np.ndarray:
    """Errors at each level, shape `(N, L, C)`, the scores of the sifter before them if they count."""
    return np.concatenate([data.scores[:, None], data.errors], axis=1) if with_scores else data.errors


def fit_levels(
    classifier: NoisedDiffusionClassifier, data: CandidateErrors, num_levels: int, with_scores: bool = False
) -> ChosenLevels | None:
    """Choose levels by the errors of the candidates, with weights.

    Args:
        classifier: Its levels are those of the errors.
        data: Errors of labelled images.
        num_levels: Number of levels to choose.
        with_scores: Whether the scores of the sifter count as a first level, whose weight is fitted with the others.

    Returns:
        The levels, `None` if none of them helps to tell the classes apart.
    """
    prior, given = np.array(classifier.levels.weights), int(with_scores)
    if with_scores:
        prior = np.concatenate([[1.0], prior])
    errors = errors_of(data, with_scores)
    rows, weights = choose_levels(errors, data.labels, prior, num_levels, data.kept, given)
    if len(rows) == given:
        return None
    levels = NoiseLevels(
        sigmas=tuple(classifier.levels.sigmas[row - given] for row in rows[given:]),
        weights=tuple(weights[given:]),
        smoothing_sigma=classifier.sigma,
        method=classifier.likelihood.name,
        cap=classifier.levels.cap,
    )
    return ChosenLevels(levels, rows, weights, with_scores)


def noisy_errors(
    classifier: NoisedDiffusionClassifier,
    images: ImageRows,
    seed: int,
    on_images: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Squared errors of one noisy copy of each image.

    Args:
        classifier: Its `sigma` is the noise that is added to the images.
        images: Clean images, pixel units: a tensor `(N, C, H, W)`, or what makes its rows when they are read.
        seed: Seed of the noise, 63 bits.
        on_images: Called with the number of images after each group of images.

    Returns:
        Array of shape (images, levels, classes), summed over pixels, model units, in the precision in which they were
        computed.
    """
    errors = []
    for group, first in enumerate(range(0, len(images), GROUP)):
        part = images[np.arange(first, min(first + GROUP, len(images)))]
        seeds = derive_seeds((seed, "calibrate", group), 2 * len(part))
        smoothing_seeds, own_seeds = seeds[::2], seeds[1::2]  # of the image's noise, of the classifier's noise
        eps = standard_normal(tuple(part.shape[1:]), smoothing_seeds, part.dtype, part.device)
        with torch.no_grad():
            errors.append(as_array(classifier.squared_errors(part + classifier.sigma * eps, own_seeds)))
        if on_images is not None:
            on_images(len(part))
    return np.concatenate(errors)


def calibrate_sifted(
    classifier: NoisedDiffusionClassifier,
    images: ImageRows,
    labels: ArrayLike,
    num_levels: int,
    quantile: float | None,
    fitting: SiftFitting,
    seed: int = 0,
    on_images: Callable[[int], object] | None = None,
) -> tuple[NoiseLevels, FeatureSift]:
    """Fit a sift by features, and then the levels that decide between its candidates, as `calibrate_levels`.

    Every image is read three times: for the map from features to classes and for the gap (`fit_sift`), and for the
    errors of the candidates, which a map chooses that was fitted without the image. Of a noisy copy, only the
    errors of its candidates are kept, `MOST_CANDIDATES` at most.

    When the levels are chosen, the gap becomes the quantile over the copies that the levels classify correctly: a
    wider one only costs evaluations, as the others are lost anyway. So do the thresholds (`sift_thresholds`). Scores
    that count in the loss have a gap of their own, never a wider one: a class that is far behind has its score
    against it, and the copies that it wins all the same are few and dear.

    Args:
        classifier: The classifier to calibrate, without a sift. Its levels are the candidates, their weights are the
            prior of the fit.
        images: Clean images, pixel units: a tensor `(N, C, H, W)`, or what makes its rows when they are read. The
            noise that the classifier expects is added here.
        labels: Their classes, shape `(N,)`. Every class must occur twice.
        num_levels: Number of levels to choose.
        quantile: Fraction of the noisy copies whose true class survives each level's sifting, of those that all levels
            classify correctly. `None`: only features sift.
        fitting: How the sift is fitted.
        seed: Seed of the noise, 63 bits.
        on_images: Called with the number of images after each group of images, in each of the three rounds.

    Returns:
        Levels and sift, for the classifier's `sigma` and method. The sift also has the levels for the case that its
        scores count in the loss (`FeatureSift.with_scores`).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or a class occurs only once; or the model tells the classes apart at
            none of the levels.
    """
    classes = check_labels(labels, len(images), classifier.num_classes)
    check_calibrating(classifier, num_levels, quantile)
    fit = fit_sift(classifier, images, classes, fitting, seed=seed, on_images=on_images)
    data = candidate_errors(classifier, images, classes, fit, fitting.num_copies, seed, on_images)
    chosen = fit_levels(classifier, data, num_levels)
    if chosen is None:
        raise ValueError(NO_TELLING_LEVEL)
    chosen_after_scores = fit_levels(classifier, data, num_levels, with_scores=True)
    gap = chosen.gap(data, fitting.sift_quantile, fit.sift.gap)
    candidates = data.within(gap, fit.sift.min_classes)
    levels = chosen.sifting(candidates, quantile)
    level_zero = None
    if chosen_after_scores is not None and chosen_after_scores.weights[0] > 0:
        level_zero = {
            "loss_weight": float(chosen_after_scores.weights[0]),
            "levels": chosen_after_scores.sifting(candidates, quantile).to_dict(),
            "gap": chosen_after_scores.gap(data, fitting.scores_quantile, gap),
        }
    expected_classes = float(candidates.kept.sum(axis=1).mean())
    sift = fit.sift.with_rule(gap=gap, expected_classes=expected_classes, level_zero=level_zero)
    return levels, sift


def check_labels(labels: ArrayLike, num_images: int, num_classes: int) -> np.ndarray:
    """Check labels and return them as an array of integers.

    Args:
        labels: The labels, one per image.
        num_images: Number of images.
        num_classes: Number of classes of the model.

    Raises:
        ValueError: They are not one integer per image, within the model's classes, and with every class among them.
    """
    classes = class_indices(labels, num_images, num_classes)
    missing = sorted(set(range(num_classes)) - set(classes.tolist()))
    if missing:
        raise ValueError(f"`labels` must have at least one image of each class, got none of the classes {missing}.")
    return classes
