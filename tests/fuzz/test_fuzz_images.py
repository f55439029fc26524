"""Images of any shape, type, memory order and device: one batch for one image, or a documented refusal before work."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.acceptable import clean, tensor
from helpers.fuzzing import REFUSED, Network, attempt, cases, check_sound, is_result
from helpers.networks import tiny_unet
from hypothesis import example, given
from hypothesis import strategies as st

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels, SmoothedClassifier
from diffusers_ndc.pipelines.inputs import to_pixel_batch


LEVELS = NoiseLevels((2.0,), (1.0,))
BLACK = torch.zeros(1, 8, 8)


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


EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def shape_of_pictures(images) -> tuple[int, ...] | None:
    """Height and width of what is one grey picture in [0, 1] or a batch of them; `None` for anything else."""
    if isinstance(images, PIL.Image.Image):
        return images.size[::-1] if images.mode in EIGHT_BIT_MODES and 0 not in images.size else None
    if isinstance(images, np.ndarray) and images.dtype.kind in "fu":
        if images.dtype.kind == "u" and images.dtype != np.uint8:
            return None
        with_channels = images[..., None] if images.ndim == 2 else images
        if with_channels.ndim not in (3, 4) or not images.size or with_channels.shape[-1] != 1:
            return None
        in_range = images.dtype == np.uint8 or (images.min() >= 0 and images.max() <= 1)
        return with_channels.shape[-3:-1] if in_range else None
    if isinstance(images, torch.Tensor) and not images.is_nested and images.ndim in (3, 4):
        if images.dtype == torch.uint8 and not images.is_meta and images.layout == torch.strided:
            images = images / 255
        channels_first = (None, 1, None, None)[4 - images.ndim :]
        return tuple(images.shape[-2:]) if clean(*channels_first)(images) else None
    return None


def is_classifiable(images) -> bool:
    """Whether these are grey pictures of one shape, with sides that the network can halve."""
    if isinstance(images, list):
        shapes = {shape_of_pictures(image) for image in images}
    else:
        shapes = {shape_of_pictures(images)}
    if len(shapes) != 1 or None in shapes:
        return False
    (shape,) = shapes
    return all(side % 2 == 0 for side in shape)


@cases(500)
@given(images=SOMETHING)
@example(PIL.Image.new("I;16", (8, 8), 60_000))  # was clipped to white
@example(PIL.Image.new("RGBA", (8, 8)))
@example([torch.full((1, 8, 8), 0.5), np.zeros((8, 8), np.uint8), PIL.Image.new("L", (8, 8))])
@example([torch.full((1, 8, 8), 0.5), torch.full((1, 8, 16), 0.5)])
@example(np.full((2, 8, 8, 1), 0.5, np.longdouble))
@example(torch.full((2, 1, 2, 8), 0.5, dtype=torch.bfloat16))
@example(np.zeros((0, 8, 8, 1)))
@example(torch.zeros(1, 1, 0, 8))
@example(torch.full((1, 8, 8), 0.5).to("meta"))
def test_any_image_is_classified_or_refused(grey_of_any_size, images):
    pipe, network = grey_of_any_size
    how = {"levels": LEVELS, "seed": 0}
    output = attempt(lambda: pipe(images, 0.0, **how), network)
    assert (output is not REFUSED) == is_classifiable(images)
    if output is not REFUSED:
        assert output.logits.isfinite().all() and len(output.labels) >= 1
    certificates = attempt(lambda: pipe.certify(images, n0=1, n=2, alpha=0.3, **how), network)
    assert (certificates is REFUSED) == (output is REFUSED)
    if certificates is not REFUSED:
        for certificate in certificates if isinstance(certificates, list) else [certificates]:
            check_sound(certificate)


def is_smoothable(images, grid, channels) -> bool:
    """Whether these are clean tensors, of 8 bits for a grid; with a number of channels that the network can take."""
    if not clean(*(None, channels, None, None)[4 - images.ndim :])(images):
        return False
    if channels is not None and any(side % 2 for side in images.shape[-2:]):
        return False
    steps = images.double() * 255
    return grid is None or bool(((steps - steps.round()).abs() < 1e-3).all())


@cases(300)
@given(images=any_tensors(), grid=st.sampled_from([None, 16]))
@example(torch.full((2, 1, 8, 8), 0.5), None)
@example(torch.ones(2, 1, 8, 8), 16)
@example(torch.ones(1, 8, 8), 16)
@example(torch.full((2, 1, 8, 8), 0.5), 16)
def test_any_tensor_is_smoothed_or_refused(grey_of_any_size, images, grid):
    pipe, network = grey_of_any_size
    bases = [(pipe.classifier(0.25, levels=LEVELS), 1), (lambda images: images.flatten(1)[:, :1].expand(-1, 2), None)]
    for base, channels in bases:
        smoothed = SmoothedClassifier(base, 0.25, grid)
        certificates = attempt(lambda smoothed=smoothed: smoothed.certify(images, n0=1, n=2, alpha=0.3), network)
        wanted = images.ndim == 4 and is_smoothable(images, grid, channels)
        assert (certificates is not REFUSED) == wanted
        for certificate in () if certificates is REFUSED else certificates:
            check_sound(certificate)
        one_by_one = attempt(
            lambda smoothed=smoothed: list(smoothed.certify_each([images, BLACK], n0=1, n=2, alpha=0.3)), network
        )
        wanted = images.ndim == 3 and is_smoothable(images, grid, channels)
        assert (one_by_one is not REFUSED) == wanted


@cases(300)
@given(images=any_tensors())
@example(torch.full((2, 1, 8, 8), -3.0))
@example(torch.full((2, 1, 8, 8), math.nan))
def test_any_tensor_is_scored_or_refused(grey_of_any_size, images):
    pipe, network = grey_of_any_size
    valid = tensor(None, 1, None, None)(images) and all(side % 2 == 0 for side in images.shape[-2:])
    for classifier in (pipe.classifier(0.25, levels=LEVELS), pipe.classifier(0.0, levels=LEVELS)):
        logits = attempt(lambda f=classifier: f(images), network, FloatingPointError)
        assert (logits is not REFUSED) == valid
        if valid:
            assert is_result(logits) == bool(images.isfinite().all())
        assert not is_result(logits) or (logits.shape == (len(images), 3) and logits.isfinite().all())
