"""Gaussian noise on a grid, so that floating point cannot break a proof (Voracek & Hein 2022, arXiv:2207.07209).

A floating-point sum `x + e` reveals `x` in its low bits. A classifier can use them to tell one image from another,
however strong the noise is, and a certificate from such noisy copies is false. The remedy: the certified classifier is
`f(round(z))`, where `round` maps to a grid that contains all 8-bit images. With `x` on the grid,
`round(x + e) = x + round(e)`. So integers `k` are drawn from the distribution of `round(e)`, which does not depend on
`x`, and `f` is called with a function of the grid point alone.
"""

import functools
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from ..common.checks import check_integer


EIGHT_BIT_STEPS = 255
"""Steps between black and white of an 8-bit image."""

MAX_GRID = 1024
"""Finest grid, in steps between two 8-bit values. Up to there, multiples of a step are exact in float32."""

MAX_GRID_SIGMA = 2**18
"""Largest standard deviation of the noise, in grid steps: the table of its distribution must fit into memory."""

RELATIVE_ERROR = 1e-14
"""Generous bound on the relative error of `scipy.special.ndtr` in the lower tail."""


def check_grid(grid: int, sigma: float) -> None:
    """Raise a `ValueError` unless `grid` is a number of steps that is not too fine for the noise.

    Args:
        grid: Grid steps between two neighbouring values of an 8-bit image, from 1 to `MAX_GRID`.
        sigma: Standard deviation of the noise, pixel units.
    """
    check_integer("grid", grid, 1, MAX_GRID, "None, or an integer number of steps")
    if sigma * EIGHT_BIT_STEPS * grid > MAX_GRID_SIGMA:
        largest = MAX_GRID_SIGMA / (EIGHT_BIT_STEPS * sigma)
        raise ValueError(f"`grid` must be at most {largest:.4g} steps for sigma={sigma}, got {grid}.")


@functools.lru_cache(maxsize=8)
def tails(sigma: float, grid: int) -> np.ndarray:
    """P[|k| >= 1], P[|k| >= 2], ... of the rounded noise as integer multiples of 2^-63, down to the last one above 0.

    Args:
        sigma: Standard deviation of the noise, pixel units.
        grid: Grid steps between two neighbouring values of an 8-bit image.

    Returns:
        Shape `(K,)`, uint64, in descending order.
    """
    step = 1 / (EIGHT_BIT_STEPS * grid)
    k = np.arange(1, int(10 * sigma / step) + 2)
    multiples = np.rint(2 * ndtr(-(k - 0.5) * step / sigma) * 2.0**63).astype(np.uint64)
    return multiples[multiples > 0]


def slack(sigma: float, grid: int, pixels: int) -> float:
    """Bound on the total variation between the drawn and the exact distribution of the noise of a whole image.

    No probability under the exact distribution differs by more than this from the one under the distribution that the
    noise is drawn from; it is subtracted from a lower bound. Each threshold is off by half of 2^-63 at most, plus the
    error of the normal distribution's tail.

    Args:
        sigma: Standard deviation of the noise, pixel units.
        grid: Grid steps between two neighbouring values of an 8-bit image.
        pixels: Number of values of an image, C * H * W.
    """
    thresholds = tails(sigma, grid)
    rounding = len(thresholds) * 2.0**-64
    ndtr_error = RELATIVE_ERROR * float(thresholds.sum(dtype=np.float64)) * 2.0**-63
    cut_off = 2.0**-64  # the tail that is cut off, less than half a multiple
    return pixels * (rounding + ndtr_error + cut_off)


def grid_steps(shape: tuple[int, ...], seeds: Sequence[int], sigma: float, grid: int) -> np.ndarray:
    """Noise in integer grid steps, one array per seed.

    Args:
        shape: Shape of one array.
        seeds: One 63-bit seed per array; an array depends on its own seed only.
        sigma: Standard deviation of the noise, pixel units.
        grid: Grid steps between two neighbouring values of an 8-bit image.

    Returns:
        Shape `(N, *shape)`, int64.
    """
    ascending = tails(sigma, grid)[::-1]
    steps = np.empty((len(seeds), *shape), dtype=np.int64)
    for array, seed in zip(steps, seeds, strict=True):
        bits = np.random.default_rng(seed).integers(0, 2**64, shape, dtype=np.uint64)
        uniform, sign = bits >> np.uint64(1), bits & np.uint64(1)  # 63 bits in units of 2^-63, and the last bit
        size = len(ascending) - np.searchsorted(ascending, uniform, side="right")  # number of tails above `uniform`
        array[...] = np.where(sign, size, -size)
    return steps
