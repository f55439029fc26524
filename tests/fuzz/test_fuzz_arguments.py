"""Smoothing and pipelines with hostile arguments: what is valid is accepted, all else is refused before any work."""

import copy
import math

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.acceptable import (
    ALPHA,
    BATCH_SIZE,
    BOUND,
    CALLBACK,
    COUNT,
    GENERATOR,
    GRID,
    NOISE,
    NOISE_LEVELS,
    POSITIVE_COUNT,
    RADII,
    SEED,
    SIGMA,
    clean,
    grid_fits,
    integer,
    number,
    numbers_of,
    one_of,
    only,
    optional,
    sequence,
    settings_fit,
)
from helpers.fuzzing import FAILED, HUGE, REFUSED, Network, Subject, attempt, cases, check_sound, is_result
from helpers.models import IMAGES, LARGE_IMAGES, LEVELS, latent_model, pixel_model
from hypothesis import given
from hypothesis import strategies as st

from diffusers_ndc import CallableClassifier, Certificate, NoiseLevels, Prediction, SmoothedClassifier
from diffusers_ndc.certification.bound_names import BOUNDS


class Threshold(torch.nn.Module):
    """A base classifier of three classes that costs nothing."""

    num_classes = 3

    def forward(self, images):
        score = images.flatten(1).mean(1) - 0.5
        return torch.stack([-score, score, score - 1], dim=1)


MODULE = Threshold()
THRESHOLD, CALLS = CallableClassifier(MODULE, num_classes=3), Network(MODULE)


def check_certificates(certificates) -> None:
    if is_result(certificates):
        for certificate in [certificates] if isinstance(certificates, Certificate) else certificates:
            check_sound(certificate)


def check_predictions(predictions) -> None:
    if is_result(predictions):
        for prediction in [predictions] if isinstance(predictions, Prediction) else predictions:
            assert prediction.label is None or 0 <= prediction.label < 3
            assert sum(prediction.counts.values()) >= 1


def images_one_by_one(values) -> bool | None:
    """Lists of images are accepted; whether an empty collection of anything is, is left open."""
    if isinstance(values, torch.Tensor) and not values.is_meta:
        return clean(None, None, None, None)(values) if values.numel() else None
    if isinstance(values, (list, tuple)):
        return all(clean(None, None, None)(value) for value in values)
    return None if hasattr(values, "__len__") and getattr(values, "shape", None) != () and not len(values) else False


SMOOTHED = {"images": IMAGES, "n": 8, "alpha": 0.5, "seed": 0, "on_copies": None}
SMOOTHED_RULES = {
    "images": clean(None, None, None, None),
    "n": POSITIVE_COUNT,
    "alpha": ALPHA,
    "seed": optional(SEED),
    "on_copies": CALLBACK,
}
STOPPING = {"radii": None, "resolution": None, "bound": None, "max_copies_per_radius": None, "max_evaluations": None}
CERTIFY = {**SMOOTHED, "n0": 2, **STOPPING}
CERTIFY_RULES = {
    **SMOOTHED_RULES,
    "n0": optional(COUNT),
    "radii": RADII,
    "resolution": optional(NOISE),
    "bound": BOUND,
    "max_copies_per_radius": optional(NOISE),
    "max_evaluations": optional(integer(1, 2**53)),
}
EXTRA = {
    "images": [IMAGES[:1], IMAGES.double(), IMAGES.half(), IMAGES.expand(-1, 3, -1, -1), IMAGES - 1, IMAGES / 0],
    "radii": [[0.0], (0.0, 0.1), [0.1, 0.2], [0.1, 0.1], [0.2, 0.1], [-0.1, 0.1], [0.1, math.inf]],
    "resolution": [0.1],
    "max_copies_per_radius": [1, 50_000.0],
    "max_evaluations": [1, 100],
    "bound": sorted(BOUNDS),
    "on_copies": [lambda count: None],
    "grid": [16, 1024, 1025],
    "generator": [torch.Generator()],
}


def is_array(value) -> bool:
    """Whether this is an array of numpy or a tensor."""
    return isinstance(value, (np.ndarray, torch.Tensor))


