"""Counts of votes to bounds on probabilities, and bounds to radii: plain functions on scipy, free of torch."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from scipy import optimize, special, stats

from ..common.checks import check_number


Value = TypeVar("Value")

MAX_N = 10**9
LEAST_ALPHA, LEAST_SHARE = 1e-50, 1e-60
"""Up to so many draws, and down to such error probabilities (of which bounds take shares), `scipy.stats.beta.ppf` is
right to a relative error below 1e-4 of the probability; with 10^14 draws, or at 1e-80, it may be off by all orders."""


def check_alpha(alpha: float, least: float = LEAST_ALPHA) -> None:
    """Refuse an error probability outside (0, 1), or too small to compute with."""
    accepted = f"an error probability between 0 and 1, {least:g} or more"
    check_number("alpha", alpha, accepted)
    if not least <= alpha < 1:
        raise ValueError(f"`alpha` is {alpha}; accepted is {accepted}.")


PRIOR = 0.25
"""The mixture's prior is Beta(1, PRIOR): mass near 1, where the draws of a sure image are; fixed before any draw."""

LEAST_U = 0.03
"""Smallest `u` of the randomized bound: with one below `alpha` it may be 1, an infinite radius. For an `alpha` above
this it still may be, as rarely as it must; `certified_radius` keeps the radius finite."""


def clopper_pearson_lower(count: int, n: int, alpha: float, u: float = 1.0) -> float:
    """One-sided Clopper-Pearson lower bound on a binomial probability, plain or randomized.

    With probability at least `1 - alpha` over `count ~ Binomial(n, p)`, the result is at most `p`, whatever `p` is
    (Clopper & Pearson 1934; used for randomized smoothing by Cohen et al. 2019, Algorithm CERTIFY). Randomized, it
    solves `P_p[X > count] + u * P_p[X = count] = alpha`: with `u` uniform on [0, 1], independent of the draws and
    drawn once, it is wrong with probability `alpha` exactly, and never below the plain one (Voracek 2024,
    arXiv:2406.17830). A larger `u` is more careful; it is taken as at least `LEAST_U`.

    The bound grows with `count`: draws that were never made may be counted as failures.

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of independent draws, fixed before the first one is made.
        alpha: Probability that the bound may be wrong.
        u: 1 for the plain bound.

    Raises:
        ValueError: `count` is not between 0 and `n`, `n` is below 1, or `alpha` is not in (0, 1).
    """
    _check_counts(count, n, alpha)
    u = max(u, LEAST_U)
    plain = 0.0 if count == 0 else float(stats.beta.ppf(alpha, count, n - count + 1))
    if u == 1:
        return plain
    if count == n:
        return min((alpha / u) ** (1 / n), 1.0)

    def excess(p):
        more = special.betainc(count + 1, n - count, p)
        as_many = special.betainc(count, n - count + 1, p) if count else 1.0
        return (1 - u) * more + u * as_many - alpha

    highest = float(stats.beta.ppf(alpha, count + 1, n - count))
    return plain if excess(plain) >= 0 or plain == highest else float(optimize.brentq(excess, plain, highest))


def runner_up_lower(count: int, rival: int, n: int, alpha: float, num_classes: int, slack: float = 0.0) -> float:
    """The probability that alone gives the radius of a bound on the winner *and* one on every other class.

    Two Clopper-Pearson bounds hold jointly with probability at least `1 - alpha`: a lower one on the candidate's
    probability, pA, at `alpha / 2`, and an upper one on each of the others', pB for the largest, at `alpha / 2` split
    over them. The radius is then `sigma / 2 * (Phi^-1(pA) - Phi^-1(pB))` (Cohen et al. 2019, Theorem 1), or that of pA
    alone where it is larger. It pays where the other votes are spread over several classes.

    Args:
        count: Votes of the candidate.
        rival: Most votes of any other class.
        n: Number of independent draws, fixed before the first one is made.
        alpha: Probability that the bounds may be wrong.
        num_classes: Number of classes, at least 2.
        slack: How far probabilities may be from those of the law that was drawn from; both bounds move by it.

    Raises:
        ValueError: There are fewer classes, or an argument is none that `clopper_pearson_lower` takes.
    """
    if num_classes < 2:
        raise ValueError(f"`num_classes` is {num_classes}; accepted for a bound on the runner-up are 2 or more.")
    lower = max(clopper_pearson_lower(count, n, alpha / 2) - slack, 0.0)
    upper = min(1 - clopper_pearson_lower(n - rival, n, alpha / (2 * (num_classes - 1))) + slack, 1.0)
    return max(lower, float(special.ndtr((special.ndtri(lower) - special.ndtri(upper)) / 2)))


