"""Which noise levels a model can use: the default ones, the nearest that it knows, and the checks of both.

The levels must be ones that the class-conditional network knows. The noise of the image is told to the unconditional
denoiser alone, which may be another network, of another training.
"""

import math
from dataclasses import replace

from .denoiser import Denoiser
from .noise_levels import NoiseLevels
from .one_network import SAME_NOISE
from .units import model_sigma, pixel_sigma


SAME_SIGMA = 1e-5
"""Largest relative difference between the noise that levels were calibrated for and the noise they are used at."""


def default_levels(sigma: float, denoiser: Denoiser) -> NoiseLevels:
    """Twelve ELBO-weighted levels, evenly spaced in `log sigma`, from just above the image's noise to 9 (model units).

    Args:
        sigma: Noise that the images carry, pixel units.
        denoiser: The model, whose range of trained noise levels is not left.

    Raises:
        ValueError: The model was not trained with a noise level above this one.
    """
    tau = model_sigma(sigma)
    trained_low, trained_high = denoiser.sigma_range
    if tau >= trained_high:
        raise ValueError(
            f"`sigma` must be below {pixel_sigma(trained_high):.4g} (pixel units), the largest noise that the "
            f"class-conditional network was trained with, got {sigma}."
        )
    low, high = max(0.5, 1.5 * tau, trained_low), min(max(9.0, 6 * tau), trained_high)
    if low >= high:
        low = math.sqrt(max(tau, trained_low) * high)
    return NoiseLevels.log_grid(low, high)


def known_levels(levels: NoiseLevels, sigma: float, denoiser: Denoiser) -> NoiseLevels:
    """The levels at which the class-conditional network is really used: one that knows whole training steps only has
    the nearest ones.

    Raises:
        ValueError: A level is not above the noise of the image, or beyond what the model was trained for.
    """
    tau = model_sigma(sigma)
    trained_low, trained_high = denoiser.sigma_range
    known = replace(levels, sigmas=tuple(denoiser.nearest_sigma(level) for level in levels.sigmas))
    lowest, highest = min(levels.sigmas + known.sigmas), max(levels.sigmas + known.sigmas)
    if lowest <= tau or lowest < trained_low or highest > trained_high:
        raise ValueError(
            f"`levels` must be above {tau:.4g} (model units), the noise that the image carries (2 * sigma), and "
            f"within the {trained_low:.4g} to {trained_high:.4g} that the model was trained for, got {lowest:.4g} to "
            f"{highest:.4g}."
        )
    return known


def check_calibration(levels: NoiseLevels, sigma: float, method: str) -> None:
    """Raise a `ValueError` if the levels were calibrated for another noise level of the images, or another method."""
    calibrated_sigma = sigma if levels.smoothing_sigma is None else levels.smoothing_sigma
    if not math.isclose(calibrated_sigma, sigma, rel_tol=SAME_SIGMA) or levels.method not in (None, method):
        raise ValueError(
            f"`levels` must be calibrated for sigma={sigma} and method={method!r}, got levels calibrated for "
            f"sigma={levels.smoothing_sigma} and method={levels.method!r}."
        )


def check_trained_sigma(sigma: float, denoiser: Denoiser, told: bool = True) -> None:
    """Raise a `ValueError` unless noise of an image is within what the model was trained for.

    Args:
        sigma: The noise, pixel units.
        denoiser: The model.
        told: Whether the unconditional denoiser is told of the noise. Otherwise the class-conditional network counts.
    """
    low, high = denoiser.unconditional_sigma_range if told else denoiser.sigma_range
    if not low <= model_sigma(sigma) < high:
        raise ValueError(
            f"`sigma` must be from {pixel_sigma(low):.4g} to {pixel_sigma(high):.4g} (pixel units), the noise that "
            f"the model was trained with, got {sigma}."
        )


def check_told_sigma(sigma: float, denoiser: Denoiser) -> None:
    """Raise a `ValueError` if the unconditional denoiser cannot be told truthfully of noise `sigma` (pixel units)."""
    nearest = pixel_sigma(denoiser.nearest_unconditional_sigma(model_sigma(sigma)))
    if not math.isclose(sigma, nearest, rel_tol=SAME_NOISE):
        raise ValueError(
            f"`sigma` must be the noise of a whole training step, such as {nearest:.6g} (pixel units), since this "
            f"model's unconditional denoiser has a learned time embedding, got {sigma}."
        )