@pytest.mark.parametrize("radii", [np.array([0.1, 0.2]), torch.tensor([0.1, 0.2])], ids=["numpy", "torch"])
def test_radii_in_an_array_are_those_in_a_list(radii):
    smoothed = SmoothedClassifier(THRESHOLD, 0.25)
    how = {"n0": 2, "n": 8, "alpha": 0.5, "seed": 0}
    wanted = smoothed.certify(IMAGES, radii=radii.tolist(), **how)
    assert smoothed.certify(IMAGES, radii=radii, **how) == wanted


def smooth(method, **arguments):
    """Make a smoothed classifier and call a method of it."""
    smoothed = SmoothedClassifier(THRESHOLD, arguments.pop("sigma"), arguments.pop("grid"))
    return getattr(smoothed, method)(**arguments)


def smoothed_certify_fits(arguments):
    if float(arguments["sigma"]) == HUGE:
        return settings_fit(arguments, 3) and None  # beyond the range of float32: logits are not finite
    return settings_fit(arguments, 3) and (arguments["grid"] is None or arguments["images"].dtype != torch.half)


CERTIFY_ANY = Subject(
    lambda **arguments: smooth("certify", **arguments),
    {**CERTIFY, "sigma": 0.25, "grid": None},
    {**CERTIFY_RULES, "sigma": NOISE, "grid": GRID},
    smoothed_certify_fits,
    EXTRA,
)
CERTIFY_EACH_ANY = Subject(
    lambda **arguments: [certificate for _, certificate in smooth("certify_each", **arguments)],
    {**CERTIFY_ANY.valid, "images": list(IMAGES)},
    {**CERTIFY_RULES, "images": images_one_by_one},
    lambda arguments: settings_fit(arguments, 3),
    {**EXTRA, "images": [list(IMAGES), tuple(IMAGES), IMAGES, [IMAGES[0], IMAGES]]},
)
CERTIFY_ITER_ANY = Subject(
    lambda **arguments: list(smooth("certify_iter", **arguments)),
    {**{k: v for k, v in SMOOTHED.items() if k != "images"}, "image": IMAGES[0], "n0": 2, "sigma": 0.25, "grid": None},
    {
        **{k: v for k, v in SMOOTHED_RULES.items() if k != "images"},
        "image": clean(None, None, None),
        "n0": COUNT,
        "sigma": NOISE,
        "grid": GRID,
    },
    lambda arguments: None if float(arguments["sigma"]) == HUGE else grid_fits(arguments["grid"], arguments["sigma"]),
    {**EXTRA, "image": [IMAGES[0].double(), IMAGES, IMAGES[0, 0]]},
)
PREDICT_ANY = Subject(
    lambda **arguments: smooth("predict", **arguments),
    {**SMOOTHED, "sigma": 0.25, "grid": None},
    SMOOTHED_RULES,
    extra=EXTRA,
)


@cases(600)
@given(changes=CERTIFY_ANY.spoilt())
def test_certify_of_any_classifier(changes):
    check_certificates(CERTIFY_ANY.run(changes, CALLS, FloatingPointError))


@cases(300)
@given(changes=CERTIFY_EACH_ANY.spoilt())
def test_certify_each_of_any_classifier(changes):
    # an image is refused when it comes, which may be after the work for others
    network = None if "images" in changes else CALLS
    check_certificates(CERTIFY_EACH_ANY.run(changes, network))


@cases(300)
@given(changes=CERTIFY_ITER_ANY.spoilt())
def test_certify_iter_of_any_classifier(changes):
    check_certificates(CERTIFY_ITER_ANY.run(changes, CALLS, FloatingPointError))


@cases(300)
@given(changes=PREDICT_ANY.spoilt())
def test_predict_of_any_classifier(changes):
    check_predictions(PREDICT_ANY.run(changes, CALLS))


LOGITS = torch.zeros(2, 3)
NO_LOGITS = [
    *(None, 0.5, "logits", {}, [[0.0, 1.0]] * 2, torch.zeros(()), torch.zeros(0), torch.zeros(2)),
    *(torch.zeros(2, 0), torch.zeros(1, 3), torch.zeros(2, 3, 1), torch.zeros(2, 3, device="meta")),
    *(torch.zeros(2, 3, dtype=dtype) for dtype in (torch.bool, torch.complex64)),
]


