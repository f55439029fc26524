"""Classifiers, denoisers and pipelines of hostile parts: what is valid is accepted, all else is refused at once."""

import copy
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler
from helpers.acceptable import (
    BATCH_SIZE,
    NOISE,
    NOISE_LEVELS,
    SEED,
    SIGMA,
    is_number,
    one_of,
    only,
    optional,
    seeds,
    tensor,
)
from helpers.fuzzing import Subject, cases, is_result
from helpers.models import IMAGES, LARGE_IMAGES, LEVELS, latent_model, pixel_model
from helpers.networks import PROMPTS, processor, tiny_unet, tiny_vit
from hypothesis import example, given

from diffusers_ndc import (
    DenoisedClassifier,
    DenoisedDiffusionClassifier,
    Denoiser,
    ImageClassifier,
    LatentDiffusionClassifierPipeline,
    NoisedDiffusionClassifier,
    NoisedDiffusionClassifierPipeline,
    embed_prompts,
)


PIPE, CALLS = pixel_model()
DENOISER = PIPE.denoiser
UNET, SCHEDULER = PIPE.unet, PIPE.scheduler
UNCONDITIONAL = tiny_unet(None)
VIT, PROCESSOR = tiny_vit(), processor()
LOW, HIGH = DENOISER.sigma_range


def without_gradients(call):
    """The same callable, run without gradients."""
    return torch.no_grad()(call)


IMAGES_RULE = tensor(None, 1, 8, 8)
SEEDED_RULES = {"images": IMAGES_RULE, "seeds": seeds(2)}
SEEDED_EXTRA = {
    "images": [3 * IMAGES - 1, IMAGES.double(), IMAGES[0], IMAGES[..., :7], IMAGES.repeat(1, 3, 1, 1)],
    "seeds": [[7, 7], (0, 2**63 - 1), range(2), [0, 2**63], [0, True], [None, None], [0.0, 1.0]],
}


def seeds_fit(arguments) -> bool:
    """Whether there is one seed per image."""
    return arguments["seeds"] is None or len(arguments["seeds"]) == len(arguments["images"])


def classifier_fits(arguments) -> bool:
    """Whether noise, method and levels go together."""
    sigma, levels = arguments["sigma"], arguments["levels"]
    method = arguments["method"] or ("apndc" if sigma > 0 else "dc")
    if (method == "dc") != (sigma == 0) or (sigma > 0 and not LOW <= 2 * sigma < HIGH):
        return False
    return levels is None or min(levels.sigmas) > 2 * sigma


CLASSIFIER = Subject(
    lambda **arguments: (PIPE.classifier(**arguments), NoisedDiffusionClassifier(DENOISER, **arguments)),
    {"sigma": 0.25, "method": None, "levels": LEVELS, "batch_size": 64, "seed": 0},
    {
        "sigma": SIGMA,
        "method": optional(one_of("dc", "epndc", "apndc", "apndc-clean")),
        "levels": NOISE_LEVELS,
        "batch_size": BATCH_SIZE,
        "seed": optional(SEED),
    },
    classifier_fits,
    {"method": ["apndc-clean"]},
)
CLASSIFY = Subject(
    without_gradients(lambda classifier, **arguments: classifier(**arguments)),
    {"images": IMAGES, "seeds": None, "classifier": PIPE.classifier(0.25, levels=LEVELS)},
    SEEDED_RULES,
    seeds_fit,
    SEEDED_EXTRA,
)


@cases(300)
@given(changes=CLASSIFIER.spoilt(2), called=CLASSIFY.spoilt())
@example({}, {"seeds": "dc"})
@example({}, {"seeds": [None, None]})  # was one constant seed for all
def test_the_classifier_as_a_module(changes, called):
    made = CLASSIFIER.run(changes, CALLS)
    if is_result(made):
        for classifier in made:
            logits = CLASSIFY.run({**called, "classifier": classifier}, CALLS)
            if is_result(logits):
                images = {**CLASSIFY.valid, **called}["images"]
                assert logits.shape == (len(images), 3) and logits.isfinite().all()


def second_scheduler_fits(arguments) -> bool:
    """Whether there is a second network if there is a scheduler for it."""
    return arguments["unconditional_scheduler"] is None or arguments["unconditional_unet"] is not None


