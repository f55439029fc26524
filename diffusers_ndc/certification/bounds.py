"""Confidence bounds on probabilities from counts of votes, and the certified radius from a bound. Free of torch."""

import math
import sys

from scipy import optimize, special, stats

from ..common.checks import check_number, plain_integer


MAX_N = 10**9
MIN_ALPHA = 1e-50
MIN_ALPHA_SHARE = 1e-60
"""Largest number of trials, smallest error probability, and smallest share of one that a single bound may get.

Within these limits `scipy.stats.beta.ppf` has a relative error below 1e-4 of the probability. With 10^14 trials, or at
an error probability of 1e-80, it may be wrong by orders of magnitude."""

PRIOR = 0.25
"""The mixture's prior is Beta(1, PRIOR). Most of its mass is near 1, where images with nearly unanimous votes are. It
is fixed before any trial."""

MIN_U = 0.03
"""Smallest `u` of the randomized bound. With `u` up to `alpha`, and all trials successes, the bound would be 1 and the
radius infinite: this minimum rules that out for every smaller `alpha`. For a larger `alpha` the bound may still be 1;
`certified_radius` keeps the radius finite."""


def check_alpha(alpha: float, minimum: float = MIN_ALPHA) -> float:
    """Return `alpha` as a float, or raise unless it is an error probability in (0, 1) large enough to compute with.

    Raises:
        TypeError: `alpha` is not a number.
        ValueError: `alpha` is not between `minimum` and 1.
    """
    expected = f"an error probability between 0 and 1, at least {minimum:g}"
    alpha = check_number("alpha", alpha, expected)
    if not minimum <= alpha < 1:
        raise ValueError(f"`alpha` must be {expected}, got {alpha}.")
    return alpha


def clopper_pearson_lower(count: int, n: int, alpha: float, u: float = 1.0) -> float:
    """One-sided Clopper-Pearson lower bound on a binomial probability, plain or randomized.

    With probability at least `1 - alpha` over `count ~ Binomial(n, p)`, the result is at most `p`, whatever `p` is
    (Clopper & Pearson 1934; used for randomized smoothing by Cohen et al. 2019, Algorithm CERTIFY).

    The randomized bound solves `P_p[X > count] + u * P_p[X = count] = alpha`. With `u` uniform on [0, 1], independent
    of the trials and drawn once, it is wrong with probability `alpha` exactly, and it is never below the plain bound
    (Voracek 2024, arXiv:2406.17830). A larger `u` gives a smaller, more careful bound; `u` is raised to at least
    `MIN_U`.

    The bound grows with `count`: trials that were planned but never made may be counted as failures.

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of independent trials, fixed before the first one is made.
        alpha: Probability that the bound may be wrong.
        u: Random number of the randomized bound; 1 gives the plain bound.

    Returns:
        The lower bound, a probability.

    Raises:
        TypeError: An argument is not a number, or `count` or `n` is not an integer.
        ValueError: `count` is not between 0 and `n`, `n` is not between 1 and `MAX_N`, or `alpha` is not in (0, 1).

    Example:
        >>> round(clopper_pearson_lower(990, 1000, alpha=0.001), 4)
        0.976
    """
    count, n, alpha = _check_counts(count, n, alpha)
    u = max(check_number("u", u, "a number from 0 to 1"), MIN_U)
    plain = 0.0 if count == 0 else float(stats.beta.ppf(alpha, count, n - count + 1))
    if u == 1:
        return plain
    if count == n:
        return min((alpha / u) ** (1 / n), 1.0)

    def excess(p):
        more_successes = special.betainc(count + 1, n - count, p)
        at_least_as_many = special.betainc(count, n - count + 1, p) if count > 0 else 1.0
        return (1 - u) * more_successes + u * at_least_as_many - alpha

    next_plain = float(stats.beta.ppf(alpha, count + 1, n - count))
    if excess(plain) >= 0 or plain == next_plain:
        return plain
    return float(optimize.brentq(excess, plain, next_plain))


