"""The bounds by their names, and what each of them holds for. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .bounds import clopper_pearson_lower, empirical_bernstein_lower, mixture_lower, runner_up_lower


Value = TypeVar("Value")


@dataclass(frozen=True)
class Tally:
    """The numbers that a bound may use.

    Args:
        count: Votes of the candidate.
        n: Number of noisy copies: those classified so far for `mixture`, the number fixed beforehand for the others.
        rival: Most votes of any other class.
        num_classes: Number of classes, or `None` if unknown.
        u: Uniform random number of the randomized bound, or `None`.
        score_sum: Sum of the candidate's soft votes, probabilities in [0, 1], or `None`.
        score_squares: Sum of their squares, or `None`.
        slack: Largest difference between a probability under the intended distribution of the noise and under the one
            that it is drawn from (`grid_noise.slack`).
    """

    count: int
    n: int
    rival: int = 0
    num_classes: int | None = None
    u: float | None = 1.0
    score_sum: float | None = None
    score_squares: float | None = None
    slack: float = 0.0


def required(name: str, value: Value | None) -> Value:
    """Return `value`, or raise a `ValueError` if it is `None`: a bound cannot be computed without it."""
    if value is None:
        raise ValueError(f"`{name}` must be a number that the bound is computed from, got None.")
    return value


def _clopper_pearson(tally: Tally, alpha: float) -> float:
    return clopper_pearson_lower(tally.count, tally.n, alpha) - tally.slack


def _randomized_clopper_pearson(tally: Tally, alpha: float) -> float:
    u = required("u", tally.u)
    return clopper_pearson_lower(tally.count, tally.n, alpha, u) - tally.slack


def _runner_up(tally: Tally, alpha: float) -> float:
    num_classes = required("num_classes", tally.num_classes)
    return runner_up_lower(tally.count, tally.rival, tally.n, alpha, num_classes, tally.slack)


def _empirical_bernstein(tally: Tally, alpha: float) -> float:
    total = required("score_sum", tally.score_sum)
    squares = required("score_squares", tally.score_squares)
    return empirical_bernstein_lower(total, squares, tally.n, alpha) - tally.slack


def _mixture(tally: Tally, alpha: float) -> float:
    return mixture_lower(tally.count, tally.n, alpha) - tally.slack


BOUNDS: dict[str, Callable[[Tally, float], float]] = {
    "clopper-pearson": _clopper_pearson,
    "randomized-clopper-pearson": _randomized_clopper_pearson,
    "runner-up": _runner_up,
    "empirical-bernstein": _empirical_bernstein,
    "mixture": _mixture,
}
"""Lower bounds on the candidate's probability by name, each a function of a `Tally` and `alpha`.

`empirical-bernstein` bounds the candidate's mean score. `runner-up` gives the probability that alone would give its
radius, which may be above the candidate's own."""

ANYTIME = frozenset({"mixture"})
"""Bounds that hold at all numbers of copies at once. The others hold for one look at a number fixed beforehand."""

CURTAILED = frozenset({"clopper-pearson", "randomized-clopper-pearson"})
"""Bounds for a fixed number of copies that may be cut short: copies that were never made count as failures."""

SOFT = frozenset({"empirical-bernstein"})
"""Bounds on the mean of soft votes."""


def default_bound(stops_early: bool) -> str:
    """Name of the bound that a run takes if none is asked for: an anytime one if it may stop early."""
    return "mixture" if stops_early else "clopper-pearson"
