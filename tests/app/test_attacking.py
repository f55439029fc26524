"""Attacks on certificates, step by step; changes of a size; and the noise that follows from a radius."""

import PIL.Image
import pytest
import torch
from helpers.space import DIGITS
from helpers.space import digits as digits

from diffusers_ndc import NoiseLevels
from diffusers_ndc.app import attacking, changes
from diffusers_ndc.app.certifying import as_tensor
from diffusers_ndc.app.sigmas import largest, sigma_for, usable_sigmas


@pytest.fixture(scope="module")
def certified(digits):
    """A test digit, a one, and its certificate."""
    image = as_tensor(digits, PIL.Image.open(DIGITS[1]))
    return image, digits.pipe.certify(image, 0.25, n0=20, n=100, bound="mixture", seed=0)


def test_nothing_falls_inside_the_radius_and_far_outside_the_digit_falls(digits, certified, monkeypatch):
    monkeypatch.setattr(attacking, "MULTIPLES", (1.0,))
    monkeypatch.setattr(attacking, "FURTHER", (10.0, 20.0))
    image, certificate = certified
    frames = list(attacking.attack(digits, image, certificate))
    inside, outside = frames[-1]  # nothing is tried beyond the first that falls
    assert inside.outcome == "kept" and inside.label == 1 and inside.distance < certificate.radius
    assert outside.outcome == "fallen" and outside.label not in (1, None)
    assert certificate.radius < outside.distance < 10 * certificate.radius
    for attempt in (inside, outside):
        assert sum(attempt.votes.values()) == attacking.JUDGES
        assert (attempt.image - image).norm().item() == pytest.approx(attempt.distance, rel=1e-5)
        assert 0 <= attempt.image.min() and attempt.image.max() <= 1
    steps = [frame[-1].step for frame in frames if len(frame) == 1 and not frame[-1].votes]
    assert steps == list(range(1, attacking.STEPS + 1))


def test_an_attack_has_an_end_in_time(digits, certified, monkeypatch):
    monkeypatch.setattr(attacking.limits, "SECONDS", 0)
    ((only,),) = list(attacking.attack(digits, *certified))
    assert only.step == 1 and only.outcome is None


def test_a_judgement_is_that_of_predict(digits, certified):
    assert attacking.judged({1: 24}) == 1 and attacking.judged({1: 13, 7: 11}) is None
    (prediction,) = attacking.SmoothedClassifier(digits.pipe.classifier(0.25), 0.25).predict(certified[0][None], 24)
    assert attacking.judged(prediction.counts) == prediction.label == 1


def test_the_attack_follows_the_sifter_or_two_levels(digits):
    assert attacking.surrogate(digits, 0.25).settings["method"] == "features"
    without = attacking.surrogate(digits, 0.3)  # a noise for which there is no sifter
    assert without.settings["method"] == "apndc"
    assert NoiseLevels.from_dict(without.settings["levels"]).sigmas == pytest.approx((3.6, 7.2))


@pytest.mark.parametrize("norm", [0.1, 1.0, 5.0])
def test_changes_have_their_size_after_clipping(certified, norm):
    image, _ = certified
    changed = changes.with_norm(image, changes.random_direction(image), norm)
    assert (changed - image).norm().item() == pytest.approx(norm, rel=1e-4)
    assert 0 <= changed.min() and changed.max() <= 1


def test_a_change_without_room_is_the_largest_one():
    changed = changes.with_norm(torch.ones(1, 2, 2), -torch.ones(1, 2, 2), 5.0)
    assert torch.equal(changed, torch.zeros(1, 2, 2))


def test_the_worst_change_is_that_of_the_nearest_attack():
    image = torch.zeros(1, 1, 2)
    found = [(1.0, image + 0.1), (3.0, image + 0.3)]
    assert changes.worst_direction([], image, 1.0) is None
    for size, expected in ((0.25, 0.1), (1.5, 0.1), (2.5, 0.3), (8.0, 0.3)):
        assert changes.worst_direction(found, image, size).max() == pytest.approx(expected)


def test_the_noise_is_the_smallest_that_can_prove_the_radius(digits):
    assert usable_sigmas(digits.pipe) == digits.sigmas == [0.25, 0.5, 1.0]
    chosen = [sigma_for(radius, digits.sigmas, 1000) for radius in (0.05, 0.45, 0.55, 0.9, 1.9, 5.0)]
    assert chosen == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert sigma_for(0.45, digits.sigmas, 100) == 0.5  # fewer copies prove less with the same noise
    for sigma in digits.sigmas:
        assert largest(sigma, 1000) == pytest.approx(sigma * 2.433, abs=0.01)
