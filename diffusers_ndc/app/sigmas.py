"""The noise for a radius: a small one is fastest and most accurate, but proves no large radius."""

from collections.abc import Sequence

from ..certification.stopping import largest_provable
from ..pipelines.loading import Pipeline
from .limits import ALPHA, SIGMAS


USUAL = (0.12, 0.25, 0.5, 1.0)
"""Sigmas of a model that was calibrated for none, pixel units."""

ROOM = 0.8
"""Largest share of what a sigma can prove with unanimous votes that is asked of it: votes are seldom unanimous."""


def usable_sigmas(pipe: Pipeline) -> list[float]:
    """The noise levels that a model was calibrated for, ascending; else usual ones that it can be used with."""
    method = "dds" if "vae" in pipe.components else "apndc"
    levels = pipe.config.levels or {}
    sigmas = sorted(float(key) for key, methods in levels.items() if method in methods and float(key) > 0)
    return [sigma for sigma in sigmas or USUAL if SIGMAS[0] <= sigma <= SIGMAS[1] and _works(pipe, sigma)]


def _works(pipe: Pipeline, sigma: float) -> bool:
    try:
        pipe.classifier(sigma)
    except ValueError:  # noise that the model was not trained for
        return False
    return True


def sigma_for(radius: float, sigmas: Sequence[float], copies: int) -> float:
    """The smallest noise that can prove a radius with room to spare (`ROOM`), or the largest if none can.

    It depends on the radius and the number of copies alone, not on a vote. So a certificate with this noise is false
    with a probability of at most alpha, as if the noise had been given.

    Args:
        radius: l2 radius, pixel units.
        sigmas: Noise levels to choose from, pixel units, ascending.
        copies: Number of noisy copies that vote, at most.
    """
    for sigma in sigmas:
        if radius <= ROOM * largest(sigma, copies):
            return sigma
    return sigmas[-1]


def largest(sigma: float, copies: int) -> float:
    """The radius that unanimous votes would prove."""
    return largest_provable(sigma, ALPHA, "mixture", copies)
