"""Certification step by step: it grows, stops, keeps the best certificate, and shows the copies that voted."""

import json
from types import SimpleNamespace

import torch
from helpers.space import certificate as certificate
from helpers.space import digits as digits
from helpers.space import network_calls as network_calls
from helpers.space import one as one

from diffusers_ndc import Certificate, SmoothedClassifier
from diffusers_ndc.app import certifying, limits
from diffusers_ndc.common.images import content_hash


def test_the_radius_grows_until_the_wanted_one_is_proved(digits, one):
    steps = list(certifying.certify(digits, one, sigma=0.25, wanted=0.2, copies=200))
    copies, radii = zip(*steps[-1].radii, strict=True)
    assert len(steps) == len(copies) >= 2 and list(copies) == sorted(set(copies)) and list(radii) == sorted(radii)
    assert radii[-2] < 0.2 <= radii[-1]
    best = Certificate.from_dict(json.loads(json.dumps(steps[-1].certificate.to_dict())))
    assert (
        best.verify() and best.label == 1 and best.radius == radii[-1] and sum(steps[-1].votes.values()) == copies[-1]
    )


def test_who_stops_keeps_the_certificate_and_ends_the_work(digits, one, network_calls):
    growing = certifying.certify(digits, one, sigma=0.25, wanted=2.0, copies=2000)
    first = next(growing)
    growing.close()
    done = network_calls["all"]
    assert done > 0 and first.certificate.verify() and first.radii == [(20, first.certificate.radius)]
    assert next(growing, None) is None and network_calls["all"] == done


def test_the_best_certificate_is_kept_with_all_that_was_spent(certificate):
    later = Certificate.from_counts({7: 20}, {7: 41, 1: 19}, 0.25, 0.001, "mixture", seed=1, evaluations=12)
    assert later.radius < certificate.radius
    pipe = SimpleNamespace(certify_iter=lambda *_, **__: iter([certificate, later]))
    *_, last = certifying.certify(SimpleNamespace(pipe=pipe), None, sigma=0.25, wanted=2.0, copies=60)
    assert last.radii == [(40, certificate.radius), (60, certificate.radius)]
    assert last.certificate.evaluations == 12 and last.certificate.counts == {7: 40} and last.certificate.verify()
    assert last.votes == {7: 41, 1: 19}


def test_a_certification_has_an_end_in_time(digits, one, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0)
    (only,) = certifying.certify(digits, one, sigma=0.25, wanted=2.0, copies=2000)
    assert only.out_of_time and only.certificate.n == 20


def test_the_copies_that_are_shown_are_the_first_that_voted(digits, one):
    certificate = next(certifying.certify(digits, one, sigma=0.25, wanted=2.0, copies=100)).certificate
    image, noisy, denoised = certifying.first_copies(digits, one, certificate, 4)
    assert content_hash(image) == certificate.image_hash
    seen = []

    def recording(images):
        seen.append(images)
        return torch.tensor([[0.0, 1.0]]).expand(len(images), -1)

    next(SmoothedClassifier(recording, 0.25).certify_iter(image, n0=20, n=20, seed=certificate.seed))
    assert torch.equal(noisy, seen[-1][:4])
    assert denoised.shape == noisy.shape and (denoised - image).square().mean() < (noisy - image).square().mean() / 2
