"""The rule that ends the draws of an image: no draw too many, no false proof, no provable radius given up."""

import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.certification.bound_names import Tally
from diffusers_ndc.certification.bounds import certified_radius, clopper_pearson_lower, mixture_lower
from diffusers_ndc.certification.stopping import (
    STEP,
    StoppingRule,
    affordable,
    largest_provable,
)


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


def watch_images(p, number=100, radii=(RADIUS,), **limits):
    """Draws made and largest radius proved of images with the probability p, two arrays."""
    rule, rng = StoppingRule(SIGMA, ALPHA, "mixture", 10_000, radii, **limits), np.random.default_rng(1)
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


@pytest.mark.parametrize("p", [0.97, 0.975])
def test_a_radius_just_out_of_reach_costs_less_with_a_limit(p):
    """The probability that proves the radius 0.5 is 0.977: none of these images ever proves it."""
    made, proved = watch_images(p, radii=(0.5,))
    limited, proved_by_limited = watch_images(p, radii=(0.5,), max_copies_per_radius=50_000)
    assert max(proved.max(), proved_by_limited.max()) < 0.5
    assert limited.mean() < 0.8 * made.mean()


@pytest.mark.parametrize("p, least", [(1.0, 1.0), (0.998, 0.9), (0.993, 0.75)])
def test_a_provable_radius_is_seldom_given_up_for_its_cost(p, least):
    _, proved = watch_images(p, radii=(0.5,), max_copies_per_radius=50_000)
    assert (proved >= 0.5).mean() >= least


def test_a_larger_limit_never_ends_an_image_earlier():
    """Whatever the votes so far: it goes on for as many copies, or for more than none."""
    rng = np.random.default_rng(2)
    for _ in range(100):
        made = int(rng.integers(STEP, 3_000))
        tally = Tally(int(rng.binomial(made, rng.uniform(0.85, 1))), made)
        steps = [
            StoppingRule(SIGMA, ALPHA, "mixture", 4_000, (0.25, 0.5), max_copies_per_radius=limit).more(
                tally, made, radius_or_abstention(mixture_lower(tally.count, made, ALPHA), SIGMA)
            )
            for limit in (100, 3_000, 50_000, 10**9, None)
        ]
        assert steps == sorted(steps)
        assert set(steps) <= {0, steps[-1]}


def test_no_radius_is_pursued_if_the_fewest_copies_that_prove_it_cost_too_much():
    """Unanimous votes prove the radius 0.5 with 327 copies; after the first 20, with 307."""
    for limit, goes_on in ((300, False), (3_000, True)):
        rule = StoppingRule(SIGMA, ALPHA, "mixture", 10_000, (0.5,), max_copies_per_radius=limit)
        assert (rule.more(Tally(STEP, STEP), STEP, proved=0.1) > 0) == goes_on


@pytest.mark.parametrize("bound", ["clopper-pearson", "randomized-clopper-pearson"])
def test_a_curtailed_run_weighs_chance_against_cost_too(bound):
    """Of n = 300 copies 277 must vote for the candidate. After 46 of 50, every other one is still in reach."""
    rules = [StoppingRule(SIGMA, ALPHA, bound, 300, (RADIUS,), max_copies_per_radius=c) for c in (None, 10**6, 500)]
    hopeful, doubtful = Tally(50, 300, u=0.5), Tally(40, 300, u=0.5)
    assert [rule.more(hopeful, 50, proved=-1.0) > 0 for rule in rules] == [True, True, True]
    assert [rule.more(doubtful, 50, proved=-1.0) > 0 for rule in rules] == [True, True, False]


def test_without_targets_a_run_goes_on_to_the_end():
    rule = StoppingRule(SIGMA, ALPHA, "mixture", 1_000)
    assert [rule.more(Tally(0, made), made, -1.0) for made in (20, 400, 990, 1_000)] == [20, 50, 10, 0]


def test_a_budget_is_rounded_up_to_whole_copies():
    """Copies of 7 evaluations each: 100 evaluations are spent after the fifteenth."""
    assert [affordable(100, 7 * copies, copies) for copies in (1, 10, 14, 15, 16)] == [14, 5, 1, 0, 0]
    assert affordable(10, 0, 5) >= 5  # a classifier that counts no evaluations has no end of its own


def test_largest_provable_radius():
    assert largest_provable(SIGMA, ALPHA, "clopper-pearson", 10_000) == pytest.approx(
        SIGMA * stats.norm.ppf(ALPHA ** (1 / 10_000))
    )
    assert largest_provable(SIGMA, ALPHA, "mixture", 44) > 0.25 > largest_provable(SIGMA, ALPHA, "mixture", 43)
    assert largest_provable(SIGMA, ALPHA, "mixture", 3) == -1
