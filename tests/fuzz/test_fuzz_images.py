"""Images of any shape, type, memory order and device: one batch for one image, or a documented refusal before work."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.fuzzing import REFUSED, Network, attempt, cases, check_sound
from helpers.networks import tiny_unet
from hypothesis import example, given
from hypothesis import strategies as st

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels, SmoothedClassifier
from diffusers_ndc.pipelines.inputs import to_pixel_batch


LEVELS = NoiseLevels((2.0,), (1.0,))
IMAGE = torch.full((1, 8, 8), 0.5)


def pipeline(channels, **settings):
    unet = tiny_unet(in_channels=channels, out_channels=channels, **settings)
    pipe = NoisedDiffusionClassifierPipeline(unet, DDPMScheduler(), null_class=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe, Network(unet)


@pytest.fixture(scope="module")
def colour():
    return pipeline(3)


@pytest.fixture(scope="module")
def grey_of_any_size():
    return pipeline(1, sample_size=None)


def spread(array):
    """The same values in every second cell of a larger array."""
    wide = np.zeros([2 * side for side in array.shape], array.dtype)
    wide[tuple(slice(None, None, 2) for _ in array.shape)] = array
    return wide[tuple(slice(None, None, 2) for _ in array.shape)]


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def backwards(array):
    return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]


ORDERS = [
    np.asarray,
    np.asfortranarray,
    spread,
    frozen,
    backwards,
    lambda a: a.transpose(1, 0, 2).copy().swapaxes(0, 1),
]
SCALED = [
    *(lambda a, kind=kind: (a / kind(255)).astype(kind) for kind in (np.float32, np.float64, np.longdouble)),
    *(lambda a, order=order: (a / np.float64(255)).astype(f"{order}f8") for order in "<>"),
    lambda a: a,
]


def tensors(array):
    """An array as tensors of several strides and types."""
    image = torch.from_numpy(array.copy()).permute(2, 0, 1)
    floats = image / 255
    return [
        *(image, floats, floats.contiguous(), floats.double(), (image.double() / 255), torch.nn.Parameter(floats)),
        *(floats[None].contiguous(memory_format=torch.channels_last)[0], floats.clone().requires_grad_()),
        floats.flip(2).contiguous().flip(2),
        torch.stack([floats, floats], dim=-1)[..., 1],
    ]


@cases(120)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), flat=st.booleans())
def test_one_image_in_any_form_gives_one_batch_and_one_certificate(colour, data, seed, flat):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = np.broadcast_to(pixels[:1, :1], (8, 8, 3)) if flat else pixels
    form = data.draw(st.sampled_from(["pil", "rgba", "array", "tensor"]))
    if form in ("pil", "rgba"):
        image = PIL.Image.fromarray(pixels).convert("RGB" if form == "pil" else "RGBA")
    elif form == "array":
        image = data.draw(st.sampled_from(ORDERS))(data.draw(st.sampled_from(SCALED))(pixels))
    else:
        image = data.draw(st.sampled_from(tensors(pixels)))
    usual = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    single = data.draw(st.booleans())
    batch, was_single = to_pixel_batch(image if single else [image], 3, (8, 8))
    assert was_single == single and torch.equal(batch, usual) and batch.is_contiguous()
    pipe, _ = colour
    how = {"levels": LEVELS, "n0": 2, "n": 4, "alpha": 0.4, "seed": seed, "bound": "empirical-bernstein"}
    (certificate,) = pipe.certify([image], **how)
    assert certificate == pipe.certify(usual, **how)[0]  # its sums of soft votes to the last bit


SIDES = st.sampled_from([0, 1, 2, 7, 8, 16])
SHAPES = st.lists(SIDES, max_size=5).map(tuple) | st.sampled_from([(1, 8, 8), (2, 1, 8, 8), (8, 8), (8, 8, 1)])
VALUES = st.sampled_from([0.0, 0.5, 1.0, -0.01, 1.01, 255.0, math.nan, math.inf, -math.inf])
NUMPY_TYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u8", "f2", "f4", "f8", ">f4", "g", "c8", "O", "U3", "M8[s]", "V4"]
TORCH_TYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn),
]
MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "I;16",
]


@st.composite
def arrays(draw):
    shape, kind = draw(SHAPES), np.dtype(draw(st.sampled_from(NUMPY_TYPES)))
    value = draw(VALUES) if kind.kind in "fcO" else 0
    array = np.full(shape, value, kind) if kind.kind in "biufcO" else np.zeros(shape, kind)
    return draw(st.sampled_from([np.asarray, np.asfortranarray, spread, frozen]))(array)


@st.composite
def any_tensors(draw):
    shape, kind = draw(SHAPES), draw(st.sampled_from(TORCH_TYPES))
    value = draw(VALUES) if kind.is_floating_point else 0
    tensor = torch.full(shape, value, dtype=torch.float32).to(kind)
    how = draw(st.sampled_from(["plain", "plain", "grad", "transposed", "expanded", "meta", "sparse", "nested"]))
    if how == "grad":
        return tensor.requires_grad_() if kind.is_floating_point else tensor
    if how == "transposed":
        return tensor.transpose(0, -1) if tensor.ndim else tensor
    if how == "expanded":
        return tensor.expand(2, *shape)
    if how == "meta":
        return tensor.to("meta")
    if how == "sparse":
        return torch.full(shape, 0.5).to_sparse() if shape else tensor
    return torch.nested.nested_tensor([torch.zeros(1, 8, 8), torch.zeros(1, 7, 8)]) if how == "nested" else tensor


@st.composite
def pil_images(draw):
    mode, size = draw(st.sampled_from(MODES)), (draw(SIDES), draw(SIDES))
    return PIL.Image.new(mode, size)


ANY = pil_images() | arrays() | any_tensors()
SOMETHING = ANY | st.lists(ANY | st.sampled_from([None, "a.png", 3, [], {}]), max_size=3)


@cases(500)
@given(images=SOMETHING)
@example(PIL.Image.new("I;16", (8, 8), 60_000))  # was clipped to white
@example(np.zeros((0, 8, 8, 1)))
@example(torch.zeros(1, 1, 0, 8))
@example(torch.full((1, 8, 8), 0.5).to("meta"))
def test_any_image_is_classified_or_refused(grey_of_any_size, images):
    pipe, network = grey_of_any_size
    how = {"levels": LEVELS, "seed": 0}
    output = attempt(lambda: pipe(images, 0.0, **how), network)
    if output is not REFUSED:
        assert output.logits.isfinite().all() and len(output.labels) >= 1
    certificates = attempt(lambda: pipe.certify(images, n0=1, n=2, alpha=0.3, **how), network)
    assert (certificates is REFUSED) == (output is REFUSED)
    if certificates is not REFUSED:
        for certificate in certificates if isinstance(certificates, list) else [certificates]:
            check_sound(certificate)


@cases(300)
@given(images=any_tensors(), grid=st.sampled_from([None, 16]))
def test_any_tensor_is_smoothed_or_refused(grey_of_any_size, images, grid):
    pipe, network = grey_of_any_size
    for base in (pipe.classifier(0.25, levels=LEVELS), lambda images: images.flatten(1)[:, :1].expand(-1, 2)):
        smoothed = SmoothedClassifier(base, 0.25, grid)
        certificates = attempt(lambda smoothed=smoothed: smoothed.certify(images, n0=1, n=2, alpha=0.3), network)
        for certificate in () if certificates is REFUSED else certificates:
            check_sound(certificate)
        attempt(lambda smoothed=smoothed: list(smoothed.certify_each([images, IMAGE], n0=1, n=2, alpha=0.3)), network)


@cases(300)
@given(images=any_tensors())
def test_any_tensor_is_scored_or_refused(grey_of_any_size, images):
    pipe, network = grey_of_any_size
    for classifier in (pipe.classifier(0.25, levels=LEVELS), pipe.classifier(0.0, levels=LEVELS)):
        logits = attempt(lambda f=classifier: f(images), network, FloatingPointError)
        assert logits is REFUSED or (logits.shape == (len(images), 3) and logits.isfinite().all())
