"""Peak memory depends on the network's batch, not on how much there is to do."""

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.memory import PeakMemory
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels, SmoothedClassifier


def certify(num_images=2, num_classes=3, n=10, batch_size=8, num_levels=1):
    """Certify images; returns the sizes of the network's batches, and the peak memory beside the weights in bytes."""
    unet = tiny_unet(num_classes + 1, sample_size=32)
    levels = NoiseLevels((2.0,) * num_levels, (1.0,) * num_levels)
    denoiser = Denoiser(unet, DDPMScheduler(), null_class=num_classes)
    classifier = NoisedDiffusionClassifier(denoiser, 0.25, None, levels, batch_size)
    images = torch.rand(1, 1, 32, 32).expand(num_images, -1, -1, -1)
    batches = []
    unet.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    with PeakMemory() as memory:
        SmoothedClassifier(classifier, 0.25).certify(images, n0=1, n=n, seed=0)
    return batches, memory.peak - sum(weight.nbytes for weight in unet.parameters())


@pytest.fixture(scope="module")
def small():
    return certify()


@pytest.mark.parametrize("more", [{"n": 80}, {"num_images": 16}, {"num_classes": 30}, {"num_levels": 8}], ids=str)
def test_peak_memory_is_flat(small, more):
    """Eight or ten times as many noisy copies, images, classes or levels."""
    (small_batches, small_peak), (batches, peak) = small, certify(**more)
    assert max(small_batches) == max(batches) == 8
    assert len(batches) > 4 * len(small_batches)
    assert peak <= 1.05 * small_peak, "within 40 images of 32 x 32 pixels"


def test_peak_memory_depends_on_the_batch(small):
    batches, peak = certify(batch_size=16)
    assert max(batches) == 16
    assert peak >= 1.5 * small[1], "or the count misses what there is"