def classes_fit(arguments) -> bool:
    """Whether the number of classes is that of the network: four rows, or three and one for "no class"."""
    expected = 4 if arguments["null_class"] is None else 3
    return arguments["num_classes"] in (None, expected) and second_scheduler_fits(arguments)


def readable_scheduler(value) -> bool:
    """A scheduler whose noise levels are known."""
    return isinstance(value, (DDPMScheduler, DDIMScheduler, EDMEulerScheduler))


def integer_among(*values):
    """`None`, or one of these integers."""
    return optional(lambda value: type(value) is int and value in values)


DENOISERS = Subject(
    Denoiser,
    {
        "unet": UNET,
        "scheduler": SCHEDULER,
        "num_classes": None,
        "null_class": None,
        "unconditional_unet": None,
        "prompt_embeddings": None,
        "vae": None,
        "unconditional_scheduler": None,
    },
    {
        "unet": only(UNET),
        "scheduler": readable_scheduler,
        "num_classes": integer_among(3, 4),
        "null_class": integer_among(3),
        "unconditional_unet": optional(only(UNCONDITIONAL)),
        "prompt_embeddings": only(None),
        "vae": only(None),
        "unconditional_scheduler": optional(readable_scheduler),
    },
    classes_fit,
    {
        "unet": [UNCONDITIONAL, VIT],
        "scheduler": [DDIMScheduler(), EDMEulerScheduler()],
        "num_classes": [4],
        "unconditional_unet": [UNCONDITIONAL, UNET],
        "unconditional_scheduler": [EDMEulerScheduler()],
    },
)


