"""`batch_size="auto"`: what the trial chooses, when it takes place, and that no vote depends on it."""

import time

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import processor as processor_of
from helpers.networks import tiny_unet, tiny_vit
from helpers.sifters import random_sift

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels, SiftingRule, SmoothedClassifier
from diffusers_ndc.common.checks import checked_batch_size
from diffusers_ndc.diffusion import batch_size as trials
from diffusers_ndc.diffusion.batch_size import find_batch_size
from diffusers_ndc.diffusion.denoised import DenoisedClassifier
from diffusers_ndc.diffusion.feature_classifier import FeatureClassifier


CPU = torch.device("cpu")
LEVELS = NoiseLevels((2.0, 4.0), (1.0, 0.5), SiftingRule((0.1,)))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the function it is called with moves; returns a function from a cost to an evaluation."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def evaluation(seconds_of, memory=10**9):
        sizes = []

        def evaluate(size):
            sizes.append(size)
            if size > memory:
                raise torch.OutOfMemoryError("no memory")
            now[0] += seconds_of(size)

        return evaluate, sizes

    return evaluation


@pytest.mark.parametrize(
    "seconds_of, expected",
    [
        (lambda size: 1e-3 * size, 1),  # nothing gained
        (lambda size: 1e-3 * max(size, 32), 32),  # a device with room for 32
        (lambda size: 1e-3 * max(size, 30), 32),
        (lambda size: 1e-3 * (size + 1), 16),  # within 10% of the best from 16 on: 16 / 17
        (lambda size: 1e-3 * max(size, 32) * (1 if size <= 64 else 2), 32),  # caches end
        (lambda size: 1e-5 * max(size, 2000), 256),  # the largest on a CPU
        (lambda size: 60.0 * size, 1),
        (lambda size: {1: 2.7e-3, 2: 13e-3, 4: 13e-3}.get(size, 15e-3), 256),  # small batches say nothing
    ],
    ids=[
        "no gain",
        "room for 32",
        "room for 30",
        "overhead",
        "caches end",
        "largest",
        "slow",
        "small ones say nothing",
    ],
)
def test_the_smallest_batch_with_nearly_the_best_throughput_is_chosen(clock, seconds_of, expected):
    evaluate, sizes = clock(seconds_of)
    assert find_batch_size(evaluate, CPU) == expected
    assert max(sizes) <= max(8 * expected, 256)


def test_a_single_slow_run_does_not_end_the_trial(clock):
    """The second run of the size 4 takes the place of the first, which something else delayed."""
    delays = iter([0.0, 5.0])
    evaluate, sizes = clock(lambda size: 1e-3 * max(size, 64) + (next(delays, 0.0) if size == 4 else 0.0))
    assert find_batch_size(evaluate, CPU) == 64


def test_a_compilation_is_not_taken_for_the_network(clock):
    """The first runs of sizes 1 and 2 compile."""
    seen = set()

    def seconds_of(size):
        first = size not in seen and size <= 2
        seen.add(size)
        return 30.0 * first + 0.1 * max(size, 2) / 2

    evaluate, _ = clock(seconds_of)
    assert find_batch_size(evaluate, CPU) == 2


@pytest.mark.parametrize("memory, expected", [(1, 1), (5, 4), (40, 32)])
def test_the_trial_ends_with_the_memory(clock, memory, expected):
    evaluate, sizes = clock(lambda size: 1e-3, memory)
    assert find_batch_size(evaluate, CPU) == expected
    assert sizes.count(2 * expected) == 1


def test_without_memory_for_one_image_there_is_no_batch(clock):
    with pytest.raises(torch.OutOfMemoryError):
        find_batch_size(clock(lambda size: 1e-3, memory=0)[0], CPU)


def test_slow_networks_are_tried_for_a_short_time(clock):
    evaluate, sizes = clock(lambda size: 0.2 + 0.2 * size)
    find_batch_size(evaluate, CPU)
    assert sizes == [1, 1, 2]


def test_the_size_is_a_whole_number_or_auto():
    assert [checked_batch_size(size) for size in (1, 64, "auto")] == [1, 64, "auto"]
    for wrong in (0, -1, 2.0, True, None, "64", "Auto", ["auto"]):
        with pytest.raises(ValueError, match='`batch_size` must be a whole number of at least 1 or "auto", got'):
            NoisedDiffusionClassifier(Denoiser(tiny_unet(), DDPMScheduler(), null_class=3), batch_size=wrong)


def diffusion(denoiser, size):
    return NoisedDiffusionClassifier(denoiser, 0.25, "apndc", LEVELS, size)


def sifted(denoiser, size):
    return NoisedDiffusionClassifier(denoiser, 0.25, "apndc", LEVELS, size, sift=random_sift())


def features(denoiser, size):
    return FeatureClassifier(denoiser, random_sift(), size)


def behind_denoiser(denoiser, size):
    return DenoisedClassifier(denoiser, tiny_vit(), processor_of(), 0.25, size)


@pytest.mark.parametrize("make", [diffusion, sifted, features, behind_denoiser])
def test_the_batch_size_that_is_found_changes_no_certificate(images, make, monkeypatch):
    monkeypatch.setattr(trials, "LARGEST_ON_CPU", 16)
    denoiser = Denoiser(tiny_unet(), DDPMScheduler(), null_class=3)
    found = make(denoiser, "auto")
    settings = {"n0": 5, "n": 40, "seed": 0, "radii": [0.1], "max_evaluations": 300}
    certificates = SmoothedClassifier(found, 0.25).certify(images, **settings)
    assert found.network_batch in {2**k for k in range(5)}
    assert found.evaluations == sum(certificate.evaluations for certificate in certificates), "the trial's are counted"
    given = make(denoiser, 3)
    assert certificates == SmoothedClassifier(given, 0.25).certify(images, **settings)
    assert found.settings == given.settings
    torch.testing.assert_close(found(images, [1] * 4), given(images, [1] * 4))


def test_a_trial_is_made_once_for_each_network_and_kind_of_image(images, monkeypatch):
    trials_made = []

    def trial(evaluate, device):
        evaluate(2)
        trials_made.append(device)
        return 5

    monkeypatch.setattr(trials, "find_batch_size", trial)
    unet = tiny_unet()

    def classify(images, network=unet):
        denoiser = Denoiser(network, DDPMScheduler(), null_class=3)
        batches = []
        hook = network.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
        classifier = diffusion(denoiser, "auto")
        assert classifier.network_batch is None
        classifier(images, list(range(len(images))))
        hook.remove()
        return max(batches), len(trials_made), classifier.network_batch

    assert classify(images) == (5, 1, 5)
    assert classify(images) == (5, 1, 5)
    assert classify(images.double()) == (5, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert classify(images) == (5, 3, 5)
    assert classify(images, tiny_unet()) == (5, 4, 5)


def test_a_trial_leaves_gradients_and_random_numbers_alone(images, monkeypatch):
    monkeypatch.setattr(trials, "LARGEST_ON_CPU", 4)
    denoiser = Denoiser(tiny_unet(), DDPMScheduler(), null_class=3)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    images = images.requires_grad_()
    diffusion(denoiser, "auto")(images, [1] * 4).sum().backward()
    assert torch.equal(torch.rand(1), expected)
    assert images.grad.abs().sum() > 0
