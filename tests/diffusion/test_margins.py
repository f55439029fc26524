"""Margins drawn with networks: gradients within the constant, losses clipped and capped, scores worked out by hand."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels
from diffusers_ndc.certification.lipschitz import lipschitz_constant
from diffusers_ndc.common.images import content_hash
from diffusers_ndc.common.seeds import derive_seeds
from diffusers_ndc.diffusion.margins import UNSMOOTHED_LEVELS, draw_margins, with_bounded_losses


@pytest.mark.parametrize("cap", [4.0, 1.0])
def test_gradients_of_a_network_s_margins_are_within_the_constant(cap, images):
    """Per draw, by back-propagation: the mean over draws is the margin's own gradient."""
    sigmas, weights = (0.8, 2.0), (0.5, 0.5)
    levels, constant = NoiseLevels(sigmas, weights, cap=cap), lipschitz_constant(sigmas, weights, cap, 64)
    for seed in range(4):
        unet = tiny_unet().double()
        generator = torch.Generator().manual_seed(seed)
        for weight in unet.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator).double()
        classifier = NoisedDiffusionClassifier(Denoiser(unet, EDMEulerScheduler()), 0.0, "dc", levels)
        image = images[:1].double().requires_grad_()
        logits = classifier(image.expand(60, -1, -1, -1), seeds=list(range(60))).mean(0) / 64
        assert logits.std() > 0
        for rival in (1, 2):
            (gradient,) = torch.autograd.grad(logits[0] - logits[rival], image, retain_graph=True)
            assert 0 < gradient.norm().item() / 2 <= constant  # pixel to model units


def test_losses_are_clipped_and_capped(images):
    unet = tiny_unet()
    unet.conv_out.weight.data *= 30  # beyond [-1, 1]
    denoiser = Denoiser(unet, EDMEulerScheduler(), null_class=3)

    def errors(cap):
        levels = NoiseLevels((1.0, 5.0), (1.0, 1.0), cap=cap)
        return NoisedDiffusionClassifier(denoiser, 0.0, "dc", levels).squared_errors(images, seeds=[0, 1, 2, 3])

    plain, clipped, capped = errors(None), errors(4.0), errors(0.5)
    assert (plain > clipped).any() and clipped.max() <= 4 * 64
    assert torch.equal(capped, clipped.clamp(max=0.5 * 64)) and (clipped > 0.5 * 64).any()


def test_levels_with_bounded_losses():
    levels = NoiseLevels((1.0, 3.0), (0.5, 0.5))
    assert with_bounded_losses(levels.sifted(1.0)) == replace(levels, cap=4.0)
    assert with_bounded_losses(UNSMOOTHED_LEVELS) == UNSMOOTHED_LEVELS
    with pytest.raises(TypeError, match="`levels` must be of type NoiseLevels, got dict"):
        with_bounded_losses(levels.to_dict())


def test_scores_worked_out_by_hand(images):
    """Fresh seeds for each draw, the candidate chosen by draws of their own, margins mapped to [0, 1]."""
    levels, (n0, n, seed), updates = NoiseLevels((1.0, 5.0), (0.5, 1.5), cap=0.5), (3, 110, 7), []
    classifier = NoisedDiffusionClassifier(Denoiser(tiny_unet(), EDMEulerScheduler(), null_class=3), 0.0, "dc", levels)
    scores = draw_margins(classifier, images[0], n0, n, 0.05, seed, updates.append)

    def losses(purpose, count):
        key = (seed, content_hash(images[0]), f"{purpose}, n0=3, n=110, alpha=0.05")
        seeds = [derive_seeds((*key, number), 1)[0] for number in range(count)]
        with torch.no_grad():
            return -classifier(images[:1].expand(count, -1, -1, -1), seeds=seeds).double() / 64

    selection, further = losses("select-margin", n0).mean(0), losses("margin", n)
    candidate = int(selection.argmin())
    expected = ((further - further[:, [candidate]]) / (0.5 * 2.0) + 1) / 2
    assert set(scores.score_sums) == set(scores.score_squares) == {0, 1, 2} - {candidate}
    for label in scores.score_sums:
        assert scores.score_sums[label] == pytest.approx(expected[:, label].sum().item(), rel=1e-5)
        assert scores.score_squares[label] == pytest.approx(expected[:, label].square().sum().item(), rel=1e-5)
    assert scores.selection_losses == pytest.approx(dict(enumerate(selection.tolist())), rel=1e-5)
    assert (scores.num_classes, scores.evaluations) == (3, (n0 + n) * 2 * 3)
    assert updates == [3, 100, 10]


def test_refuses_losses_without_a_cap(images):
    levels = NoiseLevels((1.0,), (1.0,))
    classifier = NoisedDiffusionClassifier(Denoiser(tiny_unet(), EDMEulerScheduler()), 0.0, "dc", levels)
    with pytest.raises(ValueError, match="`classifier` must have levels with a cap"):
        draw_margins(classifier, images[0], 1, 1, 0.05, 0)
