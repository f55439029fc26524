"""The fast classifier against the paper's formulas, one noisy copy at a time."""

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels
from diffusers_ndc.common.noise import standard_normal
from diffusers_ndc.common.seeds import derive_seeds
from diffusers_ndc.diffusion.reference import apndc_clean_logits, apndc_logits, epndc_logits


REFERENCE = {"apndc": apndc_logits, "apndc-clean": apndc_clean_logits, "epndc": epndc_logits}
SIGMA, SEEDS = 0.25, [3, 1, 4, 1]


@pytest.mark.parametrize("method", REFERENCE)
@pytest.mark.parametrize("scheduler, null_class", [(DDPMScheduler, 3), (EDMEulerScheduler, None)])
def test_logits_are_those_of_the_reference(images, method, scheduler, null_class):
    denoiser = Denoiser(tiny_unet(), scheduler(), null_class=null_class)
    levels = NoiseLevels.log_grid(0.8, 5.0, 4)
    noisy = images + SIGMA * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = NoisedDiffusionClassifier(denoiser, SIGMA, method, levels, batch_size=7)(noisy, SEEDS)
        for row, (copy, seed) in enumerate(zip(noisy, SEEDS, strict=True)):
            eps = standard_normal((1, 8, 8), derive_seeds((seed,), len(levels)), torch.float32, torch.device("cpu"))
            expected = REFERENCE[method](denoiser, 2 * copy - 1, 2 * SIGMA, levels, eps)
            torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", REFERENCE)
def test_sifting_keeps_the_reference_s_winner(images, method):
    """With thresholds that no clear loser survives and no close one is dropped by."""
    denoiser = Denoiser(tiny_unet(), DDPMScheduler(), null_class=3)
    levels = NoiseLevels.log_grid(0.8, 5.0, 4)
    noisy = images + SIGMA * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        everything = NoisedDiffusionClassifier(denoiser, SIGMA, method, levels)(noisy, SEEDS)
        width = (everything.amax(dim=1) - everything.amin(dim=1)).max().item()
        sifted = NoisedDiffusionClassifier(denoiser, SIGMA, method, levels.sifted(width))(noisy, SEEDS)
        for row, (copy, seed) in enumerate(zip(noisy, SEEDS, strict=True)):
            eps = standard_normal((1, 8, 8), derive_seeds((seed,), len(levels)), torch.float32, torch.device("cpu"))
            expected = REFERENCE[method](denoiser, 2 * copy - 1, 2 * SIGMA, levels, eps)
            assert sifted[row].argmax() == expected.argmax()
