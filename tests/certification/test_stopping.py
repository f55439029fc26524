"""The rule that ends the draws of an image: no draw too many, no false proof, no provable radius given up."""

import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.certification.bounds import Tally, certified_radius, clopper_pearson_lower, mixture_lower
from diffusers_ndc.certification.stopping import STEP, StoppingRule, largest_provable


SIGMA, ALPHA = 0.25, 0.001
RADIUS = 0.25
THRESHOLD = stats.norm.cdf(RADIUS / SIGMA)
"""Probability of the candidate from which on the radius is true."""


def radius_or_abstention(p_lower, sigma):
    """The certified radius, -1 for an abstention."""
    radius = certified_radius(p_lower, sigma)
    return -1.0 if radius is None else radius


def watch_image(p, rule, rng):
    """Draw votes for an image with the probability p until the rule ends it.

    Returns:
        The number of draws made, and the largest radius that was proved on the way (-1: none).
    """
    count = made = 0
    proved = -1.0
    more = min(STEP, rule.n)
    while more:
        count += rng.binomial(more, p)
        made += more
        proved = max(proved, radius_or_abstention(mixture_lower(count, made, rule.alpha), rule.sigma))
        more = rule.more(Tally(count, made), made, proved)
    return made, proved


def watch_images(p, number=100):
    """Draws made and largest radius proved of images with the probability p, two arrays."""
    rule, rng = StoppingRule(SIGMA, ALPHA, "mixture", 10_000, (RADIUS,)), np.random.default_rng(1)
    made, proved = zip(*(watch_image(p, rule, rng) for _ in range(number)), strict=True)
    return np.array(made), np.array(proved)


@pytest.mark.parametrize("radius, draws", [(0.25, 44), (0.5, 327)])
def test_unanimous_votes_end_with_the_first_draw_that_proves_the_radius(radius, draws):
    rule = StoppingRule(SIGMA, ALPHA, "mixture", 10_000, (radius,))
    made, proved = watch_image(1.0, rule, np.random.default_rng(0))
    assert made == draws
    assert proved >= radius > certified_radius(mixture_lower(draws - 1, draws - 1, ALPHA), SIGMA)


def test_unanimous_votes_end_a_curtailed_run_with_the_first_draw_that_proves_the_radius():
    n = 300
    rule = StoppingRule(SIGMA, ALPHA, "clopper-pearson", n, (RADIUS,))
    made, more = 0, STEP
    while more:
        made += more
        proved = radius_or_abstention(clopper_pearson_lower(made, n, ALPHA), SIGMA)
        more = rule.more(Tally(made, n), made, proved)
    assert clopper_pearson_lower(made, n, ALPHA) >= THRESHOLD > clopper_pearson_lower(made - 1, n, ALPHA)


@pytest.mark.parametrize("runs", [300, pytest.param(4_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("p", [THRESHOLD, THRESHOLD - 0.01, 0.6])
def test_radii_are_falsely_proved_at_most_at_the_rate_alpha(p, runs):
    """With p on the threshold, just below and far below it."""
    alpha = 0.05
    rule, rng = StoppingRule(SIGMA, alpha, "mixture", 200, (RADIUS,)), np.random.default_rng(0)
    true_radius = SIGMA * stats.norm.ppf(p)
    false_proofs = sum(watch_image(p, rule, rng)[1] > true_radius for _ in range(runs))
    assert false_proofs <= alpha * runs


def test_a_clear_image_is_proved_with_few_draws():
    made, proved = watch_images(0.95)
    assert (proved >= RADIUS).all()
    assert made.mean() < 300


def test_a_provable_image_close_to_the_threshold_is_seldom_given_up():
    made, proved = watch_images(0.88)
    assert (proved >= RADIUS).mean() >= 0.97
    assert made.mean() < 2_500


def test_a_hopeless_image_is_given_up_and_proves_nothing():
    """p is below the threshold: no run proves the radius, and none draws on to the end in vain."""
    made, proved = watch_images(0.8)
    assert (proved < RADIUS).all()
    assert made.max() < 10_000
    assert made.mean() < 400


def test_an_image_without_a_majority_is_given_up_at_once():
    made, proved = watch_images(0.4)
    assert (proved == -1).all()
    assert made.mean() < 2 * STEP


def test_largest_provable_radius():
    assert largest_provable(SIGMA, ALPHA, "clopper-pearson", 10_000) == pytest.approx(
        SIGMA * stats.norm.ppf(ALPHA ** (1 / 10_000))
    )
    assert largest_provable(SIGMA, ALPHA, "mixture", 44) > 0.25 > largest_provable(SIGMA, ALPHA, "mixture", 43)
    assert largest_provable(SIGMA, ALPHA, "mixture", 3) == -1