def noise_of_two(value) -> bool | None:
    """A noise level above 0 for all, or one for each; what float32 cannot hold is left open."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or not value.is_floating_point() or value.shape not in ((), (2,)):
            return False
        return bool((value > 0).all() and value.isfinite().all())
    if not is_number(value) or not 0 < value < math.inf:
        return False
    return True if 1e-30 < float(value) < 1e30 else None


DENOISE = Subject(
    without_gradients(lambda denoiser, **arguments: denoiser(**arguments)),
    {"x_sigma": IMAGES, "sigma": 1.0, "class_labels": torch.tensor([0, 1]), "denoiser": DENOISER},
    {
        "x_sigma": lambda value: tensor(None, 1, 8, 8)(value) and len(value) == 2,
        "sigma": noise_of_two,
        "class_labels": lambda value: value is None or any(value is labels for labels in LABELS),
    },
    extra={
        "x_sigma": [IMAGES.double(), 3 * IMAGES - 1, IMAGES[:1], IMAGES[0]],
        "sigma": [torch.ones(2), torch.ones(3), -torch.ones(2), torch.ones(2, dtype=torch.long)],
        "class_labels": [
            *(LABELS := [torch.tensor([3, 2]), torch.tensor([0, 1], dtype=torch.int32)]),
            *(torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([0.0, 1.0])),
        ],
    },
)
LABELS.append(DENOISE.valid["class_labels"])


@cases(250)
@given(changes=DENOISERS.spoilt(2), called=DENOISE.spoilt())
@example({}, {"sigma": 2**63})
def test_denoiser(changes, called):
    denoiser = DENOISERS.run(changes, CALLS)
    if is_result(denoiser):
        x0 = DENOISE.run({**called, "denoiser": denoiser}, CALLS)
        if is_result(x0):
            assert x0.shape == {**DENOISE.valid, **called}["x_sigma"].shape and x0.isfinite().all()


def names_of_classes(value) -> bool:
    """`None`, or names of the classes 0 to K - 1, three or four; JSON makes strings of the numbers."""
    if value is None:
        return True
    if not isinstance(value, dict) or not all(isinstance(label, (int, str)) for label in value):
        return False
    return sorted(map(str, value)) in (list("012"), list("0123"))


TABLE = {"0.25": {"apndc": LEVELS.to_dict()}}
TABLES = [{}, TABLE, {"0": {"dc": LEVELS.to_dict()}}]
WRONG_TABLES = [
    {"0.25": {"dc": LEVELS.to_dict()}},
    {"0.250": TABLE["0.25"]},
    {0.25: TABLE["0.25"]},
    {"0.25": {"x": {}}},
]
LATER_NAMES = {1: "a", 2: "b", 3: "c"}
FOUR_NAMES = {0: "a", 1: "b", 2: "c", 3: "d"}


def levels_table(value) -> bool:
    """`None`, or levels by sigma and method."""
    return value is None or (isinstance(value, dict) and value in TABLES)


def pipeline_fits(arguments) -> bool:
    """Whether there is one name per class, and no scheduler for a second network that is not there."""
    names = arguments["id2label"]
    fits = names is None or len(names) == (4 if arguments["null_class"] is None else 3)
    return fits and second_scheduler_fits(arguments)


PARTS_OF_A_PIPELINE = ("unet", "scheduler", "unconditional_unet", "unconditional_scheduler")
PIPELINES = Subject(
    NoisedDiffusionClassifierPipeline,
    {
        "unet": UNET,
        "scheduler": SCHEDULER,
        "unconditional_unet": None,
        "id2label": None,
        "null_class": None,
        "levels": None,
        "unconditional_scheduler": None,
    },
    {
        **{name: DENOISERS.rules[name] for name in (*PARTS_OF_A_PIPELINE, "null_class")},
        "id2label": names_of_classes,
        "levels": levels_table,
    },
    pipeline_fits,
    {
        **{name: DENOISERS.extra[name] for name in PARTS_OF_A_PIPELINE},
        "id2label": [FOUR_NAMES, LATER_NAMES],
        "levels": [*TABLES, *WRONG_TABLES],
    },
)


@cases(200)
@given(changes=PIPELINES.spoilt())
def test_pipeline(changes):
    made = PIPELINES.run(changes, CALLS)
    if is_result(made):
        assert made.classifier(0.25).num_classes == (4 if made.config.null_class is None else 3)
        saved = (made.config.levels or {}).get("0.25")
        assert saved is None or made.classifier(0.25).levels == LEVELS


DENOISED = Subject(
    DenoisedClassifier,
    {"denoiser": DENOISER, "classifier": VIT, "image_processor": PROCESSOR, "sigma": 0.25, "batch_size": 64},
    {
        "denoiser": only(DENOISER),
        "classifier": only(VIT),
        "image_processor": only(PROCESSOR),
        "sigma": NOISE,
        "batch_size": BATCH_SIZE,
    },
    lambda arguments: LOW <= 2 * float(arguments["sigma"]) < HIGH,
    {"denoiser": [UNET], "classifier": [UNET], "image_processor": [VIT]},
)
CLASSIFY_DENOISED = Subject(
    without_gradients(lambda classifier, **arguments: classifier(**arguments)),
    {"images": IMAGES, "classifier": DenoisedClassifier(**DENOISED.valid)},
    {"images": IMAGES_RULE},
    extra={"images": SEEDED_EXTRA["images"]},
)


@cases(200)
@given(changes=DENOISED.spoilt(), called=CLASSIFY_DENOISED.spoilt())
def test_denoised_classifier(changes, called):
    classifier = DENOISED.run(changes, CALLS)
    if is_result(classifier):
        logits = CLASSIFY_DENOISED.run({**called, "classifier": classifier}, CALLS)
        assert not is_result(logits) or logits.shape == (2, 3)


BY_ITSELF = Subject(
    ImageClassifier,
    {"classifier": VIT, "image_processor": PROCESSOR, "batch_size": 64},
    {"classifier": only(VIT), "image_processor": only(PROCESSOR), "batch_size": BATCH_SIZE},
    extra={"classifier": [UNET], "image_processor": [VIT]},
)
CLASSIFY_BY_ITSELF = Subject(
    CLASSIFY_DENOISED.call,
    {"images": IMAGES, "classifier": ImageClassifier(**BY_ITSELF.valid)},
    {"images": IMAGES_RULE},
    extra={"images": SEEDED_EXTRA["images"]},
)


@cases(100)
@given(changes=BY_ITSELF.spoilt(), called=CLASSIFY_BY_ITSELF.spoilt())
def test_image_classifier(changes, called):
    classifier = BY_ITSELF.run(changes, CALLS)
    if is_result(classifier):
        logits = CLASSIFY_BY_ITSELF.run({**called, "classifier": classifier}, CALLS)
        assert not is_result(logits) or logits.shape == (2, 3)


CLEAN_CLASSIFIER = PIPE.classifier(0.0, levels=LEVELS)
DENOISED_DIFFUSION = Subject(
    DenoisedDiffusionClassifier,
    {"denoiser": DENOISER, "classifier": CLEAN_CLASSIFIER, "sigma": 0.25},
    {"denoiser": only(DENOISER), "classifier": only(CLEAN_CLASSIFIER), "sigma": NOISE},
    DENOISED.together,
    {"classifier": [PIPE.classifier(0.25, levels=LEVELS), VIT], "denoiser": [UNET]},
)
CLASSIFY_DENOISED_DIFFUSION = Subject(
    CLASSIFY.call,
    {"images": IMAGES, "seeds": None, "classifier": DenoisedDiffusionClassifier(**DENOISED_DIFFUSION.valid)},
    SEEDED_RULES,
    seeds_fit,
    SEEDED_EXTRA,
)


@cases(200)
@given(changes=DENOISED_DIFFUSION.spoilt(), called=CLASSIFY_DENOISED_DIFFUSION.spoilt())
def test_denoised_diffusion_classifier(changes, called):
    classifier = DENOISED_DIFFUSION.run(changes, CALLS)
    if is_result(classifier):
        logits = CLASSIFY_DENOISED_DIFFUSION.run({**called, "classifier": classifier}, CALLS)
        assert not is_result(logits) or logits.shape == (2, 3)


LATENT, PARTS, LATENT_CALLS = latent_model()


def prompts_of_classes(value) -> bool:
    """For each of at least two classes a prompt or a list of them, not the same for two."""
    if isinstance(value, dict):
        if sorted(map(str, value)) != sorted(map(str, range(len(value)))):
            return False
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        return False
    by_class = [[texts] if isinstance(texts, str) else texts for texts in value]
    if not all(isinstance(texts, (list, tuple)) and texts for texts in by_class):
        return False
    if not all(isinstance(text, str) and text.strip() for texts in by_class for text in texts):
        return False
    return len({tuple(texts) for texts in by_class}) == len(by_class)


PROMPTS_EXTRA = [
    *(PROMPTS, ["a cat", "a dog"], ("one", ["two", "also two"]), {"0": "a", "1": ["b", "c"]}, {1: "b", 0: "a"}),
    *(["a", "a"], ["a", " "], ["a", []], {1: "a", 2: "b"}, ["a", "long " * 100]),
]


def short_prompts(value) -> bool:
    """Prompts that the text encoder takes whole; the long ones here are far beyond."""
    return prompts_of_classes(value) and value != ["a", "long " * 100]


def latent_fits(arguments) -> bool:
    """Whether network and pixel-space denoiser are complete, and names and prompts are as many."""
    names, prompts = arguments["id2label"], arguments["prompts"]
    if (arguments["pixel_unet"] is None) != (arguments["pixel_scheduler"] is None):
        return False
    return names is None or len(names) == len(prompts)


LATENTS = Subject(
    LatentDiffusionClassifierPipeline,
    {**PARTS, "transformer": None, "id2label": None, "prompts": PROMPTS, "null_class": None, "levels": None},
    {
        **{name: only(PARTS[name]) for name in ("vae", "unet", "tokenizer", "text_encoder")},
        "pixel_unet": optional(only(PARTS["pixel_unet"])),
        "scheduler": lambda value: isinstance(value, (DDPMScheduler, DDIMScheduler)),
        "pixel_scheduler": optional(lambda value: isinstance(value, (DDPMScheduler, DDIMScheduler))),
        "transformer": only(None),
        "id2label": names_of_classes,
        "prompts": short_prompts,
        "null_class": only(None),
        "levels": levels_table,
    },
    latent_fits,
    {
        "vae": [UNET],
        "unet": [PARTS["vae"]],
        "scheduler": [DDIMScheduler()],
        "pixel_scheduler": [DDIMScheduler()],
        "id2label": [{0: "a", 1: "b", 2: "c"}, FOUR_NAMES, LATER_NAMES],
        "prompts": PROMPTS_EXTRA,
        "levels": [*TABLES, *WRONG_TABLES],
    },
)


@cases(150)
@given(changes=LATENTS.spoilt())
def test_latent_pipeline(changes):
    pipe = LATENTS.run(changes, LATENT_CALLS)
    if is_result(pipe):
        arguments = {**LATENTS.valid, **changes}
        for name in PARTS:
            assert getattr(pipe, name) is arguments[name]
        prompts, names = arguments["prompts"], arguments["id2label"]
        assert pipe.classifier().num_classes == len(prompts)
        assert pipe.config.id2label is None or list(pipe.config.id2label.values()) == list(names.values())
        pipe.set_progress_bar_config(disable=True)
        output = pipe(LARGE_IMAGES, levels=LEVELS, seed=0)
        assert output.logits.shape == (2, len(prompts)) and output.logits.isfinite().all()
        if pipe.pixel_unet is None:
            with pytest.raises(ValueError, match="pixel_unet"):
                pipe.classifier(0.25)
        else:
            assert pipe.classifier(0.25).num_classes == len(prompts)


EMBED = Subject(
    embed_prompts,
    {"prompts": PROMPTS, "tokenizer": PARTS["tokenizer"], "text_encoder": PARTS["text_encoder"]},
    {
        "prompts": short_prompts,
        "tokenizer": only(PARTS["tokenizer"]),
        "text_encoder": only(PARTS["text_encoder"]),
    },
    extra={"prompts": PROMPTS_EXTRA, "tokenizer": [PARTS["vae"]], "text_encoder": [PARTS["vae"]]},
)


def changed_prompts(prompts, id2label):
    """A copy of the latent pipeline with other classes."""
    pipe = copy.copy(LATENT)
    pipe.set_prompts(prompts, id2label)
    return pipe


SET_PROMPTS = Subject(
    changed_prompts,
    {"prompts": PROMPTS, "id2label": None},
    {
        "prompts": short_prompts,
        "id2label": lambda value: None if value is LATER_NAMES else names_of_classes(value),
    },
    lambda arguments: arguments["id2label"] is None or len(arguments["id2label"]) == len(arguments["prompts"]),
    {"prompts": PROMPTS_EXTRA, "id2label": [{0: "a", 1: "b", 2: "c"}, FOUR_NAMES, LATER_NAMES]},
)


def test_names_of_other_classes_are_refused_with_new_prompts():
    """A pipeline with them could be saved, and not loaded again."""
    with pytest.raises(ValueError, match="id2label"):
        changed_prompts(PROMPTS, LATER_NAMES)


@cases(150)
@given(embedded=EMBED.spoilt(), changes=SET_PROMPTS.spoilt())
def test_prompts(embedded, changes):
    embeddings = EMBED.run(embedded)
    if is_result(embeddings):
        assert embeddings.shape == (len({**EMBED.valid, **embedded}["prompts"]) + 1, 20, 16)
    pipe = SET_PROMPTS.run(changes, LATENT_CALLS)
    if is_result(pipe):
        assert len(pipe.config.prompts) == len({**SET_PROMPTS.valid, **changes}["prompts"])


SUBJECTS = {
    "classifier": CLASSIFIER,
    "classify": CLASSIFY,
    "denoiser": DENOISERS,
    "denoise": DENOISE,
    "pipeline": PIPELINES,
    "denoised": DENOISED,
    "classify denoised": CLASSIFY_DENOISED,
    "denoised diffusion": DENOISED_DIFFUSION,
    "classify denoised diffusion": CLASSIFY_DENOISED_DIFFUSION,
    "latent pipeline": LATENTS,
    "embed_prompts": EMBED,
    "set_prompts": SET_PROMPTS,
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_every_acceptable_value_of_every_argument_is_accepted(subject):
    substitutions = subject.single_substitutions()
    assert len(substitutions) > len(subject.rules)
    for changes in substitutions:
        subject.run(changes)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_every_other_value_of_every_argument_is_refused(subject):
    for changes in subject.wrong_substitutions():
        subject.run(changes)