@cases(100)
@given(
    logits=st.sampled_from(
        [
            *NO_LOGITS,
            *(torch.zeros(2, 1), torch.full((2, 3), math.nan), torch.full((2, 3), math.inf)),
            *(LOGITS, LOGITS.half(), LOGITS.double(), LOGITS.long()),
        ]
    ),
    bound=st.sampled_from(["clopper-pearson", "empirical-bernstein", "runner-up", "mixture"]),
)
def test_a_base_classifier_that_gives_no_logits(logits, bound):
    smoothed = SmoothedClassifier(lambda images: logits, 0.25)
    how = {"images": IMAGES[:1], "n0": 2, "n": 2, "alpha": 0.1, "bound": bound}
    certificates = attempt(lambda: smoothed.certify(**how), also=FloatingPointError)
    check_certificates(certificates)
    if any(logits is wrong for wrong in NO_LOGITS):
        assert certificates is REFUSED
    elif torch.is_tensor(logits) and logits.shape == (2, 3):
        assert certificates is not REFUSED and (certificates is FAILED) == (not logits.isfinite().all())


PICTURE = PIL.Image.fromarray((IMAGES[0, 0] * 255).round().to(torch.uint8).numpy())
SINGLE_PICTURES = [IMAGES[0], IMAGES[0].movedim(0, -1).numpy(), PICTURE]
PICTURES = [*SINGLE_PICTURES, IMAGES, IMAGES.movedim(1, -1).numpy(), list(IMAGES), [PICTURE, IMAGES[0]]]
METHODS = ("dc", "epndc", "apndc", "apndc-clean")

CALL = {"sigma": 0.25, "method": None, "levels": LEVELS, "batch_size": 64, "generator": None, "seed": 0}
CALL_RULES = {
    "sigma": SIGMA,
    "method": optional(one_of(*METHODS)),
    "levels": NOISE_LEVELS,
    "batch_size": BATCH_SIZE,
    "generator": GENERATOR,
    "seed": optional(SEED),
}
PIPELINE_EXTRA = {
    **EXTRA,
    "images": PICTURES,
    "image": [*SINGLE_PICTURES, IMAGES, [IMAGES[0]]],
    "method": METHODS,
    "levels": [NoiseLevels((1.0,), (1.0,)), NoiseLevels((3.0,), (1.0,), method="apndc", smoothing_sigma=0.25)],
}


def classifier_fits(arguments) -> bool:
    """Whether noise, method and levels go together for the pixel-space model, and one source of the seed is given."""
    sigma, levels = arguments["sigma"], arguments["levels"]
    method = arguments["method"] or ("apndc" if sigma > 0 else "dc")
    low, high = pixel_model()[0].denoiser.sigma_range
    if (method == "dc") != (sigma == 0) or (sigma > 0 and not low <= 2 * sigma < high):
        return False
    if levels is not None:
        calibrated = levels.smoothing_sigma in (None, sigma) and levels.method in (None, method)
        if not calibrated or min(levels.sigmas) <= 2 * sigma:
            return False
    return arguments.get("generator") is None or arguments["seed"] is None


def certify_fits(arguments) -> bool | None:
    """Whether settings of `certify` go together."""
    return classifier_fits(arguments) and settings_fit(arguments, 3)


