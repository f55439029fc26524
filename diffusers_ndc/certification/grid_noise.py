"""Gaussian noise on a grid, for proofs that floating point cannot break (Voracek & Hein 2022, arXiv:2207.07209).

A floating-point sum `x + e` betrays `x` in its low bits: a classifier can tell one image from another by them, however
much noise there is, and a certificate from such draws is false. The repair: the certified classifier is `f(round(z))`,
`round` to a grid on which all 8-bit images lie. With `x` on the grid, `round(x + e) = x + round(e)`: whole numbers
`k` are drawn with the law of `round(e)`, whatever `x` is, and `f` is called with a function of the grid point alone.
"""

import functools
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from ..common.checks import check_integer


EIGHT_BIT_STEPS = 255
"""Steps between black and white of an 8-bit image."""

MAX_GRID = 1024
"""Finest grid, in steps between two 8-bit values: whole steps of a float32 image stay exact up to there."""

MAX_GRID_SIGMA = 2**18
"""Largest standard deviation of the noise, in grid steps: the law of so many steps is tabulated."""

RELATIVE_ERROR = 1e-14
"""Generous bound on the relative error of `scipy.special.ndtr` in the lower tail."""


def check_grid(grid: int, sigma: float) -> None:
    """Refuse a `grid` that is no whole number of steps, too fine, or too fine for the noise."""
    check_integer("grid", grid, 1, MAX_GRID, "None, or a whole number of steps")
    if sigma * EIGHT_BIT_STEPS * grid > MAX_GRID_SIGMA:
        raise ValueError(
            f"`grid` is {grid} with sigma={sigma}; accepted for this noise are "
            f"{MAX_GRID_SIGMA / (EIGHT_BIT_STEPS * sigma):.4g} steps at most."
        )


@functools.lru_cache(maxsize=8)
def tails(sigma: float, grid: int) -> np.ndarray:
    """P[|k| >= 1], P[|k| >= 2], ... of the rounded noise as whole multiples of 2^-63, down to the last one above 0.

    Args:
        sigma: Standard deviation of the noise, pixel units.
        grid: Grid steps between two neighbouring values of an 8-bit image.

    Returns:
        Shape `(K,)`, uint64, falling.
    """
    step = 1 / (EIGHT_BIT_STEPS * grid)
    k = np.arange(1, int(10 * sigma / step) + 2)
    whole = np.rint(2 * ndtr(-(k - 0.5) * step / sigma) * 2.0**63).astype(np.uint64)
    return whole[whole > 0]


def slack(sigma: float, grid: int, pixels: int) -> float:
    """How far the drawn law of a whole image can be from the exact one, in total variation.

    No probability under the exact law differs by more from that under the law that is drawn from: it is subtracted
    from a lower bound. Each threshold is off by half of 2^-63, and by the error of the normal distribution's tail.

    Args:
        sigma: Standard deviation of the noise, pixel units.
        grid: Grid steps between two neighbouring values of an 8-bit image.
        pixels: Number of values of an image, C * H * W.
    """
    drawn = tails(sigma, grid)
    beyond = 2.0**-64  # of the tail that is cut off, less than half a step
    return pixels * (len(drawn) * 2.0**-64 + RELATIVE_ERROR * float(drawn.sum(dtype=np.float64)) * 2.0**-63 + beyond)


def grid_steps(shape: tuple[int, ...], seeds: Sequence[int], sigma: float, grid: int) -> np.ndarray:
    """Noise in whole grid steps, one array of this shape for each 63-bit seed: int64, shape `(N, *shape)`."""
    rising = tails(sigma, grid)[::-1]
    steps = np.empty((len(seeds), *shape), dtype=np.int64)
    for array, seed in zip(steps, seeds, strict=True):
        bits = np.random.default_rng(seed).integers(0, 2**64, shape, dtype=np.uint64)
        size = len(rising) - np.searchsorted(rising, bits >> np.uint64(1), side="right")  # tails above the number
        array[...] = np.where(bits & np.uint64(1), size, -size)
    return steps
