import bisect
import doctest
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from diffusers_ndc.certification import bounds as bounds_module
from diffusers_ndc.certification.bounds import (
    MIN_U,
    certified_radius,
    clopper_pearson_lower,
    empirical_bernstein_lower,
    majority_pvalue,
    mixture_log_evidence,
    mixture_lower,
    runner_up_lower,
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
    """Its mean under p0 is 1 after any number of trials, and below 1 under any smaller probability."""
    evidence = np.exp([mixture_log_evidence(count, n, p0) for count in range(n + 1)])
    assert (stats.binom.pmf(np.arange(n + 1), n, p0) * evidence).sum() == pytest.approx(1)
    assert (stats.binom.pmf(np.arange(n + 1), n, 0.9 * p0) * evidence).sum() < 1


def fewest_successes(bound, n, alpha, p0):
    """The smallest count of n with which the bound exceeds p0, n + 1 without one."""
    return bisect.bisect(range(n + 1), p0, key=lambda count: bound(count, n, alpha))


def share_of_false_claims(bound, p, p0, alpha=0.05, trials=400, runs=10_000):
    """How often a run that is looked at after every draw ever claims p > p0."""
    counts = (np.random.default_rng(0).random((runs, trials)) < p).cumsum(axis=1)
    needed = np.array([fewest_successes(bound, n, alpha, p0) for n in range(1, trials + 1)])
    return (counts >= needed).any(axis=1).mean()


@pytest.mark.parametrize("p0", [0.5, stats.norm.cdf(1), stats.norm.cdf(2)])
@pytest.mark.parametrize("below", [0.0, 0.01, 0.2])
def test_mixture_claims_are_false_at_most_at_their_rate_with_a_look_after_every_draw(p0, below):
    """10,000 runs with the true probability on the threshold, just below and far below it."""
    share = share_of_false_claims(mixture_lower, p0 - below, p0)
    assert share <= 0.05
    assert share > 0 or below == 0.2, "on the threshold, alpha = 0.05 should show some error"


def test_a_fixed_n_bound_that_is_peeked_at_is_false_more_often():
    """The negative control of the test above: the same runs and looks with the Clopper-Pearson bound."""
    assert share_of_false_claims(clopper_pearson_lower, 0.5, 0.5) > 0.15
    assert share_of_false_claims(clopper_pearson_lower, stats.norm.cdf(1), stats.norm.cdf(1)) > 0.15


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_the_randomized_bound_is_wrong_at_its_rate_exactly(p):
    n, alpha, runs = 60, 0.05, 10_000
    rng = np.random.default_rng(0)
    counts, uniforms = rng.binomial(n, p, size=runs), rng.random(runs)
    bounds = np.array([clopper_pearson_lower(int(c), n, alpha, u) for c, u in zip(counts, uniforms, strict=True)])
    wrong, plain = (bounds > p).mean(), np.array([clopper_pearson_lower(int(c), n, alpha) > p for c in counts]).mean()
    assert plain <= alpha
    assert wrong == pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / runs) + alpha * MIN_U)
    assert all(bound >= clopper_pearson_lower(int(c), n, alpha) for bound, c in zip(bounds, counts, strict=True))
    assert clopper_pearson_lower(n, n, 0.001, 1e-12) < 1


@pytest.mark.parametrize("probabilities", [[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.7, 0.1, 0.1, 0.1]])
def test_the_runner_up_bound_covers_at_its_rate(probabilities):
    """The claimed margin between the winner and the best of the others is too large at most at the rate alpha."""
    n, alpha, runs, k = 80, 0.1, 10_000, len(probabilities)
    counts = np.random.default_rng(0).multinomial(n, probabilities, size=runs)
    truth = (stats.norm.ppf(probabilities[0]) - stats.norm.ppf(max(probabilities[1:]))) / 2
    seen = {}
    for count, rival in zip(counts[:, 0].tolist(), counts[:, 1:].max(axis=1).tolist(), strict=True):
        if (count, rival) not in seen:
            seen[count, rival] = stats.norm.ppf(runner_up_lower(count, rival, n, alpha, k)) > truth
    wrong = np.mean([seen[key] for key in zip(counts[:, 0].tolist(), counts[:, 1:].max(axis=1).tolist(), strict=True)])
    assert wrong <= alpha


def test_the_runner_up_bound_pays_where_the_other_votes_are_spread():
    assert runner_up_lower(600, 50, 1_000, 0.001, 10) > clopper_pearson_lower(600, 1_000, 0.001)
    assert runner_up_lower(600, 400, 1_000, 0.001, 10) < clopper_pearson_lower(600, 1_000, 0.001)


@pytest.mark.parametrize("a, b", [(0.5, 0.5), (5.0, 0.05), (0.05, 0.05), (300.0, 3.0)])
def test_empirical_bernstein_covers_at_its_rate(a, b):
    n, alpha, runs = 200, 0.05, 10_000
    scores = np.random.default_rng(0).beta(a, b, size=(runs, n))
    sums, squares = scores.sum(axis=1), (scores**2).sum(axis=1)
    bounds = [empirical_bernstein_lower(s, q, n, alpha) for s, q in zip(sums, squares, strict=True)]
    assert (np.array(bounds) > a / (a + b)).mean() <= alpha


