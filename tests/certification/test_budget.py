"""A budget of evaluations, with a classifier whose copies cost the less the more they speak for the candidate.

Copies of class 1 are decided at once, for one evaluation each. The others take a few steps, and cost ten.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from diffusers_ndc import SmoothedClassifier
from diffusers_ndc.certification.bounds import certified_radius, mixture_lower
from diffusers_ndc.certification.stopping import STEP
from diffusers_ndc.common.copies import CallableClassifier, Decided


SIGMA, DISTANCE, CHEAP, DEAR = 0.25, 0.2, 1, 10
IMAGE = torch.full((1, 4, 4), 0.5 + DISTANCE / 4)
"""An image in class 1, at this l2 distance from the other class: the largest radius that is true."""


def halfspace(images):
    score = images.flatten(1).mean(1) - 0.5
    return torch.stack([-score, score], dim=1)


class UnevenPool:
    """Up to `size` copies; those of class 1 leave at the next step, the others three steps later."""

    def __init__(self, size):
        self.size, self.under_way = size, []

    @property
    def room(self):
        return self.size - len(self.under_way)

    def __len__(self):
        return len(self.under_way)

    def add(self, copies):
        for copy, logits in zip(copies, halfspace(torch.stack([copy.image for copy in copies])), strict=True):
            self.under_way.append([copy.key, logits, 0 if logits.argmax() == 1 else 3])

    def step(self):
        done = [entry for entry in self.under_way if entry[2] == 0]
        self.under_way = [[key, logits, left - 1] for key, logits, left in self.under_way if left > 0]
        logits = torch.stack([logits for _, logits, _ in done]) if done else torch.zeros(0, 2)
        evaluations = [CHEAP if row.argmax() == 1 else DEAR for row in logits]
        return Decided([key for key, _, _ in done], logits, evaluations)


class Uneven(CallableClassifier):
    def __init__(self, size=30):
        super().__init__(halfspace, num_classes=2)
        self.size = size

    def pool(self):
        return UnevenPool(self.size)


def certify(size=30, **settings):
    settings = {"n0": 5, "n": 3_000, "alpha": 0.1, **settings}
    (certificate,) = SmoothedClassifier(Uneven(size), SIGMA).certify(IMAGE[None], **settings)
    return certificate


def votes_of(certificate, count):
    """The classes of the first copies that could have voted, in the order of their numbers."""
    copies = SmoothedClassifier(halfspace, SIGMA).noisy_copies(IMAGE, certificate, count)
    return halfspace(copies).argmax(dim=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [500, 2_000])
def test_the_copies_that_count_are_the_first_ones_whatever_they_cost(seed, budget):
    """Not those that were decided first, which would all be of class 1."""
    certificate = certify(seed=seed, max_evaluations=budget)
    assert certificate.verify()
    votes = votes_of(certificate, certificate.n)
    assert certificate.counts == {label: int((votes == label).sum()) for label in votes.unique().tolist()}


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_is_spent_and_hardly_exceeded(seed):
    certificate = certify(seed=seed, max_evaluations=2_000)
    assert 2_000 <= certificate.evaluations < 2_000 + 200
    assert certify(seed=seed, n=200, max_evaluations=10**6).evaluations < 10 * 205


def test_the_smallest_run_makes_its_selection_and_one_look():
    certificate = certify(seed=0, max_evaluations=1)
    assert certificate.n == STEP and certificate.verify()


def test_a_settled_image_does_not_spend_its_budget():
    without = certify(seed=0, radii=(0.05,))
    assert certify(seed=0, radii=(0.05,), max_evaluations=10_000) == without


@pytest.mark.parametrize("limits", [{}, {"max_copies_per_radius": 1_000}])
def test_certificates_depend_neither_on_batches_nor_on_the_classifiers_speed(limits):
    settings = {"seed": 3, "radii": (0.1, 0.19), "max_evaluations": 3_000, **limits}
    certificate = certify(**settings)
    assert certify(size=7, **settings) == certify(size=1_000, **settings) == certificate
    assert certificate.agrees(SmoothedClassifier(Uneven(11), SIGMA).replay(IMAGE, certificate))


@pytest.mark.parametrize("runs", [80, pytest.param(1_500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{"max_evaluations": 800}, {"max_evaluations": 800, "radii": (0.21,)}])
def test_certificates_are_wrong_at_most_at_their_rate(settings, runs):
    """Coverage by simulation. Of the two, the second looks for a radius that is just beyond the true one."""
    wrong = [certify(seed=seed, **settings).radius > DISTANCE for seed in range(runs)]
    assert sum(wrong) <= stats.binom.ppf(1 - 1e-4, runs, 0.1)


def test_copies_counted_as_they_come_back_prove_what_is_false():
    """The control: of 500 copies under way, those that are decided when the budget is spent, the cheap ones first."""
    rng, budget, false = np.random.default_rng(0), 300, 0
    for _ in range(200):
        hits = rng.random(500) < stats.norm.cdf(DISTANCE / SIGMA)
        spent = np.cumsum(np.sort(np.where(hits, CHEAP, DEAR)))
        made = int((spent <= budget).sum())
        count = min(made, int(hits.sum()))
        false += certified_radius(mixture_lower(count, made, 0.1), SIGMA) > DISTANCE
    assert false > 0.9 * 200


@pytest.mark.parametrize("bound", ["clopper-pearson", "randomized-clopper-pearson"])
def test_a_curtailed_run_with_a_budget_proves_no_more_than_the_whole_run(bound):
    whole = certify(seed=1, n=400, bound=bound, radii=(0.19,), max_copies_per_radius=None)
    for budget in (300, 800):
        short = certify(seed=1, n=400, bound=bound, radii=(0.19,), max_evaluations=budget)
        assert short.n == 400 and short.verify()
        assert sum(short.counts.values()) < 400 and short.radius <= max(whole.radius, 0.0)


@pytest.mark.parametrize("bound", ["runner-up", "empirical-bernstein"])
def test_a_bound_for_a_fixed_number_allows_no_budget(bound):
    with pytest.raises(ValueError, match=r"`bound` must be one of .* max_evaluations=100, got"):
        certify(bound=bound, max_evaluations=100)


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"max_evaluations": 0}, ValueError),
        ({"max_evaluations": 100.0}, ValueError),
        ({"max_evaluations": True}, ValueError),
        ({"radii": (0.1,), "max_copies_per_radius": 0}, ValueError),
        ({"radii": (0.1,), "max_copies_per_radius": math.inf}, ValueError),
        ({"max_copies_per_radius": "many"}, TypeError),
    ],
)
def test_invalid_limits_raise(settings, error):
    (name,) = set(settings) - {"radii"}
    with pytest.raises(error, match=f"`{name}` must be"):
        certify(**settings)
