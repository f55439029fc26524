"""Choosing noise levels by maximum likelihood: which ones, their weights, and the thresholds that sift the classes.

Plain functions of arrays of squared errors.
"""

import math

import numpy as np
from scipy import optimize, special


LEAST_GAIN = 1e-4
"""Smallest decrease of the objective, in nats, for which a further level is added."""

RIDGE = 1.0
"""Penalty, in nats over all images, of a weight that is 0 or twice what its prior suggests beside the others."""


def choose_levels(
    errors: np.ndarray,
    labels: np.ndarray,
    prior: np.ndarray,
    num_levels: int,
    kept: np.ndarray | None = None,
    given: int = 0,
) -> tuple[list[int], np.ndarray]:
    """Choose levels greedily.

    Args:
        errors: Squared errors, shape (images, levels, classes).
        labels: True classes, shape (images,).
        prior: Weights towards which the fitted ones are shrunk, shape (levels,).
        num_levels: Largest number of levels to choose.
        kept: Which classes are candidates, shape (images, classes). Default: all.
        given: Number of the first levels that are in the choice from the beginning, and not counted.

    Returns:
        Indices of the chosen levels and their weights. There are fewer than `num_levels` if no further level lowers
        the objective by at least `LEAST_GAIN`, or if the weight of a chosen level is 0.
    """
    num_classes = errors.shape[2]
    chosen = list(range(given))
    weights = np.empty(0)
    objective = math.log(num_classes)  # without levels, all classes are equally likely
    if kept is not None:
        objective = np.log(kept.sum(axis=1)).mean()
    if given:
        weights, objective = fit_weights(errors[:, chosen], labels, prior[chosen], kept)
    for _ in range(num_levels):
        best_level, best_weights, best_objective = None, weights, math.inf
        for level in range(errors.shape[1]):
            if level in chosen:
                continue
            extended = [*chosen, level]
            new_weights, new_objective = fit_weights(errors[:, extended], labels, prior[extended], kept)
            if new_objective < best_objective:
                best_level, best_weights, best_objective = level, new_weights, new_objective
        if best_level is None or best_objective > objective - LEAST_GAIN:
            break
        chosen.append(best_level)
        weights, objective = best_weights, best_objective
    positive = weights > 0
    positive[:given] = True
    return [level for level, keep in zip(chosen, positive, strict=True) if keep], weights[positive]


def fit_weights(
    errors: np.ndarray, labels: np.ndarray, prior: np.ndarray, kept: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Fit weights `w >= 0` by multinomial logistic regression on the negative errors, shrunk towards `prior`.

    With the factors `f_t = w_t / prior_t` they minimise

        mean_n(-log softmax_k(-sum_t w_t * error_ntk)[label_n])  +  RIDGE / N * sum_t (f_t / mean(f) - 1)^2

    in nats. The penalty depends on the ratios of the factors alone: the scale of the weights is not shrunk.

    Args:
        errors: Squared errors, shape (N images, T levels, K classes).
        labels: True classes, shape (N,).
        prior: Shape (T,), positive.
        kept: Which classes are candidates, shape (N, K); the softmax is over them. Default: all.

    Returns:
        The weights, shape (T,), and the minimum.
    """
    num_images, num_levels = errors.shape[:2]
    errors = errors.astype(float, copy=False)
    true_errors = errors[np.arange(num_images), :, labels]
    # m_ntk = prior_t * (error_ntk - error of the true class), 0 for the true class, so that the loss of an image is
    # log sum_k exp(-sum_t f_t * m_ntk). They are divided by their mean size for the optimiser's sake. The penalty does
    # not depend on the scale of the factors.
    margins = errors - true_errors[:, :, None]  # the order of its axes in memory decides how later sums round
    margins *= prior[:, None]  # in place, as below: there may be millions
    dropped = np.zeros((num_images, 1)) if kept is None else np.where(kept, 0.0, -np.inf)
    if kept is not None:
        margins *= kept[:, None]
    unit = np.abs(margins).mean() or 1.0
    margins /= unit

    def objective_and_gradient(factors: np.ndarray) -> tuple[float, np.ndarray]:
        logits = dropped - np.einsum("ntk,t->nk", margins, factors)
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


def sift_thresholds(
    errors: np.ndarray,
    weights: np.ndarray,
    labels: np.ndarray,
    quantile: float,
    kept: np.ndarray | None = None,
    given: int = 0,
) -> np.ndarray:
    """Relative thresholds with which the true class survives each level's sifting in a given fraction of the copies.

    After level t, the relative gap of the true class is `(loss_true - min_k loss_k) / min_k loss_k`, where
    `loss_k = sum_{i <= t} w_i * error_ik`. The threshold is the quantile of these gaps over the copies that all levels
    classify correctly. The others, whose gaps are large, are lost whatever the thresholds are: where a tenth of the
    copies is, they alone would decide a quantile of 99.8%, and nothing would be sifted. If all are lost, all count.

    Args:
        errors: Squared errors, shape (copies, levels, classes).
        weights: Shape (levels,).
        labels: True classes, shape (copies,).
        quantile: The fraction, above 0 and up to 1.
        kept: Which classes are candidates, shape (copies, classes). Default: all.
        given: Number of the first levels after which nothing is sifted.

    Returns:
        One threshold per level after the `given` ones, but the last.
    """
    right = classified_correctly(errors, weights, labels, kept)
    losses = np.cumsum(errors * weights[:, None], axis=1)[:, given:]
    if kept is not None:
        losses = np.where(kept[:, None], losses, np.inf)
    smallest = losses.min(axis=2)
    true_losses = losses[np.arange(len(labels)), :, labels]
    gaps = (true_losses - smallest) / np.maximum(smallest, np.finfo(float).tiny)
    gaps = gaps[right] if right.any() else gaps
    return np.quantile(gaps[:, :-1], float(quantile), axis=0)  # which would rank in the precision of the quantile


def classified_correctly(
    errors: np.ndarray, weights: np.ndarray, labels: np.ndarray, kept: np.ndarray | None = None
) -> np.ndarray:
    """Which copies have the smallest loss over all levels at their true class.

    Args:
        errors: Squared errors, shape (copies, levels, classes).
        weights: Shape (levels,).
        labels: True classes, shape (copies,).
        kept: Which classes are candidates, shape (copies, classes). Default: all.

    Returns:
        Booleans, shape (copies,).
    """
    losses = np.einsum("ntk,t->nk", errors, weights)
    if kept is not None:
        losses = np.where(kept, losses, np.inf)
    return losses.argmin(axis=1) == labels