def runner_up_lower(count: int, rival: int, n: int, alpha: float, num_classes: int, slack: float = 0.0) -> float:
    """Bound the winner from below and every other class from above, expressed as one equivalent probability.

    Clopper-Pearson bounds that hold jointly with probability at least `1 - alpha`: a lower one on the candidate's
    probability, pA, at `alpha / 2`, and an upper one on each of the others', pB for the largest, at `alpha / 2` split
    over them. The radius is then `sigma / 2 * (Phi^-1(pA) - Phi^-1(pB))` (Cohen et al. 2019, Theorem 1), or that of pA
    alone where it is larger. This pays off where the other votes are spread over several classes.

    Args:
        count: Votes of the candidate.
        rival: Most votes of any other class.
        n: Number of independent trials, fixed before the first one is made.
        alpha: Probability that the bounds may be wrong.
        num_classes: Number of classes, at least 2.
        slack: Largest difference between a probability under the intended distribution and under the one that the
            noise is drawn from; each bound is loosened by it.

    Returns:
        The probability `p` whose radius, `sigma * Phi^-1(p)`, is the radius above.

    Raises:
        TypeError, ValueError: `num_classes` is below 2, or `clopper_pearson_lower` does not accept an argument.
    """
    count, n, alpha = _check_counts(count, n, alpha)
    rival, num_classes = plain_integer("rival", rival), plain_integer("num_classes", num_classes)
    slack = check_number("slack", slack, "a difference of probabilities")
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2 for a bound on the runner-up, got {num_classes}.")
    lower = max(clopper_pearson_lower(count, n, alpha / 2) - slack, 0.0)
    upper = min(1 - clopper_pearson_lower(n - rival, n, alpha / (2 * (num_classes - 1))) + slack, 1.0)
    return max(lower, float(special.ndtr((special.ndtri(lower) - special.ndtri(upper)) / 2)))


def empirical_bernstein_lower(total: float, squares: float, n: int, alpha: float) -> float:
    """Lower bound on the mean of scores in [0, 1] from n of them (Maurer & Pontil 2009, arXiv:0907.3740, Theorem 4).

    With probability at least `1 - alpha`, the result is at most the mean. It is tight where the scores vary little.

    Args:
        total: Sum of the scores.
        squares: Sum of their squares.
        n: Number of independent scores, fixed before the first one is made. With fewer than 2 the bound is 0.
        alpha: Probability that the bound may be wrong.

    Returns:
        The lower bound, in [0, 1].

    Raises:
        TypeError, ValueError: An argument is of another type, or `alpha` is not in (0, 1).
    """
    alpha, n = check_alpha(alpha, MIN_ALPHA_SHARE), plain_integer("n", n)
    total = check_number("total", total, "a sum of scores")
    squares = check_number("squares", squares, "a sum of squares of scores")
    if n < 2:
        return 0.0
    variance = max(squares - total**2 / n, 0.0) / (n - 1)
    log_term = math.log(2 / alpha)
    return max(0.0, total / n - math.sqrt(2 * variance * log_term / n) - 7 * log_term / (3 * (n - 1)))


def are_sums_of_scores(total: float, squares: float, n: int) -> bool:
    """Whether `n` scores in [0, 1] can have this sum and this sum of squares, up to round-off. NaN gives `False`.

    No square exceeds its score, and the variance of the scores is not negative.
    """
    return 0 <= squares <= total <= n and total**2 <= squares * n * (1 + 1e-9)


def mixture_log_evidence(count: int, n: int, p0: float) -> float:
    """Log evidence against "the probability is at most `p0`" after `count` successes in `n` trials.

    The likelihood ratio of q to `p0`, averaged over q from Beta(1, `PRIOR`) restricted to (p0, 1]. For every true
    probability up to `p0` it is a non-negative supermartingale in n that starts at 1, so that, with probability at
    least `1 - alpha`, it stays below `1 / alpha` at all times at once (Ville's inequality; Waudby-Smith & Ramdas,
    arXiv:2010.09686; for smoothing Voracek 2024, arXiv:2406.17830). It has a closed form by the incomplete beta
    function, computed here in logarithms.

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of trials so far.
        p0: Probability that is tested, strictly between 0 and 1.
    """
    p0 = check_number("p0", p0, "a probability between 0 and 1")
    return _mixture_log_evidence(plain_integer("count", count), plain_integer("n", n), p0)