DRAWN = {**CALL, "images": IMAGES, "n": 8, "alpha": 0.5}
DRAWN_RULES = {**CALL_RULES, "images": only(IMAGES, *PICTURES), "n": POSITIVE_COUNT, "alpha": ALPHA}
BOUND_RULES = {
    **{name: CERTIFY_RULES[name] for name in ("n0", *STOPPING)},
    "grid": GRID,
}
CALL_PIXEL = Subject(
    lambda **arguments: pixel_model()[0](**arguments),
    {**CALL, "images": IMAGES, "sigma": 0.0},
    {**CALL_RULES, "images": only(IMAGES, *PICTURES)},
    classifier_fits,
    PIPELINE_EXTRA,
)
PREDICT_PIXEL = Subject(
    lambda **arguments: pixel_model()[0].predict(**arguments),
    DRAWN,
    {**DRAWN_RULES, "sigma": NOISE},
    classifier_fits,
    PIPELINE_EXTRA,
)
CERTIFY_PIXEL = Subject(
    lambda **arguments: pixel_model()[0].certify(**arguments),
    {**DRAWN, "n0": 2, **STOPPING, "grid": None},
    {**DRAWN_RULES, **BOUND_RULES, "sigma": NOISE},
    certify_fits,
    PIPELINE_EXTRA,
)
CERTIFY_ITER_PIXEL = Subject(
    lambda **arguments: list(pixel_model()[0].certify_iter(**arguments)),
    {**{k: v for k, v in DRAWN.items() if k != "images"}, "image": SINGLE_PICTURES[0], "n0": 2, "grid": None},
    {
        **{k: v for k, v in DRAWN_RULES.items() if k != "images"},
        "image": only(*SINGLE_PICTURES),
        "sigma": NOISE,
        "n0": COUNT,
        "grid": GRID,
    },
    lambda arguments: classifier_fits(arguments) and grid_fits(arguments["grid"], arguments["sigma"]),
    PIPELINE_EXTRA,
)


def check_output(output) -> None:
    if is_result(output):
        assert all(0 <= label < 3 for label in output.labels) and len(output.labels) == len(output.logits)
        assert output.logits.isfinite().all() and torch.allclose(output.probs.sum(1), torch.ones(len(output.labels)))


@cases(250)
@given(changes=CALL_PIXEL.spoilt())
def test_call_of_the_pipeline(changes):
    check_output(CALL_PIXEL.run(changes, pixel_model()[1]))


@cases(250)
@given(changes=PREDICT_PIXEL.spoilt())
def test_predict_of_the_pipeline(changes):
    check_predictions(PREDICT_PIXEL.run(changes, pixel_model()[1]))


@cases(400)
@given(changes=CERTIFY_PIXEL.spoilt())
def test_certify_of_the_pipeline(changes):
    check_certificates(CERTIFY_PIXEL.run(changes, pixel_model()[1]))


@cases(250)
@given(changes=CERTIFY_ITER_PIXEL.spoilt())
def test_certify_iter_of_the_pipeline(changes):
    check_certificates(CERTIFY_ITER_PIXEL.run(changes, pixel_model()[1]))


SIX_IMAGES = IMAGES.repeat(3, 1, 1, 1)[:6]


def labels_of_six(values) -> bool | None:
    """One label per image, each class among them; whether a set will do is left open."""
    plain = numbers_of(values)
    if plain is None:
        return None if isinstance(values, (set, frozenset)) and values else False
    return len(plain) == 6 and all(type(label) is int for label in plain) and set(plain) == {0, 1, 2}


def calibrate_fits(arguments):
    """Whether arguments go together; a sifter of features needs two images of each class."""
    candidates = arguments["candidates"]
    most = 12 if candidates is None else len(candidates)
    if arguments["sift"] == "features" and sorted(numbers_of(arguments["labels"])) != [0, 0, 1, 1, 2, 2]:
        return False
    return classifier_fits({**arguments, "levels": candidates}) and arguments["num_levels"] <= most


CALIBRATE = Subject(
    lambda **arguments: copy.copy(pixel_model()[0]).calibrate(**arguments),
    {
        "images": SIX_IMAGES,
        "labels": [0, 1, 2, 2, 1, 0],
        "sigma": 0.25,
        "num_levels": 1,
        "method": None,
        "candidates": LEVELS,
        "quantile": 0.998,
        "batch_size": 64,
        "seed": 0,
        "sift": "features",
        "sift_quantile": 0.995,
        "scores_quantile": 0.995,
        "num_copies": 1,
    },
    {
        "images": only(SIX_IMAGES),
        "labels": labels_of_six,
        "sigma": SIGMA,
        "num_levels": integer(1, 100_000),
        "method": optional(one_of(*METHODS)),
        "candidates": NOISE_LEVELS,
        "quantile": optional(number(0, 1, open_low=True, closed_high=True)),
        "batch_size": BATCH_SIZE,
        "seed": lambda seed: None if seed is None else SEED(seed),
        "sift": optional(one_of("features", "losses")),
        "sift_quantile": number(0, 1, open_low=True, closed_high=True),
        "scores_quantile": number(0, 1, open_low=True, closed_high=True),
        "num_copies": integer(1, 10_000),
    },
    calibrate_fits,
    {
        "labels": [
            (2, 1, 0, 0, 1, 2),
            torch.tensor([1, 2, 0, 1, 2, 0]),
            [0, 1, 2, 2, 2, 2],
            [0, 1, 1] * 2,
            [0, 1, 3] * 2,
        ],
        "method": METHODS,
        "num_levels": [12],
        "sift": ["features", "losses", None],
        "num_copies": [3],
    },
)


