"""The pipeline's certificates without smoothing."""

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler

from diffusers_ndc import LipschitzCertificate, NoiseLevels
from diffusers_ndc.certification.lipschitz import CappedLevels, lipschitz_constant
from diffusers_ndc.pipelines.unsmoothed import certify_image


def known_classifier(margins, levels):
    """Logits from the seeds alone: losses of a known mean, bounded by the cap, on images of 64 values."""

    def classify(images, seeds):
        rows = torch.stack([torch.rand(len(margins), generator=torch.Generator().manual_seed(s)) for s in seeds])
        return -64 * levels.cap * (rows < torch.tensor(margins)).double()

    known = {
        "levels": levels,
        "num_classes": len(margins),
        "settings": {"method": "dc", "levels": levels.to_dict()},
        "evaluations": 0,
        "inference": nullcontext,
        "denoiser": SimpleNamespace(encoder=None),
    }
    return type("Known", (), {**known, "__call__": lambda self, images, seeds: classify(images, seeds)})()


def test_certificates_of_drawn_margins_are_false_at_most_at_their_rate():
    levels, image = NoiseLevels((2.0,), (1.0,), cap=1.0), torch.full((1, 8, 8), 0.5)
    classifier, false, correct = known_classifier((0.2, 0.35, 0.9), levels), 0, 0
    true = 0.15 / lipschitz_constant((2.0,), (1.0,), 1.0, 64) / 2
    for seed in range(80):
        certificate = certify_image(classifier, image, n0=30, n=600, alpha=0.1, seed=seed)
        assert certificate.verify() and certificate.label in (0, None)
        false, correct = false + (certificate.radius > true), correct + (certificate.label == 0)
    assert false <= 8 and correct > 50


def test_the_pipeline_certifies_without_smoothing(pipe, images):
    pipe.scheduler = DDPMScheduler(timestep_spacing="trailing")
    certificates = pipe.certify_unsmoothed(images[:2], n=150, alpha=0.01, seed=3)
    assert all(isinstance(c, LipschitzCertificate) and c.verify() for c in certificates)
    assert [c.n0 for c in certificates] == [20, 20] and certificates[0].evaluations == 170 * 3
    assert pipe.certify_unsmoothed(images[1], n=150, alpha=0.01, seed=3, batch_size=7) == certificates[1]
    levels = NoiseLevels((1.0, 3.0), (0.5, 0.5)).sifted(1.0)
    own = pipe.certify_unsmoothed(images[0], levels=levels, n0=5, n=30, seed=0)
    assert own.levels == CappedLevels((1.0, 3.0), (0.5, 0.5), cap=4.0)  # clipped, and not sifted
    scalar = pipe.certify_unsmoothed(images[0], n0=2, n=5, alpha=np.float32(0.25), seed=0)
    assert LipschitzCertificate.from_dict(json.loads(json.dumps(scalar.to_dict()))) == scalar
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (pipe.certify_unsmoothed(images[0], n0=2, n=5, generator=generator) for generator in generators)
    assert first == second and first.seed is not None


def test_draws_can_be_made_again(pipe, images):
    pipe.scheduler = EDMEulerScheduler()
    certificate = pipe.certify_unsmoothed(images[0], n=150, alpha=0.01, seed=3)
    again = pipe.replay(images[0], certificate, batch_size=7)
    assert certificate.agrees(again) and again.evaluations == certificate.evaluations
    scores = {label: total * 0.99 for label, total in certificate.score_sums.items()}
    squares = {label: total * 0.99 for label, total in certificate.score_squares.items()}
    fields = {name: value for name, value in vars(certificate).items() if name not in ("label", "radius")}
    forged = LipschitzCertificate.from_scores(**{**fields, "score_sums": scores, "score_squares": squares})
    assert forged.verify() and not forged.agrees(pipe.replay(images[0], forged))
    on_cuda = replace(certificate, device="cuda")
    assert on_cuda.agrees(pipe.replay(images[0], on_cuda))  # for information
    other = replace(certificate, seed=4)
    assert not other.agrees(pipe.replay(images[0], other))
    for changes, match in (
        ({"seed": None}, "None"),
        ({"image_hash": "0" * 32}, "image_hash"),
        ({"radius": 9.0}, "radius is 9.0"),
        ({"base_classifier": {}}, "`certificate` must be about a base classifier"),
    ):
        with pytest.raises(ValueError, match=match):
            pipe.replay(images[0], replace(certificate, **changes))
    for value in (None, certificate.to_dict()):
        with pytest.raises(TypeError, match="`certificate` must be of type Certificate or LipschitzCertificate, got"):
            pipe.replay(images[0], value)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"n0": 0}, "`n0` must be .* from 1 .*, got 0"),
        ({"n": 2.5}, "`n` must be .*, got 2.5"),
        ({"alpha": 1.0}, "`alpha`"),
        ({"seed": -1}, "seed"),
        ({"seed": 0, "generator": torch.Generator()}, "`seed` must be None"),
        ({"levels": NoiseLevels((1e6,), (1.0,))}, "`levels`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"images": torch.full((1, 8, 8), 2.0)}, "`images` must have values in"),
    ],
)
def test_refuses_bad_input_before_any_work(pipe, images, settings, match, monkeypatch):
    monkeypatch.setattr(pipe.unet, "forward", None)
    with pytest.raises(ValueError, match=match):
        pipe.certify_unsmoothed(**{"images": images, "n": 10, **settings})


@pytest.mark.parametrize("sigma", [0, 0.0])
def test_certify_with_sigma_0_names_the_other_method(pipe, images, sigma):
    with pytest.raises(ValueError, match="`sigma` must be above 0, got 0.*`certify_unsmoothed`"):
        pipe.certify(images, sigma=sigma)