def _mixture_log_evidence(count: int, n: int, p0: float) -> float:
    failures, log_q0 = n - count, math.log1p(-p0)
    tail = float(special.betaincc(count + 1, failures + PRIOR, p0))
    if tail == 0:
        return -math.inf  # the trials speak for a probability far below p0
    joint = float(special.betaln(count + 1, failures + PRIOR)) + math.log(tail)
    restricted_prior = -math.log(PRIOR) + PRIOR * log_q0
    return joint - restricted_prior - count * math.log(p0) - failures * log_q0


def mixture_lower(count: int, n: int, alpha: float) -> float:
    """Lower bound on a binomial probability that holds at all numbers of trials at once, and so at any stopping time.

    With probability at least `1 - alpha`, the bounds after 1, 2, 3, ... trials are all at most the true probability:
    the trials may be watched, and stopped by any rule that looks at them. The bound is the smallest `p0` against which
    `mixture_log_evidence` is below `log(1 / alpha)`.

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of independent trials so far.
        alpha: Probability that any one of the bounds may be wrong.

    Returns:
        The lower bound, a probability.

    Raises:
        TypeError: An argument is not a number, or `count` or `n` is not an integer.
        ValueError: `count` is not between 0 and `n`, `n` is not between 1 and `MAX_N`, or `alpha` is not in (0, 1).

    Example:
        >>> round(mixture_lower(990, 1000, alpha=0.001), 4)
        0.9706
    """
    count, n, alpha = _check_counts(count, n, alpha)
    # Up to p0 = count / (n + PRIOR) the evidence falls strictly, as its derivative shows. So there is at most one
    # crossing in this range, and if the evidence never falls that low, the end of the range is itself a valid bound.
    lowest, highest = 1e-12, count / (n + PRIOR)

    def excess(p0):
        return _mixture_log_evidence(count, n, p0) + math.log(alpha)

    if count == 0 or excess(lowest) <= 0:
        return 0.0
    if excess(highest) >= 0:
        return highest
    return float(optimize.brentq(excess, lowest, highest, xtol=1e-15, rtol=1e-14))


def _check_counts(count: int, n: int, alpha: float) -> tuple[int, int, float]:
    alpha = check_alpha(alpha, MIN_ALPHA_SHARE)
    count, n = plain_integer("count", count), plain_integer("n", n)
    if not 1 <= n <= MAX_N:
        raise ValueError(f"`n` must be from 1 to {MAX_N:,}, got {n}.")
    if not 0 <= count <= n:
        raise ValueError(f"`count` must be from 0 to `n` ({n}), got {count}.")
    return count, n, alpha


def certified_radius(p_lower: float, sigma: float) -> float | None:
    """The l2 radius `sigma * Phi^-1(p_lower)` (Cohen et al. 2019, Theorem 1 with pB = 1 - pA).

    Args:
        p_lower: Lower bound on the probability of the winning class under the noise.
        sigma: Standard deviation of the noise.

    Returns:
        The radius in the units of `sigma`, always finite, or `None` (abstain) if the bound does not exceed 1/2.

    Example:
        >>> round(certified_radius(0.9, sigma=0.25), 4)
        0.3204
    """
    p_lower = check_number("p_lower", p_lower, "a lower bound on a probability")
    sigma = check_number("sigma", sigma, "a noise level")
    if not p_lower > 0.5:
        return None
    # A bound that was rounded up to 1 does not prove an infinite radius, and neither does an overflow.
    radius = sigma * float(stats.norm.ppf(min(p_lower, math.nextafter(1, 0))))
    return min(radius, sys.float_info.max)


def majority_pvalue(top: int, runner_up: int) -> float:
    """Two-sided p-value of "the two leading classes are equally likely" (Cohen et al. 2019, Algorithm PREDICT).

    Args:
        top: Votes of the leading class, at least 0.
        runner_up: Votes of the second class; `top + runner_up` must be at least 1.
    """
    top, runner_up = plain_integer("top", top), plain_integer("runner_up", runner_up)
    return float(stats.binomtest(top, top + runner_up, 0.5).pvalue)
