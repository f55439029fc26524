"""A pipeline with a sifter: calibrated, saved, loaded, certifying, replayed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from helpers.networks import tiny_dit, tiny_unet, tiny_vae
from helpers.sifters import random_sift, shade_pipe, shades, sifter_of

from diffusers_ndc import (
    FeatureClassifier,
    LatentDiffusionClassifierPipeline,
    NoisedDiffusionClassifierPipeline,
    NoiseLevels,
    SmoothedClassifier,
    attack,
)
from diffusers_ndc.diffusion import ClassSifter
from diffusers_ndc.diffusion.sifter_fitting import SiftFitting, fit_sift


CERTIFY = {"sigma": 0.25, "n0": 5, "n": 30, "alpha": 0.05, "seed": 3}


@pytest.fixture(scope="module")
def calibrated():
    """A pipeline whose sifter and levels were fitted for two noises."""
    pipe = shade_pipe()
    images, labels = shades(24)
    for sigma in (0.25, 0.5):
        pipe.calibrate(images, labels, sigma, num_levels=3, num_copies=2)
    # the features of shades are too clear to need a level besides: a weight is given here, not fitted
    sift, levels = pipe.sifter.find(0.25), pipe.classifier(0.25).levels
    level_zero = {"loss_weight": 0.5, "levels": replace(levels, sifting=None).to_dict()}
    pipe.register_modules(sifter=pipe.sifter.with_sift(sift.with_rule(level_zero=level_zero)))
    return pipe


@pytest.fixture
def image():
    return shades(1, seed=9)[0][0]


def test_the_sifter_is_used_where_it_was_fitted(calibrated):
    sifter = calibrated.sifter
    assert calibrated.classifier(0.25).sift is sifter.find(0.25, "apndc")
    assert calibrated.classifier(0.25).levels == NoiseLevels.from_dict(calibrated.config.levels["0.25"]["apndc"])
    assert calibrated.classifier(0.25, sift=False).sift is None
    for arguments in ({"sigma": 0.1}, {"sigma": 0.25, "method": "epndc"}, {"sigma": 0.0}):
        assert calibrated.classifier(**arguments).sift is None
        with pytest.raises(ValueError, match="`sift` must be False or None without a sifter"):
            calibrated.classifier(**arguments, sift="candidates")
    levels = NoiseLevels((1.0, 2.0), (1.0, 1.0))
    assert calibrated.classifier(0.25, levels=levels).sift is None
    assert calibrated.classifier(0.25, levels=levels, sift="candidates").sift is sifter.find(0.25)
    with pytest.raises(ValueError, match="`sift` must be 'candidates', 'scores', False or None, got True"):
        calibrated.classifier(0.25, sift=True)


def test_copies_that_are_lost_anyway_do_not_widen_the_gap():
    """A tenth of the labels is wrong: no gap classifies these copies as they are labelled."""
    images, labels = shades(60)
    wrong = [(label + 1) % 3 if place % 10 == 0 else label for place, label in enumerate(labels)]
    pipe = shade_pipe()
    pipe.calibrate(images, wrong, 0.25, num_levels=3, num_copies=2)
    by_all = fit_sift(pipe.classifier(0.25, sift=False), images, np.array(wrong), SiftFitting(num_copies=2))
    assert pipe.sifter.find(0.25).gap < 0.5 * by_all.sift.gap


def test_scores_that_count_have_a_gap_of_their_own_and_never_a_wider_one():
    images, labels = shades(60)
    wrong = [(label + 1) % 3 if place % 5 == 0 else label for place, label in enumerate(labels)]
    gaps = []
    for scores_quantile in (0.9, 0.995, 1.0):
        pipe = shade_pipe()
        pipe.calibrate(images, wrong, 0.25, num_levels=3, num_copies=2, scores_quantile=scores_quantile)
        gaps.append(pipe.classifier(0.25, sift="scores").sift.gap)
    widest = pipe.classifier(0.25).sift.gap
    assert gaps == sorted(gaps) and gaps[0] < 0.1 * gaps[1] and gaps[-1] <= widest
    pipe.calibrate(images, wrong, 0.25, num_levels=3, num_copies=2, sift_quantile=0.8, scores_quantile=1.0)
    assert pipe.classifier(0.25, sift="scores").sift.gap == pipe.classifier(0.25).sift.gap < widest


def test_scores_bring_their_own_levels(calibrated):
    found = calibrated.sifter.find(0.25)
    classifier = calibrated.classifier(0.25, sift="scores")
    assert classifier.levels == NoiseLevels.from_dict(found.level_zero["levels"])
    assert classifier.sift.loss_weight == found.level_zero["loss_weight"] > 0 and classifier.sift.min_classes == 1
    assert classifier.sift.gap == found.gap, "a sifter that was saved without a gap for the scores"
    assert classifier.settings["sifter"] != calibrated.classifier(0.25).settings["sifter"]


def test_every_way_of_loading_keeps_the_sifter(calibrated, tmp_path):
    calibrated.save_pretrained(tmp_path)
    expected = calibrated.classifier(0.25).settings
    load = NoisedDiffusionClassifierPipeline.from_pretrained
    pipes = [
        load(tmp_path),
        load(tmp_path, low_cpu_mem_usage=False),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
        NoisedDiffusionClassifierPipeline.from_pipe(calibrated),
    ]
    assert [pipe.classifier(0.25).settings for pipe in pipes] == [expected] * 4
    half = load(tmp_path, torch_dtype=torch.bfloat16)
    assert half.classifier(0.25).settings["sifter"] == expected["sifter"]
    assert half.to(torch.float16).sifter.all_sifts()[0].weight.dtype == torch.float32


def test_a_model_on_the_hub_keeps_its_sifter(calibrated, hub):
    calibrated.push_to_hub("me/sifted")
    pulled = NoisedDiffusionClassifierPipeline.from_pretrained("me/sifted")
    assert pulled.classifier(0.5).settings == calibrated.classifier(0.5).settings


def test_save_calibration_leaves_the_networks_alone(calibrated, tmp_path):
    plain = NoisedDiffusionClassifierPipeline(tiny_unet(), DDPMScheduler(), null_class=3)
    with pytest.raises(FileNotFoundError, match="`save_directory`"):
        calibrated.save_calibration(tmp_path)
    plain.save_pretrained(tmp_path)
    weights = (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    calibrated.save_calibration(tmp_path)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == weights
    loaded = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert loaded.classifier(0.25).settings == calibrated.classifier(0.25).settings


def test_a_calibration_that_is_cut_off_leaves_the_folder_as_it_was(calibrated, tmp_path, monkeypatch):
    NoisedDiffusionClassifierPipeline(tiny_unet(), DDPMScheduler(), null_class=3).save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(NoisedDiffusionClassifierPipeline, "save_config", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrated.save_calibration(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("sift", ["candidates", "scores"])
def test_certificates_name_the_sifter_and_replay(calibrated, image, sift):
    certificate = calibrated.certify(image, **CERTIFY, sift=sift)
    assert certificate.base_classifier["sifter"] == calibrated.classifier(0.25, sift=sift).settings["sifter"]
    assert certificate.agrees(calibrated.replay(image, certificate)) and certificate.verify()


def test_certificates_of_features_alone_replay(calibrated, image):
    classifier = calibrated.classifier(0.25, method="features")
    assert isinstance(classifier, FeatureClassifier)
    certificate = calibrated.certify(image, **CERTIFY, method="features")
    assert certificate.base_classifier["method"] == "features"
    assert certificate.evaluations == sum(certificate.counts.values()) + sum(certificate.selection_counts.values())
    assert certificate.agrees(calibrated.replay(image, certificate))
    for sigma in (0.0, 0.1):
        with pytest.raises(ValueError, match="`method` must be a likelihood without a sifter"):
            calibrated.classifier(sigma, method="features")


def test_features_of_images_whose_classes_they_tell_are_classified_correctly(calibrated):
    images, labels = shades(30, seed=5)
    noisy = images + 0.25 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = calibrated.classifier(0.25, method="features")(noisy).argmax(1)
    assert (predicted == torch.tensor(labels)).double().mean() > 0.8


def test_a_replay_with_another_sifter_is_refused(calibrated, image):
    certificate = calibrated.certify(image, **CERTIFY)
    other = NoisedDiffusionClassifierPipeline.from_pipe(calibrated, sifter=None)
    other.register_modules(sifter=sifter_of(random_sift(gap=calibrated.sifter.find(0.25).gap, min_classes=2)))
    with pytest.raises(ValueError, match="sifter"):
        other.replay(image, certificate)
    other.register_modules(sifter=None)
    with pytest.raises(ValueError, match="sift"):
        other.replay(image, certificate)


def test_certificates_from_before_the_sifter_still_replay(calibrated, image):
    plain = NoisedDiffusionClassifierPipeline.from_pipe(calibrated, sifter=None)
    plain.register_modules(sifter=None)
    certificate = plain.certify(image, **CERTIFY)
    assert "sifter" not in certificate.base_classifier
    assert certificate.agrees(calibrated.replay(image, certificate))


def test_certificates_without_smoothing_are_not_sifted(calibrated, image):
    certificate = calibrated.certify_unsmoothed(image, n0=2, n=4, seed=0)
    assert "sifter" not in certificate.base_classifier


def test_attacks_find_a_gradient_through_the_sift(calibrated, image):
    """A sift that leaves one class would hide the others from an attack by the likelihood alone."""
    pipe = NoisedDiffusionClassifierPipeline.from_pipe(calibrated)
    sift = calibrated.sifter.find(0.25).with_rule(gap=0.0, min_classes=1)
    pipe.register_modules(sifter=sifter_of(sift))
    smoothed = SmoothedClassifier(pipe.classifier(0.25), 0.25)
    label = smoothed.predict(image[None], n=20, seed=0)[0].label
    inside = attack(smoothed, image, label, radius=0.01, steps=4, draws=4, n=20, seed=0)
    outside = attack(smoothed, image, label, radius=6.0, steps=10, draws=4, n=20, seed=0)
    assert inside.prediction.label == label and outside.prediction.label not in (label, None)


@pytest.mark.parametrize(
    "labels, match",
    [
        ([0, 1, 2] * 3 + [0], None),
        ([0, 1] * 5, r"`labels` must have .*got none of the classes \[2\]"),
        ([0, 1] * 4 + [0, 2], r"`labels` must have at least two .*got one of the classes \[2\]"),
    ],
)
def test_ten_images_are_enough_or_refused_with_the_reason(labels, match):
    pipe, images = shade_pipe(), shades(10)[0]
    if match is None:
        pipe.calibrate(images, labels, num_levels=2)
        assert pipe.sifter.find(0.25) is not None
        return
    with pytest.raises(ValueError, match=match):
        pipe.calibrate(images, labels)
    assert pipe.sifter is None and not pipe.config.levels


def test_features_of_cells_are_saved_and_replay(image, tmp_path):
    """A sifter whose features are of cells is another one, and stays what it is through saving and loading."""
    pipe = shade_pipe()
    images, labels = shades(24)
    with pytest.raises(ValueError, match="`cells` must be"):
        pipe.calibrate(images, labels, 0.25, num_levels=2, cells=(0, 1))
    pipe.calibrate(images, labels, 0.25, num_levels=2, num_copies=1)
    whole = pipe.sifter.find(0.25)
    pipe.calibrate(images, labels, 0.25, num_levels=2, num_copies=1, cells=(1, 2))
    sift = pipe.sifter.find(0.25)
    assert (whole.cells, sift.cells, len(sift.mean)) == ((1, 1), (1, 2), 2 * len(whole.mean))
    assert "cells" not in whole.config and sift.settings["hash"] != whole.settings["hash"]
    pipe.sifter.save_pretrained(tmp_path)
    loaded = ClassSifter.from_pretrained(tmp_path).find(0.25)
    assert (loaded.cells, loaded.settings) == (sift.cells, sift.settings)
    for certificate in (pipe.certify(image, **CERTIFY), pipe.certify(image, **CERTIFY, method="features")):
        assert certificate.agrees(pipe.replay(image, certificate))


def test_calibrating_by_losses_removes_the_sifter(calibrated):
    pipe = NoisedDiffusionClassifierPipeline.from_pipe(calibrated)
    images, labels = shades(12)
    pipe.calibrate(images, labels, 0.25, num_levels=2, sift="losses")
    assert pipe.sifter.find(0.25) is None and pipe.sifter.find(0.5) is not None
    assert pipe.classifier(0.25).levels.sifting is not None
    pipe.calibrate(images, labels, 0.5, num_levels=2, sift=None)
    assert pipe.sifter is None and pipe.classifier(0.5).levels.sifting is None
    with pytest.raises(ValueError, match="`sift` must be 'features', 'losses' or None"):
        pipe.calibrate(images, labels, sift="both")


def test_a_sifter_of_another_model_is_refused():
    with pytest.raises(ValueError, match="`sift` must have 3 classes"):
        NoisedDiffusionClassifierPipeline(
            tiny_unet(), DDPMScheduler(), null_class=3, sifter=sifter_of(random_sift(num_classes=5))
        )


def test_latent_models_and_dit_are_sifted():
    pipe = LatentDiffusionClassifierPipeline(tiny_vae(), DDPMScheduler(), transformer=tiny_dit(num_layers=4))
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(12) % 3
    images = (0.4 * labels).view(-1, 1, 1, 1).expand(-1, 1, 16, 16) + 0.1 * torch.rand(12, 1, 16, 16)
    pipe.calibrate(images, labels.tolist(), num_levels=2, num_copies=2)
    classifier = pipe.classifier()
    assert classifier.sift.blocks == ("transformer_blocks.2", "transformer_blocks.3")
    classifier(images[:2], seeds=[1, 2])
    assert 2 * (1 + 2) <= classifier.evaluations <= 2 * (1 + 3 * len(classifier.levels))
    assert len(pipe(images, seed=0).labels) == 12


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64"])
def test_labels_may_be_of_any_type_of_integers(calibrated, dtype):
    images, labels = shades(12)
    small, plain = shade_pipe(), shade_pipe()
    arguments = {"num_levels": 2, "num_copies": 1}
    levels = small.calibrate(images, np.array(labels, dtype), 0.25, **arguments)
    assert levels == plain.calibrate(images, labels, 0.25, **arguments)
    assert small.sifter.find(0.25).config == plain.sifter.find(0.25).config
