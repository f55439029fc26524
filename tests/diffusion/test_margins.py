"""Margins drawn with networks, and the pipeline's certificates without smoothing."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, LipschitzCertificate, NoisedDiffusionClassifier, NoiseLevels
from diffusers_ndc.certification.lipschitz import lipschitz_constant
from diffusers_ndc.diffusion.margins import certify_margin


def known_classifier(margins, levels):
    """Logits from the seeds alone: losses of a known mean, bounded by the cap, on images of 64 values."""

    def classify(images, seeds):
        rows = torch.stack([torch.rand(len(margins), generator=torch.Generator().manual_seed(s)) for s in seeds])
        return -64 * levels.cap * (rows < torch.tensor(margins)).double()

    settings = {"method": "dc", "levels": levels.to_dict()}
    pixels = SimpleNamespace(encoder=None)
    known = SimpleNamespace(levels=levels, settings=settings, evaluations=0, inference=nullcontext, denoiser=pixels)
    return type("Known", (), {**vars(known), "__call__": lambda self, images, seeds: classify(images, seeds)})()


def test_certificates_of_drawn_margins_are_false_at_most_at_their_rate():
    levels, image = NoiseLevels((2.0,), (1.0,), cap=1.0), torch.full((1, 8, 8), 0.5)
    classifier, false, right = known_classifier((0.2, 0.35, 0.9), levels), 0, 0
    true = 0.15 / lipschitz_constant(levels, 64) / 2
    for seed in range(80):
        found = certify_margin(classifier, image, n0=30, n=600, alpha=0.1, seed=seed)
        assert found.verify() and found.label in (0, None)
        false, right = false + (found.radius > true), right + (found.label == 0)
    assert false <= 8 and right > 50


@pytest.mark.parametrize("cap", [4.0, 1.0])
def test_gradients_of_a_network_s_margins_are_within_the_constant(cap, images):
    """Per draw, by back-propagation: the mean over draws is the margin's own gradient."""
    levels = NoiseLevels((0.8, 2.0), (0.5, 0.5), cap=cap)
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
            assert 0 < gradient.norm().item() / 2 <= lipschitz_constant(levels, 64)  # pixel to model units


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


def test_the_pipeline_certifies_without_smoothing(pipe, images):
    pipe.scheduler = DDPMScheduler(timestep_spacing="trailing")
    found = pipe.certify(images[:2], sigma=0, n=150, alpha=0.01, seed=3)
    assert all(isinstance(c, LipschitzCertificate) and c.verify() for c in found)
    assert [c.n0 for c in found] == [20, 20] and found[0].evaluations == 170 * 3
    assert pipe.certify(images[1], sigma=0, method="dc", n=150, alpha=0.01, seed=3, batch_size=7) == found[1]
    levels = NoiseLevels((1.0, 3.0), (0.5, 0.5)).sifted(1.0)
    own = pipe.certify(images[0], sigma=0, levels=levels, n0=5, n=30, seed=0)
    assert own.levels == NoiseLevels((1.0, 3.0), (0.5, 0.5), cap=4.0)  # clipped, and not sifted


def test_draws_of_margins_can_be_made_again(pipe, images):
    pipe.scheduler = EDMEulerScheduler()
    found = pipe.certify(images[0], sigma=0, n=150, alpha=0.01, seed=3)
    again = pipe.replay(images[0], found, batch_size=7)
    assert found.agrees(again) and again.evaluations == found.evaluations
    scores = {label: total * 0.99 for label, total in found.score_sums.items()}
    squares = {label: total * 0.99 for label, total in found.score_squares.items()}
    fields = {name: value for name, value in vars(found).items() if name not in ("label", "radius")}
    forged = LipschitzCertificate.from_scores(**{**fields, "score_sums": scores, "score_squares": squares})
    assert forged.verify() and not forged.agrees(pipe.replay(images[0], forged))
    for change, match in (
        ({"seed": 4}, None),
        ({"seed": None}, "seed None"),
        ({"image_hash": "0" * 32}, "image_hash"),
        ({"device": "cuda"}, "device 'cuda' instead of 'cpu'"),
        ({"radius": 9.0}, "flawed"),
    ):
        if match is None:
            other = replace(found, **change)
            assert not other.agrees(pipe.replay(images[0], other))
        else:
            with pytest.raises(ValueError, match=match):
                pipe.replay(images[0], replace(found, **change))
    for what in (None, found.to_dict()):
        with pytest.raises(TypeError, match="`certificate` is a"):
            pipe.replay(images[0], what)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"radii": (0.1,)}, "`radii` goes with smoothing"),
        ({"resolution": 0.1}, "`resolution`"),
        ({"bound": "mixture"}, "`bound`"),
        ({"grid": 16}, "`grid`"),
        ({"method": "apndc"}, "`sigma` is 0"),
        ({"n0": 0}, "`n0` is 0"),
        ({"n": 2.5}, "`n` is 2.5"),
        ({"alpha": 1.0}, "`alpha`"),
        ({"seed": -1}, "seed"),
        ({"levels": NoiseLevels((1e6,), (1.0,))}, "`levels`"),
    ],
)
def test_refuses_what_goes_with_smoothing_before_any_work(pipe, images, settings, match, monkeypatch):
    monkeypatch.setattr(pipe.unet, "forward", None)
    with pytest.raises(ValueError, match=match):
        pipe.certify(images, **{"sigma": 0, "n": 10, "seed": 0, **settings})
