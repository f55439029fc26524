"""Properties that every bound has, over all counts that a run could give."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.fuzzing import cases
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from diffusers_ndc.certification.bound_names import BOUNDS, Tally
from diffusers_ndc.certification.bounds import (
    MAX_N,
    MIN_ALPHA,
    certified_radius,
    clopper_pearson_lower,
    majority_pvalue,
    mixture_lower,
)
from diffusers_ndc.certification.stopping import StoppingRule, largest_provable


ALPHAS = st.floats(MIN_ALPHA, 0.5) | st.sampled_from([1e-12, 0.001, 0.05, 0.5])
SLIGHTLY = 1 + 1e-9


@st.composite
def tallies(draw, bound=None):
    """A bound and what it rests on: few draws and many, shares near 0, 1/2 and 1."""
    bound = draw(st.sampled_from(sorted(BOUNDS))) if bound is None else bound
    n = draw(st.integers(1, 50) | st.integers(1, 10**5) | st.integers(1, 10**9))
    count = draw(st.integers(0, n) | st.integers(max(0, n - 5), n) | st.integers(0, min(n, 5)) | st.just(n // 2 + 1))
    rival = draw(st.integers(0, n - count))
    mean, spread = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    total, squares = n * mean, n * mean * (mean + spread * (1 - mean))
    return bound, Tally(count, n, rival, draw(st.integers(2, 1000)), draw(st.floats(0, 1)), total, squares)


@cases(1000)
@given(made=tallies(), alpha=ALPHAS, other=ALPHAS, sigma=st.floats(1e-6, 1e6))
@example(("clopper-pearson", Tally(MAX_N, MAX_N)), 0.001, 0.5, 1.0)
@example(("mixture", Tally(MAX_N, MAX_N)), 0.001, 0.5, 1.0)
@example(("mixture", Tally(0, MAX_N)), 0.001, 0.5, 1.0)
@example(("randomized-clopper-pearson", Tally(10, 10, u=0.0)), 0.5, 0.001, 1.0)
def test_a_bound_is_a_share_that_grows_with_alpha_and_its_radius_with_it(made, alpha, other, sigma):
    (bound, tally), (careful, bold) = made, sorted([alpha, other])
    low, high = (BOUNDS[bound](tally, level) for level in (careful, bold))
    assert 0 <= low <= high * SLIGHTLY <= SLIGHTLY
    if bound in ("clopper-pearson", "mixture"):
        assert high <= tally.count / tally.n * SLIGHTLY
    if bound == "empirical-bernstein":
        assert high <= tally.score_sum / tally.n * SLIGHTLY
    radii = [certified_radius(p_lower, sigma) for p_lower in (low, high)]
    assert [radius is None for radius in radii] == [p_lower <= 0.5 for p_lower in (low, high)]
    small, large = (-1.0 if radius is None else radius for radius in radii)
    assert small <= abs(large) * SLIGHTLY and large <= 8.3 * sigma


@cases(600)
@given(made=tallies(), alpha=ALPHAS)
def test_a_bound_grows_with_the_votes(made, alpha):
    bound, tally = made
    assume(tally.count + tally.rival < tally.n)
    more = replace(tally, count=tally.count + 1, score_sum=tally.score_sum, score_squares=tally.score_sum**2 / tally.n)
    assert BOUNDS[bound](tally, alpha) <= BOUNDS[bound](more, alpha) * SLIGHTLY


@cases(600)
@given(made=tallies("clopper-pearson"), alpha=ALPHAS)
def test_clopper_pearson_solves_its_equation(made, alpha):
    """`P_p[X >= count] = alpha` at the bound; randomized, it is between this and one more."""
    _, tally = made
    assume(tally.count > 0)
    lower = clopper_pearson_lower(tally.count, tally.n, alpha)
    assert stats.binom.sf(tally.count - 1, tally.n, lower) == pytest.approx(alpha, rel=1e-4)
    randomized = clopper_pearson_lower(tally.count, tally.n, alpha, tally.u)
    above = clopper_pearson_lower(tally.count + 1, tally.n, alpha) if tally.count < tally.n else 1.0
    assert lower <= randomized * SLIGHTLY and randomized <= above * SLIGHTLY


@cases(300)
@given(shares=st.lists(st.booleans(), min_size=1, max_size=200), alpha=st.floats(1e-9, 0.4))
def test_the_mixture_is_below_the_fixed_bound_at_each_time(shares, alpha):
    """A bound that holds at all times at once cannot be above the best that holds at one."""
    for n, count in enumerate(np.cumsum(shares).tolist(), start=1):
        assert mixture_lower(count, n, alpha) <= clopper_pearson_lower(count, n, alpha) * SLIGHTLY


@cases(500)
@given(
    n=st.integers(1, 10**4),
    share=st.floats(0, 1),
    bound=st.sampled_from(["mixture", "clopper-pearson"]),
    radii=st.lists(st.floats(0, 3), min_size=1, max_size=3, unique=True),
    alpha=st.floats(1e-9, 0.4),
    limit=st.none() | st.floats(1e-9, 1e9),
)
def test_a_stopped_run_ends_within_its_draws(n, share, bound, radii, alpha, limit):
    rule, made = StoppingRule(1.0, alpha, bound, n, sorted(radii), max_copies_per_radius=limit), 0
    tally = Tally(0, 0 if bound == "mixture" else n)
    more, looks = min(n, 20), 0
    while more:
        made, looks = made + more, looks + 1
        assert made <= n and looks <= 1000
        tally = replace(tally, count=math.floor(share * made), n=made if bound == "mixture" else n)
        more = rule.more(tally, made, rule.radius_after(0, tally))
    assert rule.radius_after(0, tally) <= abs(largest_provable(1.0, alpha, bound, n)) * SLIGHTLY


@cases(200)
@given(top=st.integers(0, 10**6), rival=st.integers(0, 10**6))
def test_the_test_of_two_classes_gives_a_probability(top, rival):
    assume(top + rival > 0)
    assert 0 <= majority_pvalue(top, rival) <= 1
    assert majority_pvalue(top, rival) == majority_pvalue(rival, top)
