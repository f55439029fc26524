"""Counts of votes to bounds on probabilities, and bounds to radii: plain functions on scipy, free of torch."""

import math

from scipy import optimize, special, stats


def check_alpha(alpha: float) -> None:
    """Refuse an error probability outside (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` is {alpha}; accepted is an error probability strictly between 0 and 1.")


def clopper_pearson_lower(count: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound on a binomial probability.

    With probability at least `1 - alpha` over `count ~ Binomial(n, p)`, the result is at most `p`, whatever `p` is
    (Clopper & Pearson 1934; used for randomized smoothing by Cohen et al. 2019, Algorithm CERTIFY).

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of independent draws, fixed before the first one is made.
        alpha: Probability that the bound may be wrong.

    Raises:
        ValueError: `count` is not between 0 and `n`, `n` is below 1, or `alpha` is not in (0, 1).
    """
    _check_counts(count, n, alpha)
    return 0.0 if count == 0 else float(stats.beta.ppf(alpha, count, n - count + 1))


def mixture_log_evidence(count: int, n: int, p0: float) -> float:
    """Log evidence against "the probability is at most `p0`" after `count` successes in `n` draws.

    The likelihood ratio of q to `p0`, averaged over q uniform on (p0, 1]: for every true probability up to `p0` it is
    a non-negative supermartingale in n that starts at 1, so that, with probability at least `1 - alpha`, it stays
    below `1 / alpha` at all times at once (Ville's inequality; Waudby-Smith & Ramdas, arXiv:2010.09686; for smoothing
    Voracek 2024, arXiv:2406.17830). In closed form by the incomplete beta function, computed in logarithms.

    Args:
        count: Number of successes, 0 to `n`.
        n: Number of draws so far.
        p0: Probability that is tested, strictly between 0 and 1.
    """
    failures = n - count
    mixture = special.betaln(count + 1, failures + 1) + stats.beta.logsf(p0, count + 1, failures + 1)
    return float(mixture - math.log1p(-p0) - count * math.log(p0) - failures * math.log1p(-p0))


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
    # Up to p0 = count / (n + 1) the evidence falls strictly, as its derivative shows: there is one crossing at most,
    # and where there is none that far, that point itself is a valid bound.
    lowest, highest = 1e-12, count / (n + 1)

    def excess(p0):
        return mixture_log_evidence(count, n, p0) + math.log(alpha)

    if count == 0 or excess(lowest) <= 0:
        return 0.0
    if excess(highest) >= 0:
        return highest
    return float(optimize.brentq(excess, lowest, highest, xtol=1e-15, rtol=1e-14))


BOUNDS = {"clopper-pearson": clopper_pearson_lower, "mixture": mixture_lower}
"""Lower bounds on the candidate's probability by name; `mixture` may be looked at after every draw."""


def _check_counts(count: int, n: int, alpha: float) -> None:
    check_alpha(alpha)
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"`count` is {count} and `n` is {n}; accepted are 0 <= count <= n with n at least 1.")


def certified_radius(p_lower: float, sigma: float) -> float | None:
    """The l2 radius `sigma * Phi^-1(p_lower)` (Cohen et al. 2019, Theorem 1 with pB = 1 - pA).

    Args:
        p_lower: Lower bound on the probability of the winning class under the noise.
        sigma: Standard deviation of the noise; the radius has its units.

    Returns:
        The radius, or `None` (abstain) where the bound does not exceed 1/2.
    """
    return sigma * float(stats.norm.ppf(p_lower)) if p_lower > 0.5 else None


def majority_pvalue(top: int, runner_up: int) -> float:
    """Two-sided p-value of "the two leading classes are equally likely" (Cohen et al. 2019, Algorithm PREDICT).

    Args:
        top: Votes of the leading class, at least 0.
        runner_up: Votes of the second class; `top + runner_up` must be at least 1.
    """
    return float(stats.binomtest(top, top + runner_up, 0.5).pvalue)
