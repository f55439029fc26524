"""Counts of votes to bounds on probabilities, and bounds to radii: plain functions on scipy, free of torch."""

from scipy import stats


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
    check_alpha(alpha)
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"`count` is {count} and `n` is {n}; accepted are 0 <= count <= n with n at least 1.")
    return 0.0 if count == 0 else float(stats.beta.ppf(alpha, count, n - count + 1))


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