@cases(250)
@given(changes=CALIBRATE.spoilt())
def test_calibrate(changes):
    levels = CALIBRATE.run(changes, pixel_model()[1], late="tell the classes")
    assert not is_result(levels) or NoiseLevels.from_dict(levels.to_dict()) == levels


def labels_of_two(values) -> bool | None:
    """One label per image; whether a set will do is left open."""
    plain = numbers_of(values)
    if plain is None:
        return None if isinstance(values, (set, frozenset)) and values else False
    return len(plain) == 2 and all(type(label) is int and 0 <= label < 3 for label in plain)


def different_sigmas(values: list) -> bool:
    """One or more different noise levels above 0."""
    return bool(values) and len(set(values)) == len(values) and all(0 < value < math.inf for value in values)


def plan_fits(arguments) -> bool | None:
    """Whether settings of `plan` go together: the largest sigma must be able to prove all radii."""
    sigmas = sorted(numbers_of(arguments["sigmas"]))
    if any(not classifier_fits({**arguments, "levels": None, "sigma": sigma}) for sigma in sigmas):
        return False
    return settings_fit({**arguments, "sigma": sigmas[-1], "bound": None, "grid": None, "resolution": None}, 3)


PLAN = Subject(
    lambda **arguments: pixel_model()[0].plan(**arguments),
    {
        "radii": [0.1],
        "images": IMAGES,
        "labels": [0, 1],
        "sigmas": [0.25],
        "num_copies": 2,
        "n0": 2,
        "n": 20,
        "alpha": 0.5,
        "method": None,
        "batch_size": 64,
        "seed": 0,
        "max_copies_per_radius": None,
        "max_evaluations": None,
    },
    {
        "radii": lambda values: False if values is None else RADII(values),
        "images": only(
            IMAGES, *(picture for picture in PICTURES if not any(picture is one for one in SINGLE_PICTURES))
        ),
        "labels": labels_of_two,
        "sigmas": sequence(different_sigmas),
        "num_copies": integer(1, 10_000),
        "n0": optional(COUNT),
        "n": POSITIVE_COUNT,
        "alpha": ALPHA,
        "method": optional(one_of(*METHODS)),
        "batch_size": BATCH_SIZE,
        "seed": SEED,
        "max_copies_per_radius": optional(NOISE),
        "max_evaluations": optional(integer(1, 2**53)),
    },
    plan_fits,
    {**PIPELINE_EXTRA, "labels": [(2, 0), torch.tensor([0, 2]), [0, 3], [0, -1]], "sigmas": [[0.5, 0.25], (0.3,)]},
)


@cases(150)
@given(changes=PLAN.spoilt())
def test_plan(changes):
    plan = PLAN.run(changes, pixel_model()[1])
    if is_result(plan):
        for run in plan.forecasts:
            assert 0 <= run.accuracies[0].low <= run.accuracies[0].value <= run.accuracies[0].high <= 1
            assert 0 < run.copies.value < math.inf and 0 < run.seconds.value < math.inf


def latent_fits(arguments) -> bool:
    """Whether noise and method go together for the latent model, and one source of the seed is given."""
    sigma = arguments["sigma"]
    low, high = latent_model()[0].classifier(0.25).denoiser.sigma_range
    if arguments["method"] not in (None, "dds" if sigma > 0 else "dc") or (sigma > 0 and not low <= 2 * sigma < high):
        return False
    levels = arguments["levels"]
    if levels is not None and levels.method not in (None, "dc"):
        return False
    return arguments["generator"] is None or arguments["seed"] is None