def test_empirical_bernstein_is_close_where_scores_vary_little():
    n = 100_000
    assert 0.9 - empirical_bernstein_lower(0.9 * n, 0.81 * n, n, 0.001) == pytest.approx(
        7 * np.log(2_000) / (3 * n), rel=0.01
    )
    assert empirical_bernstein_lower(1.0, 1.0, 1, 0.001) == 0


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


def test_mixture_bound_needs_few_trials_far_from_the_threshold():
    """Without a failure, at alpha 0.001: Phi(1) is proved in 44 trials and Phi(2) in 327; at fixed n in 40 and 301."""
    for radius, anytime, fixed in [(1, 44, 40), (2, 327, 301)]:
        p0 = stats.norm.cdf(radius)
        assert mixture_lower(anytime, anytime, 0.001) > p0 > mixture_lower(anytime - 1, anytime - 1, 0.001)
        assert clopper_pearson_lower(fixed, fixed, 0.001) > p0 > clopper_pearson_lower(fixed - 1, fixed - 1, 0.001)


@pytest.mark.parametrize("count, n, alpha", [(-1, 10, 0.1), (11, 10, 0.1), (0, 0, 0.1), (5, 10, 0), (5, 10, 1)])
def test_bad_counts_raise(count, n, alpha):
    for bound in (clopper_pearson_lower, mixture_lower):
        with pytest.raises(ValueError, match="`count` must be from|`n` must be from|`alpha` must be"):
            bound(count, n, alpha)


def test_radius_is_in_the_units_of_sigma_and_abstains_at_one_half():
    assert certified_radius(stats.norm.cdf(2.0), 0.25) == pytest.approx(0.5)
    assert certified_radius(0.5, 0.25) is None
    assert certified_radius(0.0, 0.25) is None


def test_majority_pvalue_is_the_two_sided_binomial_test():
    assert majority_pvalue(10, 0) == pytest.approx(2 * 0.5**10)
    assert majority_pvalue(5, 5) == 1


def test_the_examples_of_the_docstrings_run():
    result = doctest.testmod(bounds_module)
    assert result.attempted > 0 and result.failed == 0


OF_A_NUMBER = [
    lambda p: certified_radius(p, 0.25),
    lambda sigma: certified_radius(0.9, sigma),
    lambda u: clopper_pearson_lower(1_000, 1_000, 0.001, u),
    lambda alpha: clopper_pearson_lower(1_000, 1_000, alpha, 0.5),
    lambda alpha: mixture_lower(990, 1_000, alpha),
    lambda alpha: runner_up_lower(600, 50, 1_000, alpha, 10),
    lambda slack: runner_up_lower(600, 50, 1_000, 0.001, 10, slack),
    lambda alpha: empirical_bernstein_lower(900.0, 820.0, 1_000, alpha),
    lambda share: empirical_bernstein_lower(type(share)(900), type(share)(820), 1_000, 0.001),
    lambda p0: mixture_log_evidence(990, 1_000, p0),
]


@pytest.mark.parametrize("number_type", [np.float16, np.float32, np.longdouble])
@pytest.mark.parametrize("function", OF_A_NUMBER)
def test_numbers_of_any_type_are_computed_with_in_double_precision(function, number_type):
    """Half precision may round a radius up."""
    for value in map(number_type, (0.7001, 0.0301)):
        result = function(value)
        assert result == function(float(value)) and type(result) is type(function(float(value)))


@pytest.mark.parametrize("number_type", [np.float16, np.float32])
def test_a_bound_that_is_1_in_a_small_type_proves_no_infinite_radius(number_type):
    assert certified_radius(number_type(1), 0.25) == certified_radius(1.0, 0.25) < 3


@pytest.mark.parametrize("alpha", [np.float16(0), np.float32(0), np.longdouble("1e-4000"), Decimal("0.1"), "0.1"])
def test_an_alpha_that_a_small_type_rounds_to_0_raises(alpha):
    for bound in (clopper_pearson_lower, mixture_lower):
        with pytest.raises((TypeError, ValueError), match="`alpha` must be"):
            bound(990, 1_000, alpha)


@pytest.mark.parametrize("count_type", [np.int8, np.uint8, np.int16, np.uint64])
def test_counts_of_small_types_do_not_wrap_around(count_type):
    n = min(255, np.iinfo(count_type).max)
    small = count_type(n)
    assert clopper_pearson_lower(small, small, 0.001) == clopper_pearson_lower(n, n, 0.001)
    assert mixture_lower(small, small, 0.001) == mixture_lower(n, n, 0.001)
    assert runner_up_lower(100, small, small, 0.001, small) == runner_up_lower(100, n, n, 0.001, n)
    assert empirical_bernstein_lower(small, small, small, 0.001) == empirical_bernstein_lower(n, n, n, 0.001)
    assert mixture_log_evidence(small, small, 0.9) == mixture_log_evidence(n, n, 0.9)
    assert majority_pvalue(small, small) == 1


@pytest.mark.parametrize("count", [990.0, np.float16(990), np.True_, Fraction(990), torch.tensor(990)])
def test_counts_that_are_no_integers_raise(count):
    for function in (clopper_pearson_lower, mixture_lower):
        with pytest.raises(TypeError, match="`count` must be an integer"):
            function(count, 1_000, 0.001)
    with pytest.raises(TypeError, match="`top` must be an integer"):
        majority_pvalue(count, 10)