def empirical_bernstein_lower(total: float, squares: float, n: int, alpha: float) -> float:
    """Lower bound on the mean of scores in [0, 1] from n of them (Maurer & Pontil 2009, arXiv:0907.3740, Theorem 4).

    With probability at least `1 - alpha`, the result is at most the mean. It is tight where the scores vary little.

    Args:
        total: Sum of the scores.
        squares: Sum of their squares.
        n: Number of independent draws, at least 2, fixed before the first one is made.
        alpha: Probability that the bound may be wrong.
    """
    check_alpha(alpha, LEAST_SHARE)
    if n < 2:
        return 0.0
    variance = max(squares - total**2 / n, 0.0) / (n - 1)
    log_term = math.log(2 / alpha)
    return max(0.0, total / n - math.sqrt(2 * variance * log_term / n) - 7 * log_term / (3 * (n - 1)))


def are_sums_of_scores(total: float, squares: float, n: int) -> bool:
    """Whether `n` scores in [0, 1] can have this sum and sum of squares: squares are smaller, and there is a variance.

    Up to round-off; NaN is none.
    """
    return 0 <= squares <= total <= n and total**2 <= squares * n * (1 + 1e-9)


def mixture_log_evidence(count: int, n: int, p0: float) -> float:
    """Log evidence against "the probability is at most `p0`" after `count` successes in `n` draws.

    The likelihood ratio of q to `p0`, averaged over q from Beta(1, `PRIOR`) restricted to (p0, 1]: for every true
    probability up to `p0` it is a non-negative supermartingale in n that starts at 1, so that, with probability at
    least `1 - alpha`, it stays below `1 / alpha` at all times at once (Ville's inequality; Waudby-Smith & Ramdas,
    arXiv:2010.09686; for smoothing Voracek 2024, arXiv:2406.17830). In closed form by the incomplete beta function,
    computed in logarithms.

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of draws so far.
        p0: Probability that is tested, strictly between 0 and 1.
    """
    failures, log_q0 = n - count, math.log1p(-p0)
    tail = float(special.betaincc(count + 1, failures + PRIOR, p0))
    if tail == 0:
        return -math.inf  # the draws speak for a probability far below p0
    joint = float(special.betaln(count + 1, failures + PRIOR)) + math.log(tail)
    restricted_prior = -math.log(PRIOR) + PRIOR * log_q0
    return joint - restricted_prior - count * math.log(p0) - failures * log_q0


def mixture_lower(count: int, n: int, alpha: float) -> float:
    """Lower bound on a binomial probability that holds at all numbers of draws at once, and so wherever one stops.

    With probability at least `1 - alpha`, the bounds after 1, 2, 3, ... draws are all at most the true probability:
    the draws may be watched, and stopped by any rule that looks at them. It is the smallest `p0` against which
    `mixture_log_evidence` is below `log(1 / alpha)`.

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of independent draws so far.
        alpha: Probability that one of the bounds may be wrong.

    Raises:
        ValueError: `count` is not between 0 and `n`, `n` is below 1, or `alpha` is not in (0, 1).
    """
    _check_counts(count, n, alpha)
    # Up to p0 = count / (n + PRIOR) the evidence falls strictly, as its derivative shows: there is one crossing at
    # most, and where there is none that far, that point itself is a valid bound.
    lowest, highest = 1e-12, count / (n + PRIOR)

    def excess(p0):
        return mixture_log_evidence(count, n, p0) + math.log(alpha)

    if count == 0 or excess(lowest) <= 0:
        return 0.0
    if excess(highest) >= 0:
        return highest
    return float(optimize.brentq(excess, lowest, highest, xtol=1e-15, rtol=1e-14))


