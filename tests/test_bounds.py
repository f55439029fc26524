import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.bounds import (
    certified_radius,
    clopper_pearson_lower,
    majority_pvalue,
    mixture_log_evidence,
    mixture_lower,
)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 20, 500])
@pytest.mark.parametrize("alpha", [0.2, 0.01, 1e-9])
def test_clopper_pearson_covers_at_its_rate(p, n, alpha):
    """The exact chance that the bound exceeds p, over all counts, is at most alpha, and simulated counts agree."""
    counts = np.arange(n + 1)
    too_high = np.array([clopper_pearson_lower(int(count), n, alpha) > p for count in counts])
    exact = stats.binom.pmf(counts, n, p)[too_high].sum()
    assert exact <= alpha
    simulated = too_high[np.random.default_rng(0).binomial(n, p, size=20_000)].mean()
    assert simulated == pytest.approx(exact, abs=5 * np.sqrt(alpha / 20_000))


def test_clopper_pearson_is_not_looser_than_it_must_be():
    """At p equal to the bound of k, the chance of k or more successes is exactly alpha."""
    for k, n, alpha in [(1, 10, 0.001), (95, 100, 0.001), (100, 100, 0.001), (9_990, 10_000, 1e-9)]:
        assert stats.binom.sf(k - 1, n, clopper_pearson_lower(k, n, alpha)) == pytest.approx(alpha, rel=1e-6)


def test_clopper_pearson_at_the_ends():
    assert clopper_pearson_lower(0, 100, 0.001) == 0
    assert clopper_pearson_lower(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100))
    assert clopper_pearson_lower(1_000, 1_000, 1e-9) == pytest.approx(1e-9 ** (1 / 1_000))


@pytest.mark.parametrize("p0", [0.3, 0.84, 0.999])
@pytest.mark.parametrize("n", [1, 7, 400])
def test_mixture_evidence_is_a_martingale(p0, n):
    """Its mean under p0 is 1 after any number of draws, and below 1 under any smaller probability."""
    evidence = np.exp([mixture_log_evidence(count, n, p0) for count in range(n + 1)])
    assert (stats.binom.pmf(np.arange(n + 1), n, p0) * evidence).sum() == pytest.approx(1)
    assert (stats.binom.pmf(np.arange(n + 1), n, 0.9 * p0) * evidence).sum() < 1


def test_mixture_bounds_hold_at_all_times_at_once():
    """Of simulated runs that are watched all the way, at most alpha ever show a bound above the true probability."""
    p, n, alpha, runs = 0.9, 300, 0.05, 4_000
    counts = (np.random.default_rng(0).random((runs, n)) < p).cumsum(axis=1)
    wrong = np.zeros(runs, dtype=bool)
    for draws in range(1, n + 1):
        too_high = [mixture_log_evidence(count, draws, p) >= np.log(1 / alpha) for count in range(draws + 1)]
        wrong |= np.array(too_high)[counts[:, draws - 1]]
    assert 0 < wrong.mean() <= alpha


def test_mixture_lower_is_where_the_evidence_crosses():
    for count, n, alpha in [(8, 10, 0.05), (99, 100, 0.001), (100, 100, 0.001), (9_990, 10_000, 1e-9)]:
        bound = mixture_lower(count, n, alpha)
        assert mixture_log_evidence(count, n, bound) == pytest.approx(np.log(1 / alpha), rel=1e-6)
        assert bound < clopper_pearson_lower(count, n, alpha), "looking at all times cannot be free"
    assert mixture_lower(0, 100, 0.001) == 0
    assert mixture_lower(1, 1, 1e-9) < 0.01


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.6, 0.99])
def test_mixture_lower_is_below_all_that_is_not_refuted(alpha):
    """No p0 under the bound has evidence below log(1 / alpha), on a fine grid: there is no earlier crossing."""
    for n in (1, 5, 40, 300):
        for count in range(0, n + 1, max(1, n // 7)):
            bound = mixture_lower(count, n, alpha)
            below = np.linspace(1e-9, bound, 400, endpoint=False)[1:] if bound > 1e-6 else []
            assert all(mixture_log_evidence(count, n, p0) >= np.log(1 / alpha) - 1e-9 for p0 in below)


def test_mixture_bound_is_stable_for_large_counts():
    n = 10_000_000
    for count in (n, n - 1, 9_900_000, 5_000_100, 17):
        bound, reference = mixture_lower(count, n, 0.001), clopper_pearson_lower(count, n, 0.001)
        assert 0 < bound < reference
        spread = np.sqrt(reference * (1 - reference) / n)
        assert reference - bound < 3 * spread + 3e-6


def test_mixture_bound_needs_few_draws_far_from_the_threshold():
    """Without a failure, and at alpha 0.001, Phi(1) is proved within 60 draws, Phi(3) in about 6,750."""
    assert mixture_lower(60, 60, 0.001) > stats.norm.cdf(1)
    assert mixture_lower(6_750, 6_750, 0.001) > stats.norm.cdf(3) > mixture_lower(6_700, 6_700, 0.001)


@pytest.mark.parametrize("count, n, alpha", [(-1, 10, 0.1), (11, 10, 0.1), (0, 0, 0.1), (5, 10, 0), (5, 10, 1)])
def test_bounds_refuse(count, n, alpha):
    for bound in (clopper_pearson_lower, mixture_lower):
        with pytest.raises(ValueError, match="accepted"):
            bound(count, n, alpha)


def test_radius_is_in_the_units_of_sigma_and_abstains_at_one_half():
    assert certified_radius(stats.norm.cdf(2.0), 0.25) == pytest.approx(0.5)
    assert certified_radius(0.5, 0.25) is None
    assert certified_radius(0.0, 0.25) is None


def test_majority_pvalue_is_the_two_sided_binomial_test():
    assert majority_pvalue(10, 0) == pytest.approx(2 * 0.5**10)
    assert majority_pvalue(5, 5) == 1