LARGE_IMAGE = LARGE_IMAGES[:1]
LATENT_RULES = {"images": only(LARGE_IMAGE), "method": optional(one_of("dc", "dds"))}
LATENT_EXTRA = {**EXTRA, "images": [IMAGES], "method": [*METHODS, "dds"], "levels": PIPELINE_EXTRA["levels"]}
CERTIFY_LATENT = Subject(
    lambda **arguments: latent_model()[0].certify(**arguments),
    {**CERTIFY_PIXEL.valid, "images": LARGE_IMAGE, "n": 4, "n0": 1},
    {**DRAWN_RULES, **BOUND_RULES, **LATENT_RULES, "sigma": NOISE},
    lambda arguments: latent_fits(arguments) and settings_fit(arguments, 3),
    LATENT_EXTRA,
)
CALL_LATENT = Subject(
    lambda **arguments: latent_model()[0](**arguments),
    {**CALL, "images": LARGE_IMAGE, "sigma": 0.0},
    {**CALL_RULES, **LATENT_RULES},
    latent_fits,
    LATENT_EXTRA,
)


@cases(150)
@given(changes=CERTIFY_LATENT.spoilt())
def test_certify_of_the_latent_pipeline(changes):
    check_certificates(CERTIFY_LATENT.run(changes, latent_model()[2]))


@cases(100)
@given(changes=CALL_LATENT.spoilt())
def test_call_of_the_latent_pipeline(changes):
    check_output(CALL_LATENT.run(changes, latent_model()[2]))


def test_an_unsigned_sigma_is_accepted():
    """numpy's `uint8(1)` is a number as any other: `10 * sigma` is 10 in its type, and `-10` becomes 246."""
    result = attempt(lambda: latent_model()[0](LARGE_IMAGE, np.uint8(1), levels=LEVELS, seed=0))
    assert result is not REFUSED


UNSMOOTHED = Subject(
    lambda **arguments: pixel_model()[0].certify_unsmoothed(**arguments),
    {
        "images": IMAGES,
        "n0": 2,
        "n": 4,
        "alpha": 0.5,
        "levels": LEVELS,
        "batch_size": 64,
        "generator": None,
        "seed": 0,
    },
    {
        "images": only(IMAGES, *PICTURES),
        "n0": POSITIVE_COUNT,
        "n": POSITIVE_COUNT,
        "alpha": ALPHA,
        "levels": NOISE_LEVELS,
        "batch_size": BATCH_SIZE,
        "generator": GENERATOR,
        "seed": optional(SEED),
    },
    lambda arguments: classifier_fits({**arguments, "sigma": 0.0, "method": None}),
    PIPELINE_EXTRA,
)


@cases(150)
@given(changes=UNSMOOTHED.spoilt())
def test_certify_unsmoothed_of_the_pipeline(changes):
    certificates = UNSMOOTHED.run(changes, pixel_model()[1])
    if is_result(certificates):
        for certificate in certificates if isinstance(certificates, list) else [certificates]:
            check_sound(certificate)


SUBJECTS = {
    "any certify": CERTIFY_ANY,
    "any certify_each": CERTIFY_EACH_ANY,
    "any certify_iter": CERTIFY_ITER_ANY,
    "any predict": PREDICT_ANY,
    "call": CALL_PIXEL,
    "predict": PREDICT_PIXEL,
    "certify": CERTIFY_PIXEL,
    "certify_iter": CERTIFY_ITER_PIXEL,
    "calibrate": CALIBRATE,
    "plan": PLAN,
    "latent certify": CERTIFY_LATENT,
    "latent call": CALL_LATENT,
    "unsmoothed": UNSMOOTHED,
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_every_acceptable_value_of_every_argument_is_accepted(subject):
    substitutions = subject.single_substitutions()
    assert len(substitutions) > 2 * len(subject.rules)
    for changes in substitutions:
        subject.run(changes, also=FloatingPointError, late="tell the classes")


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_every_other_value_of_every_argument_is_refused(subject):
    for changes in subject.wrong_substitutions():
        subject.run(changes)
