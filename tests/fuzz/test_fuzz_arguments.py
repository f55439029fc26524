"""Every public callable with hostile arguments: a sound result, or a documented refusal before any work."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.fuzzing import HOSTILE, HUGE, REFUSED, Network, attempt, cases, check_sound, spoilt
from helpers.networks import (
    PROMPTS,
    processor,
    tiny_text_encoder,
    tiny_text_unet,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
    tiny_vit,
)
from hypothesis import example, given
from hypothesis import strategies as st

from diffusers_ndc import (
    Certificate,
    DenoisedClassifier,
    DenoisedDiffusionClassifier,
    Denoiser,
    LatentDiffusionClassifierPipeline,
    NoisedDiffusionClassifier,
    NoisedDiffusionClassifierPipeline,
    NoiseLevels,
    Prediction,
    SiftingRule,
    SmoothedClassifier,
    embed_prompts,
)


IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LEVELS = NoiseLevels((2.0, 4.0), (1.0, 0.5))
VIT, PROCESSOR = tiny_vit(), processor()


class Threshold(torch.nn.Module):
    """A base classifier of three classes that costs nothing."""

    num_classes = 3

    def forward(self, images):
        score = images.flatten(1).mean(1) - 0.5
        return torch.stack([-score, score, score - 1], dim=1)


@pytest.fixture(scope="module")
def threshold():
    classifier = Threshold()
    return classifier, Network(classifier)


@pytest.fixture(scope="module")
def model():
    """A pipeline, and the count of its network's calls."""
    unet = tiny_unet()
    pipe = NoisedDiffusionClassifierPipeline(unet, DDPMScheduler(), id2label={0: "a", 1: "b", 2: "c"}, null_class=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe, Network(unet)


@pytest.fixture(scope="module")
def latent():
    """A latent pipeline with a pixel-space denoiser in front, and the count of its networks' calls."""
    parts = {
        "vae": tiny_vae(),
        "scheduler": DDPMScheduler(),
        "unet": tiny_text_unet(),
        "tokenizer": tiny_tokenizer(),
        "text_encoder": tiny_text_encoder(),
        "pixel_unet": tiny_unet(None, sample_size=16),
        "pixel_scheduler": DDPMScheduler(),
    }
    pipe = LatentDiffusionClassifierPipeline(**parts, prompts=PROMPTS)
    pipe.set_progress_bar_config(disable=True)
    return pipe, parts, Network(*(parts[name] for name in ("vae", "unet", "pixel_unet")))


SMOOTHED = {"images": IMAGES, "n": 4, "alpha": 0.1, "seed": 0, "on_copies": None}
CERTIFY = {**SMOOTHED, "n0": 2, "radii": None, "resolution": None, "bound": None}
WATCHED = {"image": IMAGES[0], "n0": 2, "n": 4, "alpha": 0.1, "seed": 0, "on_copies": None}


def check_certificates(certificates) -> None:
    if certificates is not REFUSED:
        for certificate in [certificates] if isinstance(certificates, Certificate) else certificates:
            check_sound(certificate)


def check_predictions(predictions) -> None:
    if predictions is not REFUSED:
        for prediction in [predictions] if isinstance(predictions, Prediction) else predictions:
            assert prediction.label is None or 0 <= prediction.label < 3
            assert sum(prediction.counts.values()) >= 1


@cases(600)
@given(made=spoilt(["sigma", "grid"]), bad=spoilt(CERTIFY))
def test_certify_of_any_classifier(threshold, made, bad):
    classifier, network = threshold
    made, how = {"sigma": 0.25, **made}, {**CERTIFY, **bad}
    overflow = FloatingPointError if made["sigma"] is HUGE else ()  # in float32
    check_certificates(attempt(lambda: SmoothedClassifier(classifier, **made).certify(**how), network, overflow))


@cases(300)
@given(bad=spoilt(CERTIFY))
def test_certify_each_of_any_classifier(threshold, bad):
    classifier, network = threshold
    certificates = attempt(lambda: SmoothedClassifier(classifier, 0.25).certify_each(**{**CERTIFY, **bad}), network)
    if certificates is not REFUSED:  # what is left to refuse is an image
        certificates = attempt(lambda: [certificate for _, certificate in certificates])
        assert certificates is not REFUSED or "images" in bad
        check_certificates(certificates)


@cases(300)
@given(bad=spoilt(WATCHED))
def test_certify_iter_of_any_classifier(threshold, bad):
    classifier, network = threshold
    check_certificates(
        attempt(lambda: SmoothedClassifier(classifier, 0.25).certify_iter(**{**WATCHED, **bad}), network)
    )


@cases(300)
@given(bad=spoilt(SMOOTHED))
def test_predict_of_any_classifier(threshold, bad):
    classifier, network = threshold
    check_predictions(attempt(lambda: SmoothedClassifier(classifier, 0.25).predict(**{**SMOOTHED, **bad}), network))


@cases(100)
@given(
    logits=st.sampled_from(
        [
            *(None, 0.5, "logits", {}, [[0.0, 1.0]] * 2, torch.zeros(()), torch.zeros(0), torch.zeros(2)),
            *(torch.zeros(2, 0), torch.zeros(1, 3), torch.zeros(2, 3, 1), torch.zeros(2, 1), torch.zeros(2, 3)),
            *(torch.full((2, 3), math.nan), torch.full((2, 3), math.inf), torch.zeros(2, 3, device="meta")),
            *(torch.zeros(2, 3, dtype=dtype) for dtype in (torch.bool, torch.long, torch.half, torch.complex64)),
        ]
    ),
    bound=st.sampled_from(["clopper-pearson", "empirical-bernstein", "runner-up", "mixture"]),
)
def test_a_base_classifier_that_gives_no_logits(logits, bound):
    smoothed = SmoothedClassifier(lambda images: logits, 0.25)
    how = {"images": IMAGES[:1], "n0": 2, "n": 2, "alpha": 0.1, "bound": bound}
    check_certificates(attempt(lambda: smoothed.certify(**how), also=FloatingPointError))


CALL = {"sigma": 0.25, "method": None, "levels": LEVELS, "batch_size": 64, "seed": 0}
DRAWN = {"images": IMAGES, **CALL, "generator": None, "n": 4, "alpha": 0.1}


@cases(250)
@given(bad=spoilt([*CALL, "images", "generator"]))
def test_call_of_the_pipeline(model, bad):
    pipe, network = model
    output = attempt(lambda: pipe(**{"images": IMAGES, **CALL, "sigma": 0.0, **bad}), network)
    if output is not REFUSED:
        assert all(0 <= label < 3 for label in output.labels) and len(output.labels) == len(output.logits)
        assert output.logits.isfinite().all() and torch.allclose(output.probs.sum(1), torch.ones(len(output.labels)))


@cases(250)
@given(bad=spoilt(DRAWN))
def test_predict_of_the_pipeline(model, bad):
    pipe, network = model
    check_predictions(attempt(lambda: pipe.predict(**{**DRAWN, **bad}), network))


@cases(400)
@given(bad=spoilt([*DRAWN, "n0", "radii", "resolution", "bound", "grid"]))
def test_certify_of_the_pipeline(model, bad):
    pipe, network = model
    check_certificates(attempt(lambda: pipe.certify(**{**DRAWN, "n0": 2, **bad}), network))


@cases(250)
@given(bad=spoilt([*CALL, "image", "generator", "n0", "n", "alpha", "grid"]))
def test_certify_iter_of_the_pipeline(model, bad):
    pipe, network = model
    how = {"image": IMAGES[0], **CALL, "n0": 2, "n": 4, "alpha": 0.1, **bad}
    check_certificates(attempt(lambda: pipe.certify_iter(**how), network))


CALIBRATE = {
    "images": IMAGES.repeat(2, 1, 1, 1)[:3],
    "labels": [0, 1, 2],
    "sigma": 0.25,
    "num_levels": 1,
    "method": None,
    "candidates": LEVELS,
    "quantile": 0.998,
    "batch_size": 64,
    "seed": 0,
}


@cases(250)
@given(bad=spoilt(CALIBRATE))
def test_calibrate(model, bad):
    pipe, network = copy.copy(model[0]), model[1]
    levels = attempt(lambda: pipe.calibrate(**{**CALIBRATE, **bad}), network)
    assert levels is REFUSED or NoiseLevels.from_dict(levels.to_dict()) == levels


@cases(300)
@given(bad=spoilt(CALL, most=2), called=spoilt(["images", "seeds"]))
@example({}, {"seeds": "dc"})
@example({}, {"seeds": [None, None]})  # was one constant seed for all
def test_the_classifier_as_a_module(model, bad, called):
    pipe, network = model
    how, called = {**CALL, **bad}, {"images": IMAGES, **called}
    classifier = attempt(lambda: pipe.classifier(**how), network)
    again = attempt(lambda: NoisedDiffusionClassifier(pipe.denoiser, **how), network)
    assert (classifier is REFUSED) == (again is REFUSED)
    if classifier is not REFUSED:
        with torch.no_grad():
            logits = attempt(lambda: classifier(**called), network)
        assert logits is REFUSED or (logits.shape == (len(called["images"]), 3) and logits.isfinite().all())


@cases(250)
@given(
    bad=spoilt(
        ["unet", "scheduler", "num_classes", "null_class", "unconditional_unet", "prompt_embeddings", "vae"], most=2
    ),
    called=spoilt(["x_sigma", "sigma", "class_labels"]),
)
@example({}, {"sigma": 2**63})
def test_denoiser(model, bad, called):
    pipe, network = model
    denoiser = attempt(lambda: Denoiser(**{"unet": pipe.unet, "scheduler": pipe.scheduler, **bad}), network)
    if denoiser is not REFUSED:
        called = {"x_sigma": IMAGES, "sigma": 1.0, "class_labels": torch.tensor([0, 1]), **called}
        with torch.no_grad():
            x0 = attempt(lambda: denoiser(**called), network)
        assert x0 is REFUSED or (x0.shape == called["x_sigma"].shape and x0.isfinite().all())


@cases(200)
@given(bad=spoilt(["unet", "scheduler", "unconditional_unet", "id2label", "null_class", "levels"]))
def test_pipeline(model, bad):
    pipe, network = model
    made = attempt(
        lambda: NoisedDiffusionClassifierPipeline(**{"unet": pipe.unet, "scheduler": pipe.scheduler, **bad}), network
    )
    assert made is REFUSED or made.classifier(0.25).num_classes in (3, 4)


@cases(200)
@given(
    bad=spoilt(["denoiser", "classifier", "image_processor", "sigma", "batch_size"]),
    images=st.sampled_from([IMAGES, *HOSTILE]),
)
def test_denoised_classifier(model, bad, images):
    pipe, network = model
    parts = {"denoiser": pipe.denoiser, "classifier": VIT, "image_processor": PROCESSOR, "sigma": 0.25}
    classifier = attempt(lambda: DenoisedClassifier(**{**parts, **bad}), network)
    if classifier is not REFUSED:
        with torch.no_grad():
            logits = attempt(lambda: classifier(images), network)
        assert logits is REFUSED or logits.shape == (2, 3)


@cases(200)
@given(bad=spoilt(["denoiser", "classifier", "sigma"]), called=spoilt(["images", "seeds"]))
def test_denoised_diffusion_classifier(model, bad, called):
    pipe, network = model
    parts = {"denoiser": pipe.denoiser, "classifier": pipe.classifier(0.0, levels=LEVELS), "sigma": 0.25}
    classifier = attempt(lambda: DenoisedDiffusionClassifier(**{**parts, **bad}), network)
    if classifier is not REFUSED:
        with torch.no_grad():
            logits = attempt(lambda: classifier(**{"images": IMAGES, **called}), network)
        assert logits is REFUSED or logits.shape == (2, 3)


LARGE = IMAGES.repeat(1, 1, 2, 2)


@cases(150)
@given(bad=spoilt([*DRAWN, "n0", "radii", "resolution", "bound", "grid"]))
def test_certify_of_the_latent_pipeline(latent, bad):
    pipe, _, network = latent
    check_certificates(attempt(lambda: pipe.certify(**{**DRAWN, "images": LARGE, "n0": 2, **bad}), network))


@cases(100)
@given(bad=spoilt([*CALL, "images", "generator"]))
def test_call_of_the_latent_pipeline(latent, bad):
    pipe, _, network = latent
    output = attempt(lambda: pipe(**{**CALL, "images": LARGE, "sigma": 0.0, **bad}), network)
    assert output is REFUSED or all(0 <= label < 3 for label in output.labels)


@cases(150)
@given(
    bad=spoilt(
        ["vae", "scheduler", "unet", "tokenizer", "text_encoder", "pixel_unet", "pixel_scheduler"]
        + ["transformer", "id2label", "prompts", "null_class", "levels"]
    )
)
def test_latent_pipeline(latent, bad):
    _, parts, network = latent
    attempt(lambda: LatentDiffusionClassifierPipeline(**{**parts, "prompts": PROMPTS, **bad}), network)


@cases(150)
@given(bad=spoilt(["prompts", "tokenizer", "text_encoder"]), names=st.sampled_from([None, *HOSTILE]))
def test_prompts(latent, bad, names):
    pipe, parts, network = latent
    how = {"prompts": PROMPTS, "tokenizer": parts["tokenizer"], "text_encoder": parts["text_encoder"], **bad}
    embedded = attempt(lambda: embed_prompts(**how))
    assert embedded is REFUSED or embedded.shape == (len(how["prompts"]) + 1, 20, 16)
    attempt(lambda: copy.copy(pipe).set_prompts(how["prompts"], names), network)


LEVELS_ARGUMENTS = {
    "sigmas": (1.0, 2.0),
    "weights": (1.0, 0.5),
    "thresholds": (3.0,),
    "relative": False,
    "max_classes": 2,
    "smoothing_sigma": 0.25,
    "method": "apndc",
}


def build_levels(thresholds, relative, max_classes, **settings):
    return NoiseLevels(**settings, sifting=SiftingRule(thresholds, relative, max_classes))


@cases(500)
@given(
    bad=spoilt(LEVELS_ARGUMENTS),
    sifted=spoilt(["threshold", "max_classes", "relative"]),
    factor=st.sampled_from(HOSTILE),
    times=st.sampled_from(HOSTILE),
)
@example({"smoothing_sigma": math.nan}, {}, 1.0, 1)
def test_noise_levels(bad, sifted, factor, times):
    levels = attempt(lambda: build_levels(**{**LEVELS_ARGUMENTS, **bad}))
    again = attempt(lambda: NoiseLevels.from_dict({**LEVELS_ARGUMENTS, **bad}))
    if "thresholds" not in bad or bad["thresholds"] is not None:  # a saved rule without thresholds is no rule
        assert (levels is REFUSED) == (again is REFUSED)
    for made in (
        levels,
        attempt(lambda: LEVELS.sifted(**{"threshold": 3.0, **sifted})),
        attempt(lambda: LEVELS.sifted(3.0).loosened(factor)),
        attempt(lambda: LEVELS.repeat(times)),
    ):
        check_levels(made)


def check_levels(levels) -> None:
    """Levels that came to be are ones that a classifier can use, and survive JSON."""
    if levels is not REFUSED:
        assert all(0 < sigma < math.inf for sigma in levels.sigmas)
        assert all(0 <= weight < math.inf for weight in levels.weights) and any(levels.weights)
        assert len(levels.sigmas) == len(levels.weights) <= 100_000
        assert NoiseLevels.from_dict(json.loads(json.dumps(levels.to_dict(), allow_nan=False))) == levels


@cases(500)
@given(
    log=spoilt(["sigma_min", "sigma_max", "num_levels", "weighting"]),
    quantile=spoilt(["tau", "num_levels", "weighting", "p_mean", "p_std"]),
    reference=spoilt(["tau", "num_points", "weighting", "method"]),
)
@example({}, {"p_std": HUGE}, {"weighting": np.array([0.25, 0.5])})
def test_grids_of_noise_levels(log, quantile, reference):
    check_levels(attempt(lambda: NoiseLevels.log_grid(**{"sigma_min": 0.5, "sigma_max": 5.0, **log})))
    check_levels(attempt(lambda: NoiseLevels.quantile_grid(**{"tau": 0.5, "num_levels": 3, **quantile})))
    check_levels(attempt(lambda: NoiseLevels.reference_grid(**{"tau": 0.5, "num_points": 9, **reference})))