@dataclass(frozen=True)
class Tally:
    """What a bound may rest on.

    Args:
        count: Votes of the candidate.
        n: Number of draws: so far (`mixture`), else as fixed beforehand.
        rival: Most votes of any other class.
        num_classes: Number of classes, or `None` if it is not known.
        u: Uniform random number of the randomized bound, or `None` if there is none.
        score_sum: Sum of the candidate's soft votes, probabilities in [0, 1], or `None` if there are none.
        score_squares: Sum of their squares, likewise.
        slack: How far probabilities may be from those of the law that was drawn from (`grid_noise.slack`).
    """

    count: int
    n: int
    rival: int = 0
    num_classes: int | None = None
    u: float | None = 1.0
    score_sum: float | None = None
    score_squares: float | None = None
    slack: float = 0.0


def given(name: str, value: Value | None) -> Value:
    """A value that a bound rests on, which must be there."""
    if value is None:
        raise ValueError(f"`{name}` is None; accepted is its value, on which the bound rests.")
    return value


BOUNDS: dict[str, Callable[[Tally, float], float]] = {
    "clopper-pearson": lambda t, alpha: clopper_pearson_lower(t.count, t.n, alpha) - t.slack,
    "randomized-clopper-pearson": lambda t, alpha: (
        clopper_pearson_lower(t.count, t.n, alpha, given("u", t.u)) - t.slack
    ),
    "runner-up": lambda t, alpha: runner_up_lower(
        t.count, t.rival, t.n, alpha, given("num_classes", t.num_classes), t.slack
    ),
    "empirical-bernstein": lambda t, alpha: (
        empirical_bernstein_lower(given("score_sum", t.score_sum), given("score_squares", t.score_squares), t.n, alpha)
        - t.slack
    ),
    "mixture": lambda t, alpha: mixture_lower(t.count, t.n, alpha) - t.slack,
}
"""Lower bounds on the candidate's probability (its mean score for `empirical-bernstein`), by name, of a `Tally`.

That of `runner-up` is the probability that alone would give its radius, which may be above the candidate's own."""

ANYTIME = frozenset({"mixture"})
"""Bounds that may be looked at after every draw; the others hold for one look at a number fixed beforehand."""

CURTAILED = frozenset({"clopper-pearson", "randomized-clopper-pearson"})
"""Bounds of a fixed number of draws that count those never made as failures, so that a run may be cut short."""

SOFT = frozenset({"empirical-bernstein"})
"""Bounds on the mean of soft votes."""


def _check_counts(count: int, n: int, alpha: float) -> None:
    check_alpha(alpha, LEAST_SHARE)
    if not 1 <= n <= MAX_N or not 0 <= count <= n:
        raise ValueError(
            f"`count` is {count} and `n` is {n}; accepted are 0 <= count <= n with n from 1 to {MAX_N:,}."
        )


def certified_radius(p_lower: float, sigma: float) -> float | None:
    """The l2 radius `sigma * Phi^-1(p_lower)` (Cohen et al. 2019, Theorem 1 with pB = 1 - pA).

    Args:
        p_lower: Lower bound on the probability of the winning class under the noise.
        sigma: Standard deviation of the noise; the radius has its units.

    Returns:
        The radius, or `None` (abstain) where the bound does not exceed 1/2.
    """
    if not p_lower > 0.5:
        return None
    # a bound that was rounded up to 1 proves no infinite radius, nor does an overflow
    radius = sigma * float(stats.norm.ppf(min(p_lower, math.nextafter(1, 0))))
    return min(radius, sys.float_info.max)


def majority_pvalue(top: int, runner_up: int) -> float:
    """Two-sided p-value of "the two leading classes are equally likely" (Cohen et al. 2019, Algorithm PREDICT).

    Args:
        top: Votes of the leading class, at least 0.
        runner_up: Votes of the second class; `top + runner_up` must be at least 1.
    """
    return float(stats.binomtest(top, top + runner_up, 0.5).pvalue)
