"""Calibration: a few noise levels and their weights, chosen on labelled images.

The choice is made before any image is certified, and is part of the base classifier's definition. Every choice, even
a bad one, leaves all certificates sound. It only determines how often the classifier is correct.
"""

from collections.abc import Callable

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
from .level_fitting import choose_levels, sift_thresholds
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
    quantile: float | None = 0.998,
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
        quantile: Fraction of the noisy copies whose true class survives each level's sifting. `None`: no sifting.
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
    levels, _ = fit_levels(classifier, data, num_levels, quantile)
    if levels is None:
        raise ValueError(NO_TELLING_LEVEL)
    return levels


def check_calibrating(classifier: NoisedDiffusionClassifier, num_levels: int, quantile: float | None) -> None:
    """Raise unless levels of a classifier can be chosen with these arguments of `calibrate_levels`."""
    check_integer("num_levels", num_levels, 1, len(classifier.levels), "a number of candidates")
    if quantile is not None:
        expected = "a fraction above 0 and up to 1, or None"
        quantile = check_number("quantile", quantile, expected)
        if not 0 < quantile <= 1:
            raise ValueError(f"`quantile` must be {expected}, got {quantile}.")


def fit_levels(
    classifier: NoisedDiffusionClassifier,
    data: CandidateErrors,
    num_levels: int,
    quantile: float | None,
    with_scores: bool = False,
) -> tuple[NoiseLevels | None, float]:
    """Choose levels by the errors of the candidates, with weights and thresholds.

    Args:
        classifier: Its levels are those of the errors.
        data: Errors of labelled images.
        num_levels: Number of levels to choose.
        quantile: Fraction of the noisy copies whose true class survives each level's sifting. `None`: no sifting.
        with_scores: Whether the scores of the sifter count as a first level, whose weight is fitted with the others.

    Returns:
        The levels, `None` if none of them helps to tell the classes apart, and the weight of the scores (0 without
        them).
    """
    errors, prior, given = data.errors, np.array(classifier.levels.weights), 0
    if with_scores:
        errors = np.concatenate([data.scores[:, None], errors], axis=1)
        prior, given = np.concatenate([[1.0], prior]), 1
    chosen, weights = choose_levels(errors, data.labels, prior, num_levels, data.kept, given)
    if len(chosen) == given:
        return None, 0.0
    sifting = None
    if quantile is not None:
        thresholds = sift_thresholds(errors[:, chosen], weights, data.labels, quantile, data.kept, given)
        sifting = SiftingRule(tuple(thresholds), relative=True)
    levels = NoiseLevels(
        sigmas=tuple(classifier.levels.sigmas[level - given] for level in chosen[given:]),
        weights=tuple(weights[given:]),
        sifting=sifting,
        smoothing_sigma=classifier.sigma,
        method=classifier.likelihood.name,
        cap=classifier.levels.cap,
    )
    return levels, float(weights[0]) if with_scores else 0.0


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

    Args:
        classifier: The classifier to calibrate, without a sift. Its levels are the candidates, their weights are the
            prior of the fit.
        images: Clean images, pixel units: a tensor `(N, C, H, W)`, or what makes its rows when they are read. The
            noise that the classifier expects is added here.
        labels: Their classes, shape `(N,)`. Every class must occur twice.
        num_levels: Number of levels to choose.
        quantile: Fraction of the noisy copies whose true class survives each level's sifting. `None`: only features
            sift.
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
    levels, _ = fit_levels(classifier, data, num_levels, quantile)
    if levels is None:
        raise ValueError(NO_TELLING_LEVEL)
    level_zero = None
    levels_after_scores, loss_weight = fit_levels(classifier, data, num_levels, quantile, with_scores=True)
    if levels_after_scores is not None and loss_weight > 0:
        level_zero = {"loss_weight": loss_weight, "levels": levels_after_scores.to_dict()}
    sift = fit.sift.with_rule(expected_classes=float(data.kept.sum(axis=1).mean()), level_zero=level_zero)
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
