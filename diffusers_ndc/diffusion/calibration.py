"""A handful of noise levels and their weights, chosen on labelled images.

What is chosen here is fixed before any image is certified: it is part of the base classifier's definition, and any
choice, a bad one too, leaves every certificate sound. It only decides how often the classifier is right.
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
from .noise_levels import NoiseLevels, SiftingRule


GROUP = 32
"""Images that are scored in one call and share the seed of their noise."""

LEAST_GAIN = 1e-4
"""Nats by which a further level must lower the objective."""

RIDGE = 1.0
"""Nats, over all images, that a weight costs which is 0 or twice what the candidates' own weights would have it be."""


def calibrate_levels(
    classifier: NoisedDiffusionClassifier,
    images: torch.Tensor,
    labels: ArrayLike,
    num_levels: int,
    quantile: float | None = 0.998,
    seed: int = 0,
    on_images: Callable[[int], object] | None = None,
) -> NoiseLevels:
    """The best `num_levels` of a classifier's levels, and weights for them, by greedy maximum likelihood.

    Every image is scored once at every level, all classes and levels with common noise. Levels are then added one at a
    time, the most telling first: the one with which `softmax(-sum_i w_i * error_i)`, its weights `w >= 0` fitted anew,
    gives the labels the highest likelihood (a convex problem, `fit_weights`). The weights are shrunk towards those of
    the candidates, so that a few hundred images are enough.

    Args:
        classifier: Its sigma, method and network are calibrated; its levels are the candidates, their weights the
            ones that the fit starts from.
        images: Clean images, shape `(N, C, H, W)`, pixel units; the noise that the classifier expects is added here.
        labels: Their classes, shape `(N,)`.
        num_levels: How many levels to keep.
        quantile: Share of the noisy copies whose true class survives each level's sifting; `None`: no sifting.
        seed: Seed of the noise.
        on_images: Called with the number of images after each group of them.

    Raises:
        TypeError: `quantile` is no number.
        ValueError: `quantile` is no share; `labels` are not one for each image, within the model's classes and each
            class among them; there are fewer candidates than `num_levels`; or the model tells the classes apart at
            none of them.
    """
    classes = check_labels(labels, len(images), classifier.num_classes)
    check_integer("num_levels", num_levels, 1, len(classifier.levels), "a whole number of the candidates,")
    if quantile is not None:
        check_number("quantile", quantile, "a share above 0 and up to 1, or None")
        if not 0 < quantile <= 1:
            raise ValueError(f"`quantile` is {quantile}; accepted is a share above 0 and up to 1, or None.")
    errors = []
    for group, part in enumerate(images.split(GROUP)):
        seeds = derive_seeds((seed, "calibrate", group), 2 * len(part))
        smoothing_seeds, own_seeds = seeds[::2], seeds[1::2]
        eps = standard_normal(tuple(part.shape[1:]), smoothing_seeds, part.dtype, part.device)
        with torch.no_grad():
            errors.append(classifier.squared_errors(part + classifier.sigma * eps, own_seeds).cpu())
        if on_images is not None:
            on_images(len(part))
    table = torch.cat(errors).double().numpy()
    chosen, weights = choose_levels(table, classes, np.array(classifier.levels.weights), num_levels)
    if not chosen:
        raise ValueError("At no level of `candidates` does the model tell the classes of these `labels` apart.")
    sigmas = tuple(classifier.levels.sigmas[level] for level in chosen)
    sifting = None
    if quantile is not None:
        thresholds = sift_thresholds(table[:, chosen], weights, classes, quantile)
        sifting = SiftingRule(tuple(thresholds), relative=True)
    return NoiseLevels(
        sigmas,
        tuple(weights),
        sifting,
        smoothing_sigma=classifier.sigma,
        method=classifier.likelihood.name,
        cap=classifier.levels.cap,
    )


def choose_levels(
    errors: np.ndarray, labels: np.ndarray, prior: np.ndarray, num_levels: int
) -> tuple[list[int], np.ndarray]:
    """Greedy choice of levels from errors of shape (images, levels, classes): their indices, and their weights.

    Fewer than `num_levels` come back where no further level lowers the objective by at least `LEAST_GAIN`.
    """
    chosen: list[int] = []
    weights, loss = np.empty(0), math.log(errors.shape[2])
    for _ in range(num_levels):
        left = [level for level in range(errors.shape[1]) if level not in chosen]
        fits = {level: fit_weights(errors[:, [*chosen, level]], labels, prior[[*chosen, level]]) for level in left}
        best = min(fits, key=lambda level: fits[level][1])
        if fits[best][1] > loss - LEAST_GAIN:
            break
        chosen, (weights, loss) = [*chosen, best], fits[best]
    kept = weights > 0
    return [level for level, keep in zip(chosen, kept, strict=True) if keep], weights[kept]


