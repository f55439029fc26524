"""The anytime bound at work, exactly: how likely is a false proof when the truth lies just below what is to be proved?

No simulation: the probability of every path of (noisy copies, votes for the candidate) is followed by dynamic
programming, for each rule by which the package looks at votes.
"""

import functools

import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.certification.bound_names import Tally
from diffusers_ndc.certification.bounds import certified_radius, clopper_pearson_lower, mixture_lower
from diffusers_ndc.certification.stopping import STEP, StoppingRule, affordable


SIGMA, RADIUS, N = 0.25, 0.25, 3_000
P0 = stats.norm.cdf(RADIUS / SIGMA)
JUST_BELOW = P0 - 1e-9
ALPHAS = [0.05, 0.001]


@functools.cache
def proves(count, n, alpha):
    """Whether so many votes prove the radius, as `Certificate` computes it."""
    radius = certified_radius(mixture_lower(count, n, alpha), SIGMA)
    return radius is not None and radius >= RADIUS


@functools.cache
def fewest_votes_that_prove(alpha):
    """For each number of copies up to N the fewest votes that prove the radius; n + 1 where not even all do."""
    fewest, count = [0], 0
    for n in range(1, N + 1):
        while count <= n and not proves(count, n, alpha):
            count += 1
        assert count > n or count == 0 or not proves(count - 1, n, alpha)
        fewest.append(count)
    return fewest


def probability_of_a_proof(looks, alpha, bound=fewest_votes_that_prove):
    """That a run with `looks` at these numbers of copies, and no other end, ever proves the radius."""
    fewest, proved, previous = bound(alpha), 0.0, 0
    alive = np.array([1.0])  # by number of votes
    for n in looks:
        alive = np.convolve(alive, stats.binom.pmf(np.arange(n - previous + 1), n - previous, JUST_BELOW))
        proved += alive[fewest[n] :].sum()
        alive[fewest[n] :] = 0
        previous = n
    return proved


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_look_after_every_copy(alpha):
    """No rule that looks at votes, whatever it does then, can prove more often than this."""
    probability = probability_of_a_proof(range(1, N + 1), alpha)
    assert alpha / 2 < probability <= alpha


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_bound_for_one_look_fails_when_it_is_looked_at_after_every_copy(alpha):
    """The control: the same looks at the Clopper-Pearson bound are wrong several times as often as alpha."""

    def fewest_of_clopper_pearson(alpha):
        n = np.arange(N + 1)
        return (stats.binom.isf(alpha, n, P0) + 1).astype(int)

    assert probability_of_a_proof(range(1, N + 1), alpha, fewest_of_clopper_pearson) > 3 * alpha


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_looks_of_certify_iter(alpha):
    probability = probability_of_a_proof(range(STEP, N + 1, STEP), alpha)
    assert 0 < probability <= probability_of_a_proof(range(1, N + 1), alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_looks_of_a_resolution(alpha):
    """They do not depend on the votes, but for the end of the run, which can only prevent a proof."""
    rule = StoppingRule(SIGMA, alpha, "mixture", N, resolution=1e-12)
    looks, made = [], STEP
    while made < N:
        looks.append(made)
        counts = (made // 2, round(0.84 * made), made)
        steps = {rule.more(Tally(count, made), made, proved=-1.0) for count in counts} - {0}
        (step,) = steps
        made += step
    looks.append(N)
    assert 0 < probability_of_a_proof(looks, alpha) <= alpha


@functools.cache
def proves_by_clopper_pearson(count, n, alpha):
    """Whether so many votes would prove the radius if n had been fixed beforehand."""
    return clopper_pearson_lower(count, n, alpha) >= P0


def probability_by_paths(rule, max_evaluations=None, proves=proves):
    """That a run by the rule as implemented proves the radius, a bound on what is left out, and the expected copies.

    Every path is followed: the next look depends on the votes. With a budget it depends on evaluations too, 3 for a
    vote for the candidate and 40 for another one, so that hardly a dependence could be stronger. Paths below 1e-12 are
    left out.
    """
    first = min(STEP, rule.n)
    at = {first: dict(enumerate(stats.binom.pmf(np.arange(first + 1), first, JUST_BELOW)))}
    proved = neglected = ended = copies = 0.0
    while at:
        made = min(at)
        for count, probability in at.pop(made).items():
            if probability < 1e-12:
                neglected += probability
                continue
            if proves(count, made, rule.alpha):
                more, proved = 0, proved + probability
            else:
                more = rule.more(Tally(count, made), made, proved=-1.0)
                if max_evaluations is not None:
                    more = min(more, affordable(max_evaluations, 3 * count + 40 * (made - count), made))
                ended += probability if more == 0 else 0.0
            if more == 0:
                copies += probability * made
                continue
            following = at.setdefault(made + more, {})
            for votes, share in enumerate(stats.binom.pmf(np.arange(more + 1), more, JUST_BELOW)):
                following[count + votes] = following.get(count + votes, 0.0) + probability * share
    assert proved + neglected + ended == pytest.approx(1)
    return proved, neglected, copies


def rule_for_paths(alpha, n, max_copies_per_radius=None):
    return StoppingRule(SIGMA, alpha, "mixture", n, (RADIUS,), max_copies_per_radius=max_copies_per_radius)


@pytest.mark.parametrize("n", [300, pytest.param(N, marks=pytest.mark.slow)])
@pytest.mark.parametrize("limits", [(None, None), (50_000, None), (2_000, None), (None, 1_000), (50_000, 1_000)])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_looks_of_a_run_that_watches_a_radius(alpha, limits, n):
    """With limits on the copies of a radius and on the evaluations of the image, and without."""
    max_copies_per_radius, max_evaluations = limits
    proved, neglected, _ = probability_by_paths(rule_for_paths(alpha, n, max_copies_per_radius), max_evaluations)
    assert 0 < proved <= proved + neglected <= alpha


@pytest.mark.parametrize("limits", [(2_000, None), (None, 500)])
def test_a_limit_saves_copies(limits):
    """On an image whose probability is just below what is to be proved: all its copies are in vain."""
    max_copies_per_radius, max_evaluations = limits
    *_, unlimited = probability_by_paths(rule_for_paths(0.001, 300))
    *_, limited = probability_by_paths(rule_for_paths(0.001, 300, max_copies_per_radius), max_evaluations)
    assert limited < 0.9 * unlimited


@pytest.mark.parametrize("limits", [(50_000, None), (None, 1_000)])
def test_a_bound_for_a_fixed_number_fails_at_these_looks(limits):
    """The control: the same runs, with the Clopper-Pearson bound of the copies so far at each look."""
    max_copies_per_radius, max_evaluations = limits
    rule = rule_for_paths(0.05, 300, max_copies_per_radius)
    proved, *_ = probability_by_paths(rule, max_evaluations, proves_by_clopper_pearson)
    assert proved > 1.5 * 0.05
