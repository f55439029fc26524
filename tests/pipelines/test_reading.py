"""Images that are read when they are needed: the same calibration whatever holds them, in memory that stays flat."""

import tracemalloc
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.memory import PeakMemory
from helpers.networks import tiny_unet
from helpers.sifters import shade_pipe, shades

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.diffusion.calibration import calibrate_sifted
from diffusers_ndc.diffusion.sifter_fitting import SiftFitting
from diffusers_ndc.pipelines.inputs import to_pixel_batch
from diffusers_ndc.pipelines.reading import ReadBatch


COUNT = 36  # more than the images that are read at a time
SETTINGS = {"num_levels": 2, "candidates": NoiseLevels((1.0, 3.0, 8.0), (1.0, 0.2, 0.02)), "num_copies": 1, "seed": 5}


@pytest.fixture(scope="module")
def pixels():
    """Grey 8 x 8 images of 8 bits, shape `(N, 1, 8, 8)`, and their classes."""
    images, labels = shades(COUNT)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels


def column_of(pictures, **settings):
    features = datasets.Features({"image": datasets.Image(), "other": datasets.Value("int64")})
    columns = {"image": pictures, "other": list(range(len(pictures)))}
    return datasets.Dataset.from_dict(columns, features=features)["image"]


def paths_of(pictures, folder):
    paths = [folder / f"{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return [*map(str, paths[:5]), *paths[5:]]


def kinds_of(tensor, folder):
    """The same images, held in every way."""
    pictures = [PIL.Image.fromarray(image[0].numpy()) for image in tensor]
    return {
        "tensor": tensor,
        "float tensor": tensor / 255,
        "array": tensor.movedim(1, -1).numpy(),
        "PIL images": pictures,
        "tensors": tuple(tensor),
        "batches": [tensor[:7], tensor[7], tensor[8:].movedim(1, -1).numpy()],
        "paths": paths_of(pictures, folder),
        "lazy column": column_of(pictures),
        "any sequence": Counted(pictures),
    }


class Counted(Sequence):
    """A sequence that counts how often each of its images is read."""

    def __init__(self, images):
        self.images, self.reads = images, np.zeros(len(images), dtype=int)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        assert type(number) is int
        self.reads[number] += 1
        return self.images[number]


def outcome(pipe, levels):
    """All that a calibration decides."""
    sift = pipe.sifter and pipe.sifter.find(0.25)
    state = {name: value.tolist() for name, value in sift.state_dict().items()} if sift else None
    return levels, sift and sift.config, state


@pytest.mark.parametrize("sift", ["features", "losses"])
def test_a_calibration_is_the_same_to_the_bit_whatever_holds_the_images(pixels, tmp_path, sift):
    images, labels = pixels
    outcomes = {}
    for name, given in kinds_of(images, tmp_path).items():
        pipe = shade_pipe()
        outcomes[name] = outcome(pipe, pipe.calibrate(given, labels, 0.25, **SETTINGS, sift=sift))
    wanted = outcomes["tensor"]
    assert [name for name, found in outcomes.items() if found != wanted] == []
    other = shade_pipe()
    assert outcome(other, other.calibrate(images ^ 1, labels, 0.25, **SETTINGS, sift=sift)) != wanted


def test_rows_are_those_of_the_whole_batch(pixels, tmp_path):
    images, labels = pixels
    denoiser, rows = shade_pipe().denoiser, np.array([35, 3, 0])
    whole, _ = to_pixel_batch(images, 1, (8, 8))
    for given in kinds_of(images, tmp_path).values():
        batch = ReadBatch(given, denoiser, torch.device("cpu"))
        assert len(batch) == COUNT and torch.equal(batch[rows], whole[rows])
    pipe = shade_pipe()
    classifier = pipe.classifier(0.25, levels=SETTINGS["candidates"])
    levels, sift = calibrate_sifted(classifier, whole, labels, 2, 0.998, SiftFitting(num_copies=1), seed=5)
    assert pipe.calibrate(images, labels, 0.25, **SETTINGS) == levels
    assert pipe.sifter.find(0.25).config == sift.config


@pytest.mark.parametrize("sift, rounds", [("features", 3), ("losses", 1)])
def test_images_are_read_once_to_check_them_and_once_in_each_round(pixels, monkeypatch, sift, rounds):
    images, labels = pixels
    totals, updates = [], []
    pipe, counted = shade_pipe(), Counted(list(images))
    bar = SimpleNamespace(update=updates.append)
    monkeypatch.setattr(pipe, "progress_bar", lambda total: totals.append(total) or nullcontext(bar))
    pipe.calibrate(counted, labels, 0.25, **SETTINGS, sift=sift)
    assert counted.reads.tolist() == [2 + rounds] + [1 + rounds] * (COUNT - 1)
    assert sum(updates) == totals[0] == (1 + rounds) * COUNT


def never(*args, **kwargs):
    raise AssertionError("work was done")


@pytest.mark.parametrize(
    "spoilt, match",
    [
        (torch.zeros(1, 9, 9), r"`images\[20\]` must have the shape .*8 x 8 pixels, got .*9, 9"),
        (torch.zeros(3, 8, 8), r"`images\[20\]` must have the shape"),
        (torch.full((1, 8, 8), 1.5), r"`images\[20\]` must have values in \[0, 1\].*got 1.5"),
        (torch.full((1, 8, 8), torch.nan), r"`images\[20\]` must have values in \[0, 1\].*NaN"),
        (torch.zeros(2, 1, 8, 8), r"`images\[20\]` must be a single image, got a batch .* 2"),
        (torch.zeros(1, 8, 8, dtype=torch.long), r"`images\[20\]` must have values of type"),
        (None, r"`images\[20\]` must be .*got NoneType"),
        ("nowhere.png", r"`images\[20\]` must be an image that can be read, got FileNotFoundError"),
        (__file__, r"`images\[20\]` must be an image that can be read, got UnidentifiedImageError"),
        (PIL.Image.new("F", (8, 8)), r"`images\[20\]` must be PIL images of the modes"),
    ],
)
def test_a_bad_image_is_named_before_any_work(pixels, monkeypatch, spoilt, match):
    images, labels = pixels
    pipe, several = shade_pipe(), list(images)
    several[20] = spoilt
    monkeypatch.setattr(pipe.unet, "forward", never)
    with pytest.raises((TypeError, ValueError), match=match):
        pipe.calibrate(Counted(several), labels, 0.25)


def test_a_truncated_file_is_named(pixels, tmp_path):
    images, labels = pixels
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64), dtype=np.uint8))
    paths = paths_of([picture] * COUNT, tmp_path)
    data = paths[20].read_bytes()
    paths[20].write_bytes(data[: len(data) // 2])
    for given in (paths, [PIL.Image.open(path) for path in paths], column_of(list(map(str, paths)))):
        with pytest.raises(ValueError, match=r"`images\[20\]` must be an image that can be read, got OSError"):
            shade_pipe().calibrate(given, labels, 0.25)


def test_images_of_several_shapes_are_refused_where_the_model_takes_any():
    pipe = shade_pipe()
    pipe.unet.register_to_config(sample_size=None)
    images = [torch.zeros(1, 8, 8)] * 5 + [torch.zeros(1, 16, 16)]
    with pytest.raises(ValueError, match=r"`images\[5\]` must be of the shape of the first image, \(1, 8, 8\)"):
        pipe.calibrate(images, [0, 1, 2] * 2)


def test_wrong_labels_are_refused_before_the_images_are_read(pixels):
    images, labels = pixels
    for wrong in (labels[:-1], [0, 1] * 18, [0, 1] * 17 + [0, 2]):
        counted = Counted(list(images))
        with pytest.raises(ValueError, match="`labels` must"):
            shade_pipe().calibrate(counted, wrong, 0.25)
        assert counted.reads.tolist() == [1] + [0] * (COUNT - 1)


def test_files_are_turned_upright(tmp_path):
    picture = PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    batch = ReadBatch([tmp_path / "turned.png"], shade_pipe().denoiser, torch.device("cpu"))
    expected, _ = to_pixel_batch(picture.rotate(180), 1, (8, 8))
    assert torch.equal(batch[np.array([0])], expected)


class Made(Sequence):
    """Images of 16 x 16 pixels and three colours in three shades, each made when it is read."""

    num_bytes = 3 * 16 * 16 * 4

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number >= self.count:
            raise IndexError(number)
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(number))
        return 0.4 * (number % 3) + 0.2 * noise


def calibrate(images):
    unet = tiny_unet(in_channels=3, out_channels=3, sample_size=16)
    pipe = NoisedDiffusionClassifierPipeline(unet, DDPMScheduler(), null_class=3)
    pipe.set_progress_bar_config(disable=True)
    labels = np.arange(len(images)) % 3
    pipe.calibrate(images, labels, 0.25, 1, candidates=NoiseLevels((2.0,), (1.0,)), batch_size=16, num_copies=1)


def peak_of_tensors(images):
    with PeakMemory() as memory:
        calibrate(images)
    return memory.peak


def test_peak_memory_of_tensors_does_not_grow_with_the_number_of_images():
    """Negative control: where the images are kept, it grows by all of them."""
    few, many = 128, 288  # at least 32 images in each of four folds
    small = peak_of_tensors(Made(few))
    assert peak_of_tensors(Made(many)) <= small + 2 * Made.num_bytes
    assert peak_of_tensors(list(Made(many))) >= small + 0.9 * many * Made.num_bytes


@pytest.mark.slow
def test_what_else_is_kept_of_an_image_is_small():
    """Labels, scores and errors of a few candidates, in what Python and numpy hold."""
    peaks = []
    for count in (200, 600):
        tracemalloc.start()
        calibrate(Made(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.1 * 400 * Made.num_bytes
