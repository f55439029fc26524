"""Calibration: a few noise levels and their weights, chosen on labelled images.

The choice is made before any image is certified, and is part of the base classifier's definition. Every choice, even
a bad one, leaves all certificates sound. It only determines how often the classifier is correct.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import optimize, special

from ..common.checks import check_integer, check_number, check_sigma
from ..common.noise import standard_normal
from ..common.seeds import derive_seeds
from .classifier import NoisedDiffusionClassifier
from .likelihoods import get_likelihood
from .noise_levels import NoiseLevels
from .sifting_rule import SiftingRule


GROUP = 32
"""Images that are scored in one call, and whose noise is derived from one seed."""

LEAST_GAIN = 1e-4
"""Smallest decrease of the objective, in nats, for which a further level is added."""

RIDGE = 1.0
"""Penalty, in nats over all images, of a weight that is 0 or twice what its prior suggests beside the others."""


def calibrate_levels(
    classifier: NoisedDiffusionClassifier,
    images: torch.Tensor,
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
    candidates, so that a few hundred images are enough.

    Args:
        classifier: The classifier to calibrate. Its levels are the candidates, their weights are the prior of the fit.
        images: Clean images, shape `(N, C, H, W)`, pixel units. The noise that the classifier expects is added here.
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
    check_integer("num_levels", num_levels, 1, len(classifier.levels), "a number of candidates")
    if quantile is not None:
        expected = "a fraction above 0 and up to 1, or None"
        check_number("quantile", quantile, expected)
        if not 0 < quantile <= 1:
            raise ValueError(f"`quantile` must be {expected}, got {quantile}.")
    errors = noisy_errors(classifier, images, seed, on_images)
    chosen, weights = choose_levels(errors, classes, np.array(classifier.levels.weights), num_levels)
    if not chosen:
        raise ValueError(
            "`candidates` must include a level at which the model can tell the classes of `labels` apart, got none."
        )
    sifting = None
    if quantile is not None:
        thresholds = sift_thresholds(errors[:, chosen], weights, classes, quantile)
        sifting = SiftingRule(tuple(thresholds), relative=True)
    return NoiseLevels(
        sigmas=tuple(classifier.levels.sigmas[level] for level in chosen),
        weights=tuple(weights),
        sifting=sifting,
        smoothing_sigma=classifier.sigma,
        method=classifier.likelihood.name,
        cap=classifier.levels.cap,
    )


def noisy_errors(
    classifier: NoisedDiffusionClassifier,
    images: torch.Tensor,
    seed: int,
    on_images: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Squared errors of one noisy copy of each image.

    Args:
        classifier: Its `sigma` is the noise that is added to the images.
        images: Clean images, shape `(N, C, H, W)`, pixel units.
        seed: Seed of the noise, 63 bits.
        on_images: Called with the number of images after each group of images.

    Returns:
        Float64 array of shape (images, levels, classes), summed over pixels, model units.
    """
    errors = []
    for group, part in enumerate(images.split(GROUP)):
        seeds = derive_seeds((seed, "calibrate", group), 2 * len(part))
        smoothing_seeds, own_seeds = seeds[::2], seeds[1::2]  # of the image's noise, of the classifier's noise
        eps = standard_normal(tuple(part.shape[1:]), smoothing_seeds, part.dtype, part.device)
        with torch.no_grad():
            errors.append(classifier.squared_errors(part + classifier.sigma * eps, own_seeds).cpu())
        if on_images is not None:
            on_images(len(part))
    return torch.cat(errors).double().numpy()


def choose_levels(
    errors: np.ndarray, labels: np.ndarray, prior: np.ndarray, num_levels: int
) -> tuple[list[int], np.ndarray]:
    """Choose levels greedily.

    Args:
        errors: Squared errors, shape (images, levels, classes).
        labels: True classes, shape (images,).
        prior: Weights towards which the fitted ones are shrunk, shape (levels,).
        num_levels: Largest number of levels to choose.

    Returns:
        Indices of the chosen levels and their weights. There are fewer than `num_levels` if no further level lowers
        the objective by at least `LEAST_GAIN`, or if the weight of a chosen level is 0.
    """
    num_classes = errors.shape[2]
    chosen: list[int] = []
    weights = np.empty(0)
    objective = math.log(num_classes)  # without levels, all classes are equally likely
    for _ in range(num_levels):
        best_level, best_weights, best_objective = None, weights, math.inf
        for level in range(errors.shape[1]):
            if level in chosen:
                continue
            extended = [*chosen, level]
            new_weights, new_objective = fit_weights(errors[:, extended], labels, prior[extended])
            if new_objective < best_objective:
                best_level, best_weights, best_objective = level, new_weights, new_objective
        if best_level is None or best_objective > objective - LEAST_GAIN:
            break
        chosen.append(best_level)
        weights, objective = best_weights, best_objective
    positive = weights > 0
    return [level for level, keep in zip(chosen, positive, strict=True) if keep], weights[positive]


