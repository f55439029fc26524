"""Noise that is the same on every device, whether it was made ahead or not."""

import doctest

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels, SmoothedClassifier
from diffusers_ndc.certification import voting
from diffusers_ndc.common import prefetch
from diffusers_ndc.common.noise import standard_normal
from diffusers_ndc.common.prefetch import SHARED, NoiseAhead, gains_from_prefetching
from diffusers_ndc.diffusion import sifting


CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1, SHARED)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_expected_noise_is_that_of_its_seeds(shape, dtype):
    ahead, seeds = NoiseAhead(), [3, 2**62 + 1, 5, 9]
    plain = standard_normal(shape, seeds, dtype, CPU)
    assert torch.equal(ahead.standard_normal(shape, seeds, dtype, CPU), plain)  # nothing was expected
    for expected in (seeds, seeds[::-1], [5, 77], [77], []):
        ahead.expect(shape, expected, dtype)
        assert torch.equal(ahead.standard_normal(shape, seeds, dtype, CPU), plain)
    ahead.expect((2, *shape), seeds, dtype)  # another shape is other noise
    assert torch.equal(ahead.standard_normal(shape, seeds, dtype, CPU), plain)
    assert ahead.standard_normal(shape, [], dtype, CPU).shape == (0, *shape)


def test_the_example_of_the_docstring_runs():
    result = doctest.testmod(prefetch)
    assert result.attempted > 0 and result.failed == 0


def test_noise_is_that_of_numpy():
    """Committed records rest on it."""
    (noise,) = standard_normal((2, 3), [7], torch.float32, CPU)
    assert np.array_equal(noise.numpy(), np.random.default_rng(7).standard_normal((2, 3), dtype=np.float32))
    assert standard_normal((2, 3), [7], torch.float64, torch.device("meta")).is_meta


def test_only_accelerators_make_noise_ahead():
    assert not gains_from_prefetching(CPU)
    assert all(gains_from_prefetching(torch.device(kind)) for kind in ("cuda", "mps", "xpu"))


def test_certificates_are_the_same_with_noise_made_ahead(monkeypatch):
    """The way of an accelerator, taken on the CPU."""
    denoiser = Denoiser(tiny_unet(), EDMEulerScheduler(), null_class=3)
    levels = NoiseLevels((1.0, 2.0, 4.0), (1.0, 0.5, 0.2))
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for each in (levels.sifted(0.5), levels):
        smoothed = SmoothedClassifier(NoisedDiffusionClassifier(denoiser, 0.25, levels=each, batch_size=9), 0.25)
        plain = smoothed.certify(images, n0=7, n=60, seed=3)
        made = []
        with monkeypatch.context() as patch:
            patch.setattr(voting, "gains_from_prefetching", lambda device: True)
            patch.setattr(sifting, "gains_from_prefetching", lambda device: True)
            original = NoiseAhead.expect

            def expect(self, shape, seeds, dtype, original=original, made=made):
                made.extend(seeds)
                original(self, shape, seeds, dtype)

            patch.setattr(NoiseAhead, "expect", expect)
            assert smoothed.certify(images, n0=7, n=60, seed=3) == plain
        assert len(set(made)) > 100
