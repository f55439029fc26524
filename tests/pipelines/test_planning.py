"""`pipe.plan`: its arguments, the trial behind it, and what the embedded digits give."""

import numpy as np
import pytest
import torch
from datasets import load_dataset
from diffusers import DDPMScheduler
from helpers.networks import PROMPTS, pixel_model, tiny_text_encoder, tiny_text_unet, tiny_tokenizer, tiny_vae
from helpers.paths import MODEL

from diffusers_ndc import LatentDiffusionClassifierPipeline, NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.evaluation.figures import Report


LABELS = [0, 1, 2, 0]
QUICK = {"num_copies": 6, "n": 60, "alpha": 0.1}


def levels_for(sigma):
    return NoiseLevels((2 * sigma + 1, 2 * sigma + 3), (1.0, 0.5)).to_dict()


@pytest.fixture
def calibrated(pipe):
    """Levels for clean images, two sigmas with the usual method, and one with another method."""
    table = {"0": {"dc": levels_for(0.0)}, "0.5": {"apndc": levels_for(0.5)}}
    table |= {"0.25": {"apndc": levels_for(0.25)}, "1": {"epndc": levels_for(1.0)}}
    pipe.register_to_config(levels=table)
    return pipe


def test_the_sigmas_are_those_of_the_calibrated_levels_of_the_method(calibrated, images):
    plan = calibrated.plan([0.05, 0.3], images, LABELS, **QUICK)
    assert plan.sigmas == [0.25, 0.5] and plan.radii == [0.05, 0.3]
    assert calibrated.plan([0.05], images, LABELS, method="epndc", **QUICK).sigmas == [1.0]
    assert calibrated.plan([0.05], images, LABELS, sigmas=[0.3, 0.125], **QUICK).sigmas == [0.125, 0.3]
    for run in plan.together:
        per_copy = 2 * 3 + 1  # levels times classes, and the denoised image
        assert run.evaluations.value == pytest.approx(per_copy * run.copies.value)
        assert 10 <= run.copies.value <= 70


def test_a_plan_repeats_by_its_seed_and_is_no_batch_size_s(calibrated, images):
    first, again, other = (
        calibrated.plan([0.05], images, LABELS, seed=seed, batch_size=size, **QUICK)
        for seed, size in ((1, 64), (1, 5), (2, 64))
    )

    def estimates(plan):
        return [(run.accuracies, run.copies, run.evaluations) for run in plan.forecasts]

    assert estimates(first) == estimates(again) != estimates(other)


def test_labels_decide_what_is_correct(calibrated, images):
    predicted = [one.label for one in calibrated.predict(images, n=30, alpha=0.9, seed=1)]
    assert None not in predicted
    settings = {**QUICK, "sigmas": [0.25], "num_copies": 30}
    plan = calibrated.plan([0.0], images, predicted, **settings)
    wrong = calibrated.plan([0.0], images, [(label + 1) % 3 for label in predicted], **settings)
    assert plan.at(0.25).accuracies[0].value > 0.5 > wrong.at(0.25).accuracies[0].value


