"""Plans: which sigma is recommended, what is shown, and agreement with the certificates that are made afterwards."""

import numpy as np
import pytest
import torch

from diffusers_ndc import CallableClassifier, SmoothedClassifier
from diffusers_ndc.certification.forecast import Estimate, Forecast
from diffusers_ndc.certification.plan import Plan
from diffusers_ndc.certification.procedures import Sampling
from diffusers_ndc.certification.trial import TrialClassifier, peak_memory


def forecast_of(sigma, radii, accuracy, evaluations):
    same = [Estimate(value, value, value) for value in (evaluations / 10, evaluations, evaluations / 100)]
    return Forecast(sigma, radii, (Estimate(accuracy, accuracy, accuracy),) * len(radii), *same)


def plan_of(*forecasts):
    together = tuple(forecast_of(sigma, (0.25, 0.5), 0.5, 999.0) for sigma in (0.25, 0.5))
    return Plan(forecasts, together, 32, 64, 100.0, 2**30)


def test_the_cheapest_sigma_with_nearly_the_best_accuracy_is_recommended():
    plan = plan_of(
        forecast_of(0.25, (0.25,), 0.90, 100.0),
        forecast_of(0.5, (0.25,), 0.91, 200.0),
        forecast_of(0.25, (0.5,), 0.5, 50.0),
        forecast_of(0.5, (0.5,), 0.8, 900.0),
    )
    assert (plan.best(0.25).sigma, plan.best(0.5).sigma) == (0.25, 0.5)
    assert plan.best(0.75) is None and plan_of(forecast_of(0.25, (0.5,), 0.0, 1.0)).best(0.5) is None
    assert (plan.sigmas, plan.radii) == ([0.25, 0.5], [0.25, 0.5])
    assert plan.at(0.5, 0.25).evaluations.value == 200 and plan.at(0.5).radii == (0.25, 0.5)
    assert plan.at(1.0) is None and plan.at(0.5, 1.0) is None


def test_a_plan_is_shown_as_tables():
    text = str(plan_of(forecast_of(0.25, (0.25,), 0.9, 1234.0), forecast_of(0.5, (0.5,), 0.0, 1.0)))
    costs = "123 (123 to 123) | 1,234 (1,234 to 1,234) | 12.3 (12.3 to 12.3)"
    assert f"| 0.25 | 0.25 | 90% (90% to 90%) | {costs} |" in text
    assert "| 0.25 | all in one run |  | 100 (100 to 100) |" in text
    assert "| 0.5 | none | 0% | - | - |" in text
    assert "100 network evaluations a second; peak memory 1.00 GiB" in text and "64 noisy copies of each of 32" in text


def brightness(images):
    score = images.flatten(1).mean(1) - 0.5
    return torch.stack([-score, score], dim=1)


def grey_images(count, seed, spread=0.1):
    """Images of one brightness, dark or bright or uncertain, and their classes; a tenth are mislabelled."""
    generator = np.random.default_rng(seed)
    shades = 0.5 + generator.choice([-1, 1], count) * generator.gamma(1.0, spread, count).clip(0, 0.5)
    labels = (shades > 0.5) ^ (generator.random(count) < 0.1)
    images = torch.tensor(shades, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return images.contiguous(), labels.astype(int).tolist()


def certified(images, labels, radii):
    """Certified accuracies, and mean number of copies."""
    smoothed = SmoothedClassifier(CallableClassifier(brightness, num_classes=2), 0.2)
    certificates = smoothed.certify(images, 10, 600, 0.001, seed=1, radii=radii)
    correct = np.array([c.radius if c.label == label else -1 for c, label in zip(certificates, labels, strict=True)])
    return [np.mean(correct >= radius) for radius in radii], np.mean([c.evaluations for c in certificates])


def agree(run, accuracies, evaluations, images):
    """Whether results are within the plan's intervals, each widened by what the results may vary by."""
    for expected, accuracy in zip(run.accuracies, accuracies, strict=True):
        error = 2 * np.sqrt(accuracy * (1 - accuracy) / images)
        if not expected.low - error <= accuracy <= expected.high + error:
            return False
    return run.evaluations.low * 0.8 <= evaluations <= run.evaluations.high * 1.2


def test_a_plan_agrees_with_the_certificates_that_are_made_then():
    """On other images of the same kind, and not on images of another kind."""
    radii = [0.1, 0.3]
    sampling = Sampling.with_defaults(10, 600, 0.001, None, radii, None, None, None)
    trial = TrialClassifier(CallableClassifier(brightness, num_classes=2), 0.2).try_out(*grey_images(40, 0), 64, 0)
    plan = Plan.from_trials([trial], sampling, radii, seed=0)
    assert (plan.images, plan.copies) == (40, 64) and plan.evaluations_per_second > 0
    assert agree(plan.at(0.2), *certified(*grey_images(80, 1), radii), 80)
    assert not agree(plan.at(0.2), *certified(*grey_images(80, 1, spread=0.03), radii), 80)


def test_the_votes_of_a_trial_are_those_of_its_images():
    images, labels = grey_images(5, 2)
    base, copies = CallableClassifier(brightness, num_classes=2), []
    trial = TrialClassifier(base, 0.25).try_out(images, labels, 30, 3, copies.append)
    assert trial.counts.sum(axis=1).tolist() == trial.evaluations.tolist() == [30] * 5 and sum(copies) == 150
    assert trial.timed_evaluations == 120 and trial.seconds > 0 and trial.labels == tuple(labels)
    alone = TrialClassifier(base, 0.25).try_out(images[3:], labels[3:], 30, 3)
    assert (alone.counts == trial.counts[3:]).all()
    assert peak_memory(torch.device("cpu")) > 2**20


@pytest.mark.parametrize("radii, sought", [([0.1, 0.3, 1.0], [0.1, 0.3]), ([5.0], [])])
def test_radii_that_cannot_be_proved_are_not_sought(radii, sought):
    images, labels = grey_images(3, 0)
    trial = TrialClassifier(CallableClassifier(brightness, num_classes=2), 0.15).try_out(images, labels, 10, 0)
    sampling = Sampling.with_defaults(10, 2000, 0.001, None, radii, None, None, None)
    plan = Plan.from_trials([trial], sampling, radii, 0)
    assert plan.radii == sought and [run.radii for run in plan.forecasts] == [(radius,) for radius in sought]
    assert plan.sigmas == ([0.15] if sought else [])
