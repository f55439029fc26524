import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.bounds import certified_radius, clopper_pearson_lower, majority_pvalue


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


@pytest.mark.parametrize("count, n, alpha", [(-1, 10, 0.1), (11, 10, 0.1), (0, 0, 0.1), (5, 10, 0), (5, 10, 1)])
def test_clopper_pearson_refuses(count, n, alpha):
    with pytest.raises(ValueError, match="accepted"):
        clopper_pearson_lower(count, n, alpha)


def test_radius_is_in_the_units_of_sigma_and_abstains_at_one_half():
    assert certified_radius(stats.norm.cdf(2.0), 0.25) == pytest.approx(0.5)
    assert certified_radius(0.5, 0.25) is None
    assert certified_radius(0.0, 0.25) is None


def test_majority_pvalue_is_the_two_sided_binomial_test():
    assert majority_pvalue(10, 0) == pytest.approx(2 * 0.5**10)
    assert majority_pvalue(5, 5) == 1
