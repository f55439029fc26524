"""Peak memory depends on the network's batch, not on how much there is to do."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels, SmoothedClassifier


STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

pytestmark = pytest.mark.skipif(not RESET.exists(), reason="the kernel keeps no peak memory that can be reset")


def peak_growth(run) -> float:
    """MiB by which the peak of resident memory exceeds what was resident before."""

    def resident(name):
        return int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1]) / 1024

    RESET.write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def certify(num_images=2, num_classes=3, n=10):
    unet = tiny_unet(num_classes + 1, sample_size=64)
    levels = NoiseLevels((2.0,), (1.0,))
    denoiser = Denoiser(unet, DDPMScheduler(), null_class=num_classes)
    classifier = NoisedDiffusionClassifier(denoiser, 0.25, None, levels, batch_size=8)
    images = torch.rand(1, 1, 64, 64).expand(num_images, -1, -1, -1)
    return lambda: SmoothedClassifier(classifier, 0.25).certify(images, n0=1, n=n, seed=0)


@pytest.mark.parametrize("more", [{"n": 80}, {"num_images": 16}, {"num_classes": 30}])
def test_peak_memory_is_flat(more):
    """Eight or ten times as many draws, images or classes."""
    certify()()  # warms up the allocator
    small, large = peak_growth(certify()), peak_growth(certify(**more))
    assert large < small + 20, "room for the allocator's moods, about one network batch"
