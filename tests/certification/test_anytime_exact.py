"""The anytime bound at work, exactly: how likely is a false proof when the truth lies just below what is to be proved?

No simulation: the probability of every path of (noisy copies, votes for the candidate) is followed by dynamic
programming, for each rule by which the package looks at votes.
"""

import functools

import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.certification.bounds import Tally, certified_radius, mixture_lower
from diffusers_ndc.certification.stopping import STEP, StoppingRule


SIGMA, RADIUS, N = 0.25, 0.25, 3_000
P0 = stats.norm.cdf(RADIUS / SIGMA)
JUST_BELOW = P0 - 1e-9
ALPHAS = [0.05, 0.001]


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


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_looks_of_a_run_that_watches_a_radius(alpha):
    """Every path of the rule as implemented: the next look depends on the votes. Paths below 1e-12 count as proofs."""
    rule = StoppingRule(SIGMA, alpha, "mixture", N, radii=(RADIUS,))
    at = {STEP: dict(enumerate(stats.binom.pmf(np.arange(STEP + 1), STEP, JUST_BELOW)))}
    proved = neglected = ended = 0.0
    while at:
        made = min(at)
        for count, probability in at.pop(made).items():
            if probability < 1e-12:
                neglected += probability
            elif proves(count, made, alpha):
                proved += probability
            elif (more := rule.more(Tally(count, made), made, proved=-1.0)) == 0:
                ended += probability
            else:
                following = at.setdefault(made + more, {})
                for votes, share in enumerate(stats.binom.pmf(np.arange(more + 1), more, JUST_BELOW)):
                    following[count + votes] = following.get(count + votes, 0.0) + probability * share
    assert proved + neglected + ended == pytest.approx(1)
    assert 0 < proved <= proved + neglected <= alpha
