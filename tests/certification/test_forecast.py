"""Forecasts from the votes of a trial: the population that is fitted, intervals, and what is expected of CERTIFY."""

import numpy as np
import pytest
from scipy import stats

from diffusers_ndc.certification.bounds import PRIOR
from diffusers_ndc.certification.forecast import draw_probabilities, fit_population, forecast, mean_of, share_of
from diffusers_ndc.certification.procedures import Sampling
from diffusers_ndc.certification.simulated import SimulatedCertify
from diffusers_ndc.certification.trial import Trial


def trial_of(votes, copies=64, sigma=0.25, per_copy=10):
    """A trial of two classes in which class 1 is true and has these votes."""
    votes = np.asarray(votes)
    counts = np.stack([copies - votes, votes], axis=1)
    evaluations = np.full(len(votes), per_copy * copies)
    return Trial(sigma, copies, (1,) * len(votes), counts, evaluations, 1000, 10.0, None)


def sampling_of(*radii, n=2000, **limits):
    return Sampling.with_defaults(
        10, n, 0.001, None, radii, None, limits.get("max_copies_per_radius"), limits.get("max_evaluations")
    )


@pytest.mark.parametrize("a, b", [(1.0, 0.25), (6.0, 0.1), (0.3, 0.1), (3.0, 1.0)])
def test_the_population_of_the_probabilities_is_found(a, b):
    generator = np.random.default_rng(0)
    votes = generator.binomial(64, generator.beta(a, b, 2000))
    fitted = fit_population(trial_of(votes))
    points = [0.5, 0.9, 0.98]
    assert stats.beta.cdf(points, *fitted) == pytest.approx(stats.beta.cdf(points, a, b), abs=0.03)


@pytest.mark.parametrize("votes", [[64, 64], [0, 0], [64] * 30, [0] * 30, [0] * 15 + [64] * 15])
def test_the_population_of_unanimous_votes_is_finite(votes):
    a, b = fit_population(trial_of(votes))
    assert 1e-3 < a < 1e3 and 1e-3 < b < 1e3


def test_probabilities_are_drawn_from_the_posterior():
    generator, counts = np.random.default_rng(0), np.array([0, 50, 3, 7])
    drawn = np.array([draw_probabilities(counts, 1, 1.0, PRIOR, generator) for _ in range(4000)])
    assert drawn.sum(axis=1) == pytest.approx(1) and (drawn >= 0).all() and (drawn[:, 0] == 0).all()
    assert stats.kstest(drawn[:, 1], stats.beta(51, 10 + PRIOR).cdf).pvalue > 0.001
    assert stats.kstest(drawn[:, 1], stats.beta(51, 12).cdf).pvalue < 0.001  # the test would notice
    assert drawn[:, 3] == pytest.approx(drawn[:, 2] * 7 / 3)
    alone = draw_probabilities(np.array([64]), 0, 1.0, PRIOR, generator)
    assert alone.tolist() == [1.0]


def test_intervals_cover_at_their_rate():
    """Of a share, from chances, and of a mean cost; half of their width does not."""
    generator, covered, half = np.random.default_rng(0), np.zeros(2), np.zeros(2)
    for _ in range(300):
        chances = generator.beta(2, 1, 40)
        costs = np.exp(generator.normal(size=(40, 1)) + 0.3 * generator.normal(size=(40, 10)))
        estimates = (share_of(chances), 2 / 3), (mean_of(costs, generator), np.exp((1 + 0.09) / 2))
        for place, (estimate, truth) in enumerate(estimates):
            assert estimate.low <= estimate.value <= estimate.high
            covered[place] += estimate.low <= truth <= estimate.high
            half[place] += abs(estimate.value - truth) <= (estimate.high - estimate.low) / 8
    assert (covered / 300 >= 0.85).all() and (half / 300 < 0.85).all()
    assert share_of(np.ones(32)).low == pytest.approx(0.025 ** (1 / 32)) and share_of(np.ones(32)).high == 1
    assert share_of(np.zeros(32)).low == 0


def test_what_is_expected_is_what_comes():
    """Over trials of 32 images, the mean forecast is close to the result for the whole population.

    With the fixed prior of the `mixture` bound in place of the fitted one it would not be, at two sigma.
    """
    generator, radius = np.random.default_rng(1), 0.5
    population = generator.beta(4, 0.06, 3000)
    simulated = SimulatedCertify(0.25, sampling_of(radius), 2)
    runs = [simulated.run(np.array([1 - p, p]), 10.0, generator) for p in population]
    accuracy = np.mean([run.candidate == 1 and run.radius >= radius for run in runs])
    copies = np.mean([run.copies for run in runs])
    expected, fixed = [], []
    for seed in range(12):
        votes = generator.binomial(64, generator.choice(population, 32))
        expected.append(forecast(trial_of(votes), sampling_of(radius), [radius], 100.0, seed))
        drawn = generator.beta(votes + 1, 64 - votes + PRIOR)
        again = [simulated.run(np.array([1 - p, p]), 10.0, generator) for p in drawn]
        fixed.append(np.mean([run.candidate == 1 and run.radius >= radius for run in again]))
    assert np.mean([run.accuracies[0].value for run in expected]) == pytest.approx(accuracy, abs=0.03)
    assert accuracy - np.mean(fixed) > 0.03
    assert np.mean([run.copies.value for run in expected]) == pytest.approx(copies, rel=0.15)
    assert sum(run.accuracies[0].low <= accuracy <= run.accuracies[0].high for run in expected) >= 10


def test_a_larger_radius_costs_more_and_is_proved_for_fewer():
    trial = trial_of([64, 64, 63, 64, 60, 64, 64, 62, 64, 64, 20, 64])
    runs = [forecast(trial, sampling_of(radius), [radius], 100.0, 0) for radius in (0.0, 0.25, 0.5)]
    accuracies, copies = [run.accuracies[0].value for run in runs], [run.copies.value for run in runs]
    assert accuracies == sorted(accuracies, reverse=True) and copies == sorted(copies)
    together = forecast(trial, sampling_of(0.0, 0.25, 0.5), [0.0, 0.25, 0.5], 100.0, 0)
    shown = [accuracy.value for accuracy in together.accuracies]
    assert shown == pytest.approx(accuracies, abs=0.08) and shown == sorted(shown, reverse=True)
    assert together.copies.value == pytest.approx(copies[-1], rel=0.3)
    assert together.evaluations.value == pytest.approx(10 * together.copies.value)
    assert together.seconds.value == pytest.approx(together.evaluations.value / 100)


def test_limits_make_a_run_cheaper():
    trial = trial_of([64, 64, 60, 61, 59, 64])
    free = forecast(trial, sampling_of(0.5, n=10_000), [0.5], 100.0, 0)
    for limits in ({"max_evaluations": 2000}, {"max_copies_per_radius": 500}):
        limited = forecast(trial, sampling_of(0.5, n=10_000, **limits), [0.5], 100.0, 0)
        assert limited.copies.value < free.copies.value
        assert limited.accuracies[0].value <= free.accuracies[0].value + 0.1


def test_a_fixed_number_of_copies_costs_just_that():
    sampling = Sampling.with_defaults(100, 1000, 0.001, None, None, None, None, None)
    run = forecast(trial_of([64, 64, 64]), sampling, [0.25, 0.5, 9.0], 100.0, 0)
    assert 1050 <= run.copies.value <= 1100  # the selection ends when it is settled
    assert run.accuracies[2].value == 0