def test_more_radius_is_proved_for_fewer_images(calibrated, images):
    predicted = [one.label for one in calibrated.predict(images, n=30, alpha=0.9, seed=1)]
    plan = calibrated.plan([0.0, 0.1, 0.3], images, predicted, sigmas=[0.25], num_copies=30, n=300, alpha=0.1)
    accuracies = [plan.at(0.25, radius).accuracies[0].value for radius in plan.radii]
    assert len(accuracies) == 3
    assert all(later <= earlier + 0.1 for earlier, later in zip(accuracies, accuracies[1:], strict=False))
    assert accuracies[-1] <= accuracies[0]


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"radii": None}, TypeError, "`radii` must be"),
        ({"radii": []}, ValueError, "`radii` must be one or more"),
        ({"radii": [0.2, 0.1]}, ValueError, "`radii` must be .*ascending"),
        ({"radii": [0.1, 9.0]}, ValueError, "`radii` must be provable"),
        ({"labels": [0, 1, 2]}, ValueError, "`labels` must be one integer for each of the 4 images"),
        ({"labels": [0, 1, 2, 3]}, ValueError, "`labels` must be from 0 to 2, got 0 to 3"),
        ({"images": torch.full((4, 1, 8, 8), 2.0)}, ValueError, "`images` must have values in"),
        ({"images": torch.rand(1, 1, 8, 8), "labels": [0]}, ValueError, "`images` must be 2 images or more, got 1"),
        ({"sigmas": []}, ValueError, "`sigmas` must be one or more different noise levels above 0"),
        ({"sigmas": [0.25, 0.25]}, ValueError, "`sigmas` must be one or more different"),
        ({"sigmas": [0.0, 0.25]}, ValueError, "`sigmas` must be one or more different"),
        ({"sigmas": 0.25}, TypeError, "`sigmas` must be one or more different"),
        ({"sigmas": None, "method": "apndc-clean"}, ValueError, "`sigmas` must be given for a model without levels"),
        ({"method": "bogus"}, ValueError, "`method`"),
        ({"method": 3, "sigmas": None}, TypeError, "`method`"),
        ({"num_copies": 0}, ValueError, "`num_copies` must be a number of noisy copies from 1"),
        ({"n": 0}, ValueError, "`n` must be"),
        ({"n0": -1}, ValueError, "`n0` must be"),
        ({"alpha": 0.0}, ValueError, "`alpha`"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"seed": None}, ValueError, "`seed`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"sift": "candidates"}, ValueError, "`sift`"),
        ({"max_evaluations": 0}, ValueError, "`max_evaluations`"),
        ({"max_copies_per_radius": 0}, ValueError, "`max_copies_per_radius`"),
    ],
)
def test_bad_arguments_raise_before_any_work(calibrated, images, arguments, error, said, monkeypatch):
    monkeypatch.setattr(calibrated.unet, "forward", None)
    valid = {"radii": [0.1], "images": images, "labels": LABELS, "sigmas": [0.25], **QUICK}
    with pytest.raises(error, match=said):
        calibrated.plan(**{**valid, **arguments})


def test_latent_models_are_planned_with_given_sigmas():
    parts = {"vae": tiny_vae(), "scheduler": DDPMScheduler(), "unet": tiny_text_unet(), **pixel_model(size=16)}
    parts |= {"tokenizer": tiny_tokenizer(), "text_encoder": tiny_text_encoder()}
    pipe = LatentDiffusionClassifierPipeline(**parts, prompts=PROMPTS)
    pipe.set_progress_bar_config(disable=True)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="`sigmas` must be given"):
        pipe.plan([0.05], images, [0, 1], **QUICK)
    assert pipe.plan([0.05], images, [0, 1], sigmas=[0.25], **QUICK).sigmas == [0.25]


def close(expected, low, value, high):
    if value < expected.value:
        return expected.value - value <= np.hypot(expected.value - expected.low, high - value)
    return value - expected.value <= np.hypot(expected.high - expected.value, value - low)


@pytest.mark.slow
def test_a_plan_agrees_with_the_certificates_of_the_embedded_digits():
    """The first 500 digits were certified with these settings; the plan sees others. Sigma 1 is another matter."""
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    digits = load_dataset(str(MODEL / "data"), split="test").select(range(880, 1000))
    report = Report.from_folder(MODEL / "evaluation" / "sigma-0.25")
    settings = {name: report.run[name] for name in ("n0", "n", "alpha")}
    plan = pipe.plan(
        report.run["radii"], list(digits["image"]), digits["label"], sigmas=[0.25], num_copies=50, **settings
    )
    run = plan.at(0.25)

    def agrees(other):
        """Whether no difference is beyond both intervals' widths, combined."""
        spent = np.array([outcome.evaluations for outcome in other.outcomes])
        error = 2 * spent.std() / np.sqrt(len(spent))
        pairs = [(run.evaluations, (spent.mean() - error, spent.mean(), spent.mean() + error))]
        for radius, expected in zip(run.radii, run.accuracies, strict=True):
            low, high = other.at(radius).interval
            pairs.append((expected, (low, other.at(radius).value, high)))
        return all(close(expected, *found) for expected, found in pairs)

    assert agrees(report)
    assert not agrees(Report.from_folder(MODEL / "evaluation" / "sigma-1.0"))