def fit_weights(errors: np.ndarray, labels: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit weights `w >= 0` by multinomial logistic regression on the negative errors, shrunk towards `prior`.

    With the factors `f_t = w_t / prior_t` they minimise

        mean_n(-log softmax_k(-sum_t w_t * error_ntk)[label_n])  +  RIDGE / N * sum_t (f_t / mean(f) - 1)^2

    in nats. The penalty depends on the ratios of the factors alone: the scale of the weights is not shrunk.

    Args:
        errors: Squared errors, shape (N images, T levels, K classes).
        labels: True classes, shape (N,).
        prior: Shape (T,), positive.

    Returns:
        The weights, shape (T,), and the minimum.
    """
    num_images, num_levels = errors.shape[:2]
    true_errors = errors[np.arange(num_images), :, labels]
    # m_ntk = prior_t * (error_ntk - error of the true class), 0 for the true class, so that the loss of an image is
    # log sum_k exp(-sum_t f_t * m_ntk). They are divided by their mean size for the optimiser's sake. The penalty does
    # not depend on the scale of the factors.
    margins = (errors - true_errors[:, :, None]) * prior[:, None]
    unit = np.abs(margins).mean() or 1.0
    margins = margins / unit

    def objective_and_gradient(factors: np.ndarray) -> tuple[float, np.ndarray]:
        logits = -np.einsum("ntk,t->nk", margins, factors)
        log_sums = special.logsumexp(logits, axis=1)
        probabilities = np.exp(logits - log_sums[:, None])
        loss = log_sums.mean()
        loss_gradient = -np.einsum("ntk,nk->t", margins, probabilities) / num_images

        # sum_t (f_t / mean - 1)^2 = sum_t f_t^2 / mean^2 - T
        mean = factors.mean()
        scaled_squares = (factors**2).sum() / mean**2
        penalty_gradient = 2 * (factors / mean**2 - scaled_squares / (num_levels * mean))

        ridge = RIDGE / num_images
        return loss + ridge * (scaled_squares - num_levels), loss_gradient + ridge * penalty_gradient

    start = np.full(num_levels, 1 / num_levels)
    bounds: list[tuple[float, float | None]] = [(0, None)] * num_levels
    bounds[0] = (1e-9, None)  # the factors must not all be 0
    result = optimize.minimize(objective_and_gradient, start, jac=True, bounds=bounds, method="L-BFGS-B")
    return result.x * prior / unit, float(result.fun)


def sift_thresholds(errors: np.ndarray, weights: np.ndarray, labels: np.ndarray, quantile: float) -> np.ndarray:
    """Relative thresholds with which the true class survives each level's sifting in a given fraction of the copies.

    After level t, the relative gap of the true class is `(loss_true - min_k loss_k) / min_k loss_k`, where
    `loss_k = sum_{i <= t} w_i * error_ik`. The threshold is the quantile of these gaps over the copies.

    Args:
        errors: Squared errors, shape (copies, levels, classes).
        weights: Shape (levels,).
        labels: True classes, shape (copies,).
        quantile: The fraction, above 0 and up to 1.

    Returns:
        One threshold per level but the last.
    """
    losses = np.cumsum(errors * weights[:, None], axis=1)
    smallest = losses.min(axis=2)
    true_losses = losses[np.arange(len(labels)), :, labels]
    gaps = (true_losses - smallest) / np.maximum(smallest, np.finfo(float).tiny)
    return np.quantile(gaps[:, :-1], quantile, axis=0)


def check_labels(labels: ArrayLike, num_images: int, num_classes: int) -> np.ndarray:
    """Check labels and return them as an array of integers.

    Args:
        labels: The labels, one per image.
        num_images: Number of images.
        num_classes: Number of classes of the model.

    Raises:
        ValueError: They are not one integer per image, within the model's classes, and with every class among them.
    """
    expected = f"one integer for each of the {num_images} images"
    try:
        classes = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`labels` must be {expected}, got {labels!r}.") from None
    if classes.shape != (num_images,) or classes.dtype.kind not in "iu":
        raise ValueError(f"`labels` must be {expected}, got the shape {classes.shape} and type {classes.dtype}.")
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(f"`labels` must be from 0 to {num_classes - 1}, got {classes.min()} to {classes.max()}.")
    missing = sorted(set(range(num_classes)) - set(classes.tolist()))
    if missing:
        raise ValueError(f"`labels` must have at least one image of each class, got none of the classes {missing}.")
    return classes


def levels_key(sigma: float) -> str:
    """Key of the noise levels for a smoothing sigma (pixel units) in a pipeline's configuration."""
    return f"{sigma:g}"


def check_levels(levels: dict[str, dict[str, dict]]) -> None:
    """Raise unless a table of noise levels can be used when one of its sigmas is asked for.

    Args:
        levels: Dictionaries of `NoiseLevels.to_dict` by sigma (pixel units, as `levels_key` writes it) and method.

    Raises:
        TypeError: A value of the levels has the wrong type.
        ValueError: The table has another structure, a key or value is out of range, or levels were calibrated for
            another sigma or method.
    """
    if not isinstance(levels, dict) or not all(isinstance(by_method, dict) for by_method in levels.values()):
        raise ValueError(f"`levels` must be a dictionary by sigma of dictionaries by method, got {levels!r}.")
    for key, by_method in levels.items():
        if not _is_levels_key(key):
            raise ValueError(f"`levels` must have sigmas in pixel units as keys, such as '0.25', got {key!r}.")
        for method, values in by_method.items():
            get_likelihood(method, float(key))
            saved = NoiseLevels.from_dict(values)
            sigma = None if saved.smoothing_sigma is None else levels_key(saved.smoothing_sigma)
            if (sigma, saved.method) not in ((None, None), (key, method)):
                raise ValueError(
                    f"`levels` must have levels for sigma {key} and method {method!r} at these keys, got levels for "
                    f"sigma {sigma} and method {saved.method!r}."
                )


def _is_levels_key(key: object) -> bool:
    try:
        sigma = float(key)  # type: ignore[arg-type]
        check_sigma(sigma)
    except (OverflowError, TypeError, ValueError):
        return False
    return key == levels_key(sigma)