def fit_weights(errors: np.ndarray, labels: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, float]:
    """Non-negative weights of multinomial logistic regression on minus the errors, shrunk towards `prior`.

    They minimise the mean loss in nats plus `RIDGE / images * sum((f / mean(f) - 1)^2)`, where `f` are the weights
    divided by `prior`: only their ratios are shrunk, not their scale.

    Returns:
        The weights, and the minimum.
    """
    rows = np.arange(len(labels))
    margins = errors - errors[rows, :, labels][:, :, None]  # of each class over the true one, 0 for the latter
    margins = margins * prior[:, None]
    unit = np.abs(margins).mean() or 1.0
    margins = margins / unit

    def objective_and_gradient(factors):
        logits = -np.einsum("ntk,t->nk", margins, factors)
        log_sum = special.logsumexp(logits, axis=1)
        gradient = -np.einsum("ntk,nk->t", margins, np.exp(logits - log_sum[:, None])) / len(labels)
        mean = factors.mean()
        spread = (factors**2).sum() / mean**2
        ridge = RIDGE / len(labels)
        slope = 2 * (factors / mean**2 - spread / (len(factors) * mean))
        return log_sum.mean() + ridge * (spread - len(factors)), gradient + ridge * slope

    start = np.full(len(prior), 1 / len(prior))
    bounds: list[tuple[float, float | None]] = [(0, None)] * len(prior)
    bounds[0] = (1e-9, None)  # not all 0
    result = optimize.minimize(objective_and_gradient, start, jac=True, bounds=bounds, method="L-BFGS-B")
    return result.x * prior / unit, float(result.fun)


def sift_thresholds(errors: np.ndarray, weights: np.ndarray, labels: np.ndarray, quantile: float) -> np.ndarray:
    """For each level but the last: the gap to the best class's loss so far, as a share of that loss, that the true
    class seldom exceeds."""
    losses = np.cumsum(errors * weights[:, None], axis=1)
    best = losses.min(axis=2)
    gaps = (losses[np.arange(len(labels)), :, labels] - best) / np.maximum(best, np.finfo(float).tiny)
    return np.quantile(gaps[:, :-1], quantile, axis=0)


def check_labels(labels: ArrayLike, num_images: int, num_classes: int) -> np.ndarray:
    """Labels as whole numbers, one for each image, within the model's classes and with each class among them."""
    try:
        labels = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`labels` is {labels!r}; accepted is one whole number for each image.") from None
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` has the shape {labels.shape} and type {labels.dtype}; accepted is one whole number for each "
            f"of the {num_images} images."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"`labels` go from {labels.min()} to {labels.max()}; accepted are 0 to {num_classes - 1}.")
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(f"`labels` has no image of the classes {missing}; accepted is at least one of each class.")
    return labels


def levels_key(sigma: float) -> str:
    """The name under which the noise levels for a smoothing sigma (pixel units) stand in the configuration."""
    return f"{sigma:g}"


def check_levels(levels: dict[str, dict[str, dict]]) -> None:
    """Refuse a table of noise levels that could not be used when its sigma is asked for."""
    if not isinstance(levels, dict) or not all(isinstance(values, dict) for values in levels.values()):
        raise ValueError(f"`levels` is {levels!r}; accepted is a dictionary by sigma of dictionaries by method.")
    for key, values in levels.items():
        try:
            check_sigma(float(key))
            canonical = levels_key(float(key))
        except (TypeError, ValueError):
            canonical = None
        if key != canonical:
            raise ValueError(f"`levels` has the key {key!r}; accepted are sigmas in pixel units, such as '0.25'.")
        for method in values:
            get_likelihood(method, float(key))
            made = NoiseLevels.from_dict(values[method])
            sigma = None if made.smoothing_sigma is None else levels_key(made.smoothing_sigma)
            if (sigma, made.method) not in ((None, None), (key, method)):
                raise ValueError(
                    f"`levels` has those of {sigma} and {made.method} at {key!r}, {method!r}; accepted are its own."
                )
