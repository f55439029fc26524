"""How much the squared error at each noise level counts, and the densities that this follows from.

All noise levels are in model units.
"""

import math

import numpy as np

from ..common.checks import check_kind


WEIGHTINGS = ("elbo", "edm", "edm-reference", "uniform")

# Training distribution of Karras et al. 2022 (arXiv:2206.00364, Table 1): log sigma ~ N(P_mean, P_std^2).
P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5


def edm_lambda(sigma: np.ndarray, sigma_data: float = SIGMA_DATA) -> np.ndarray:
    """EDM's loss weight `(sigma^2 + sigma_data^2) / (sigma * sigma_data)^2` (Karras et al. 2022, Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def log_normal_density(sigma: np.ndarray, p_mean: float = P_MEAN, p_std: float = P_STD) -> np.ndarray:
    """Density `p(sigma)` of EDM's training noise levels, per unit of sigma."""
    return np.exp(-((np.log(sigma) - p_mean) ** 2) / (2 * p_std**2)) / (sigma * p_std * math.sqrt(2 * math.pi))


def reference_density(sigma: np.ndarray, p_mean: float = P_MEAN, p_std: float = P_STD) -> np.ndarray:
    """`log_normal_density` as the NDC authors' program computes it.

    Its exponent is `-(log sigma - P_mean)^2 / 2 * P_std^2` instead of `-(log sigma - P_mean)^2 / (2 * P_std^2)`.
    """
    return np.exp(-((np.log(sigma) - p_mean) ** 2) / 2 * p_std**2) / (sigma * p_std * math.sqrt(2 * math.pi))


def interval_weights(
    weighting: str, sigmas: np.ndarray, widths: np.ndarray, p_mean: float = P_MEAN, p_std: float = P_STD
) -> np.ndarray:
    """Weights of noise levels that each stand for an interval.

    Args:
        weighting: `elbo` (`width / sigma^3`: the ELBO, in nats), `edm` (`width * lambda(sigma) * p(sigma)`: EDM's
            training loss), `edm-reference` (the same with `reference_density`) or `uniform` (`1 / T`).
        sigmas: Noise levels, shape `(T,)`, model units.
        widths: Width of each level's interval, shape `(T,)`, model units.
        p_mean: Mean of `log sigma` in training.
        p_std: Standard deviation of `log sigma` in training.

    Raises:
        TypeError: `weighting` is not a string.
        ValueError: `weighting` is unknown.
    """
    check_kind("weighting", weighting, str)
    if weighting == "elbo":
        return widths / sigmas**3
    if weighting == "edm":
        return widths * edm_lambda(sigmas) * log_normal_density(sigmas, p_mean, p_std)
    if weighting == "edm-reference":
        return widths * edm_lambda(sigmas) * reference_density(sigmas, p_mean, p_std)
    if weighting == "uniform":
        return np.full_like(sigmas, 1 / len(sigmas))
    raise ValueError(f"`weighting` must be one of {WEIGHTINGS}, got {weighting!r}.")


def reference_weights(s: np.ndarray, s_next: np.ndarray, ds: float) -> np.ndarray:
    """Weights of the NDC authors' program for DC, APNDC and APNDC-clean: `lambda(s') * p(s) * ds`.

    The image is noised to `s'`, while the density is read at an earlier grid point `s`: one point earlier for DC and
    APNDC-clean, two for APNDC.

    Args:
        s: Grid points where the density is read, shape `(T,)`, above 0.
        s_next: The noise levels `s'`, later grid points, shape `(T,)`.
        ds: Distance between two grid points.
    """
    return edm_lambda(s_next) * reference_density(s) * ds


def reference_epndc_weights(s: np.ndarray, s_next: np.ndarray, ds: float, tau: float) -> np.ndarray:
    """Weights on `||h - target||^2` that are equivalent to those of the NDC authors' program for EPNDC.

    The program weighs the error between posterior means by
    `lambda(s) * p(s) * s'^2 * (s'^2 - tau^2) / (4 * ds * (s^2 - tau^2))`. The error between posterior means is
    `(s'^2 - s^2) / s'^2` times `h - target`.

    Args:
        s: Grid points, shape `(T,)`, above `tau`.
        s_next: The grid points `s'` that follow them, shape `(T,)`.
        ds: Distance between two grid points.
        tau: Noise of the image.
    """
    on_posterior_means = (
        edm_lambda(s) * reference_density(s) * s_next**2 * (s_next**2 - tau**2) / (4 * ds * (s**2 - tau**2))
    )
    return on_posterior_means * ((s_next**2 - s**2) / s_next**2) ** 2
