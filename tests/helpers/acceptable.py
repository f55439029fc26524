"""What the documentation accepts for an argument, written down apart from the code that checks it.

A rule is a function of a value: `True` where the value must be accepted (beside other acceptable arguments), `False`
where it must be refused, `None` where the documentation leaves it open.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from diffusers_ndc import NoiseLevels
from diffusers_ndc.certification.bound_names import BOUNDS
from diffusers_ndc.certification.bounds import MAX_N, mixture_lower


Rule = Callable[[Any], bool | None]

MAX_SEED = 2**63 - 1
MAX_BATCH = 2**31 - 1
MAX_LEVELS = 100_000
LEAST_ALPHA = 1e-50

STOPPING_BOUNDS = ("mixture", "clopper-pearson", "randomized-clopper-pearson")
"""Bounds under which a run may stop early or do without a selection of the candidate."""


def is_number(value: object) -> bool:
    """Whether this is a real number, of Python or numpy, within the range of floats; booleans are none."""
    if isinstance(value, (bool, np.bool)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return not isinstance(value, int) or abs(value) <= sys.float_info.max


def integer(low: int, high: float) -> Rule:
    """Integers of Python from `low` to `high`; booleans and other types that act as integers are none."""
    return lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float = math.inf, open_low: bool = False, closed_high: bool = False) -> Rule:
    """Numbers from `low` (above it, if `open_low`) to below `high` (up to it, if `closed_high`)."""

    def rule(value):
        if not is_number(value):
            return False
        above = low < value if open_low else low <= value
        return bool(above and (value <= high if closed_high else value < high))

    return rule


def optional(rule: Rule) -> Rule:
    """`None`, or what `rule` accepts."""
    return lambda value: True if value is None else rule(value)


def one_of(*names: str) -> Rule:
    """One of these strings."""
    return lambda value: isinstance(value, str) and value in names


def instance(*kinds: type) -> Rule:
    """An instance of one of these classes."""
    return lambda value: isinstance(value, kinds)


def only(*values: object) -> Rule:
    """One of these very objects."""
    return lambda value: any(value is accepted for accepted in values)


def function(value: object) -> bool:
    """Anything that can be called."""
    return callable(value)


SIGMA = number(0)
NOISE = number(0, open_low=True)
ALPHA = number(LEAST_ALPHA, 1)
SEED = integer(0, MAX_SEED)


def BATCH_SIZE(value):
    return value == "auto" if isinstance(value, str) else integer(1, MAX_BATCH)(value)


CALLBACK = optional(function)
COUNT, POSITIVE_COUNT = integer(0, MAX_N), integer(1, MAX_N)
GRID = optional(integer(1, 1024))
GENERATOR = optional(instance(torch.Generator))
NOISE_LEVELS = optional(instance(NoiseLevels))
BOUND = optional(one_of(*BOUNDS))


def numbers_of(values: object) -> list | None:
    """The values of a list, tuple, range, array or tensor, as plain values; `None` where it is none of them."""
    if isinstance(values, torch.Tensor):
        values = None if values.is_meta else values.numpy()
    if isinstance(values, np.ndarray):
        return values.tolist() if values.ndim else None
    return list(values) if isinstance(values, (list, tuple, range)) else None


def sequence(check: Callable[[list], bool]) -> Rule:
    """Sequences of numbers that `check` accepts; whether a set will do is left open."""

    def rule(values):
        plain = numbers_of(values)
        if plain is not None:
            return all(map(is_number, plain)) and check(plain)
        return None if isinstance(values, (set, frozenset)) else False

    return rule


def _are_radii(values: list) -> bool:
    ascending = all(a < b for a, b in zip(values, values[1:], strict=False))
    return bool(values) and ascending and 0 <= values[0] and values[-1] < math.inf


RADII = optional(sequence(_are_radii))


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(*shape: int | None) -> Rule:
    """Dense floating-point tensors with values, of this shape (`None`: any length of at least 1)."""

    def rule(value):
        if not isinstance(value, torch.Tensor) or value.dtype not in FLOATS or value.is_meta or value.is_nested:
            return False
        if value.layout != torch.strided or value.ndim != len(shape) or not value.numel():
            return False
        return all(wanted in (None, side) for side, wanted in zip(value.shape, shape, strict=True))

    return rule


def clean(*shape: int | None) -> Rule:
    """Floating-point tensors of this shape with values in [0, 1]."""
    rule = tensor(*shape)
    return lambda value: rule(value) and bool(value.min() >= 0 and value.max() <= 1)


def seeds(count: int) -> Rule:
    """`None`, or a sequence of one seed per image."""

    def rule(values):
        if values is None:
            return True
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
            return False
        return len(values) == count and all(SEED(value) for value in values)

    return rule


def largest_radius(bound: str, n: int, alpha: float, sigma: float) -> float:
    """The radius that `n` votes prove if all agree, -1 where they prove not even the label."""
    lower = mixture_lower(n, n, alpha) if bound == "mixture" else alpha ** (1 / n)
    return sigma * stats.norm.ppf(lower) if lower > 0.5 else -1.0


def settings_fit(arguments: dict, num_classes: int) -> bool | None:
    """Whether settings of CERTIFY that are acceptable one by one go together.

    Args:
        arguments: With `sigma`, `n0`, `n`, `alpha`, `radii`, `resolution`, `bound`, `grid` and `max_evaluations`, as
            for `certify`.
        num_classes: Number of classes, as far as it is known before the first vote.
    """
    radii, resolution, sigma = arguments["radii"], arguments["resolution"], arguments["sigma"]
    stops = radii is not None or resolution is not None or arguments["max_evaluations"] is not None
    if radii is not None and resolution is not None:
        return False
    if not grid_fits(arguments["grid"], sigma):
        return False
    n0 = arguments["n0"]
    bound = arguments["bound"] or ("mixture" if stops else "clopper-pearson")
    if (stops or n0 == 0) and bound not in STOPPING_BOUNDS:
        return False
    if radii is None:
        return True
    share = arguments["alpha"] / num_classes if n0 == 0 else arguments["alpha"]
    largest, last = largest_radius(bound, arguments["n"], share, sigma), numbers_of(radii)[-1]
    return None if math.isclose(last, largest, rel_tol=1e-6) else last < largest


def grid_fits(grid: int | None, sigma: float) -> bool:
    """Whether the noise is at most 2^18 steps of the grid."""
    return grid is None or float(sigma) * 255 * grid <= 2**18  # NumPy's small types overflow
