import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.certification.bounds import Tally, certified_radius, clopper_pearson_lower, mixture_lower
from diffusers_ndc.certification.stopping import STEP, StoppingRule, largest_provable


SIGMA, ALPHA = 0.25, 0.001


def watched(p, rule, rng):
    """Draws made and largest radius proved in a run of an image with the probability p."""
    count = made = 0
    more, proved = min(STEP, rule.n), -1.0
    while more:
        count, made = count + rng.binomial(more, p), made + more
        tally = Tally(count, made)
        radius = certified_radius(mixture_lower(count, made, rule.alpha), rule.sigma)
        proved = max(proved, -1.0 if radius is None else radius)
        more = rule.more(tally, made, proved)
    return made, proved


def test_no_draw_too_many_where_all_agree():
    """The next look comes with the first draw that could prove the next radius."""
    for radius, draws in [(0.25, 44), (0.5, 327)]:
        rule = StoppingRule(SIGMA, ALPHA, "mixture", 10_000, (radius,))
        assert watched(1.0, rule, np.random.default_rng(0))[0] == draws
    curtailed = StoppingRule(SIGMA, ALPHA, "clopper-pearson", 300, (0.25,))
    made = tally = 0
    more = STEP
    while more:
        made += more
        tally = Tally(made, 300)
        radius = certified_radius(clopper_pearson_lower(made, 300, ALPHA), SIGMA)
        more = curtailed.more(tally, made, -1.0 if radius is None else radius)
    assert clopper_pearson_lower(made, 300, ALPHA) >= stats.norm.cdf(1) > clopper_pearson_lower(made - 1, 300, ALPHA)


def test_certificates_stay_true_under_the_rule():
    """10,000 runs, with p on the threshold, just below and far below it: false proofs at most at the rate alpha."""
    alpha, rule = 0.05, StoppingRule(SIGMA, 0.05, "mixture", 200, (0.25,))
    for p, runs in [(stats.norm.cdf(1), 4_000), (stats.norm.cdf(1) - 0.01, 4_000), (0.6, 2_000)]:
        rng = np.random.default_rng(0)
        truth = SIGMA * stats.norm.ppf(p)
        wrong = np.mean([watched(p, rule, rng)[1] > truth for _ in range(runs)])
        assert wrong <= alpha


@pytest.mark.parametrize("p, at_least, draws", [(0.88, 0.97, 2_500), (0.95, 1.0, 300), (0.8, 0.0, 400)])
def test_a_radius_is_seldom_given_up_that_could_be_proved(p, at_least, draws):
    rule, rng = StoppingRule(SIGMA, ALPHA, "mixture", 10_000, (0.25,)), np.random.default_rng(1)
    runs = [watched(p, rule, rng) for _ in range(100)]
    assert np.mean([proved >= 0.25 for _, proved in runs]) >= at_least
    assert np.mean([made for made, _ in runs]) < draws


def test_largest_provable_radius():
    assert largest_provable(SIGMA, ALPHA, "clopper-pearson", 10_000) == pytest.approx(
        SIGMA * stats.norm.ppf(ALPHA ** (1 / 10_000))
    )
    assert largest_provable(SIGMA, ALPHA, "mixture", 44) > 0.25 > largest_provable(SIGMA, ALPHA, "mixture", 43)
    assert largest_provable(SIGMA, ALPHA, "mixture", 3) == -1
