from datetime import timedelta

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.hub import hub as hub
from helpers.networks import tiny_unet
from hypothesis import HealthCheck, settings

from diffusers_ndc import NoisedDiffusionClassifierPipeline


# `max_examples` is a percentage of the cases that each property test asks for (`helpers.fuzzing.cases`). Plain pytest
# runs `quick`; `--hypothesis-profile=ci` runs all cases, `thorough` many more, others in every run.
_COMMON = {"deadline": timedelta(seconds=20), "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("quick", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
settings.load_profile("quick")


@pytest.fixture
def unet():
    """Three classes, and a fourth embedding row for "no class"."""
    return tiny_unet()


@pytest.fixture
def pipe(unet):
    """A pipeline with the classes a, b, c and a null class."""
    pipe = NoisedDiffusionClassifierPipeline(unet, DDPMScheduler(), id2label={0: "a", 1: "b", 2: "c"}, null_class=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def images():
    """Four clean 8 x 8 grey images in [0, 1]."""
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=2, help="runs to kill and resume in test_resume.py (default: 2)")
    parser.addoption("--device", default="cuda", help="device of test_cuda.py; with cpu it runs what needs no CUDA")


@pytest.fixture(scope="session")
def small_model():
    """A function that makes, in a folder, a model of the classes a, b and c and a folder of images."""

    def make(folder, images_per_class=4):
        pipe = NoisedDiffusionClassifierPipeline(
            tiny_unet(), DDPMScheduler(), id2label={0: "a", 1: "b", 2: "c"}, null_class=3
        )
        pipe.save_pretrained(folder / "model")
        rng = np.random.default_rng(0)
        for name in "abc":
            (folder / "data" / "test" / name).mkdir(parents=True)
            for number in range(images_per_class):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(folder / "data" / "test" / name / f"{number}.png")
        return folder / "model", folder / "data"

    return make
