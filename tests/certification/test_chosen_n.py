"""A number of copies that is chosen after the votes: a replay must not agree with the best prefix of a longer run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from diffusers_ndc import Certificate, SmoothedClassifier
from diffusers_ndc.certification.procedures import Sampling
from diffusers_ndc.certification.vote_sequence import pack_votes, unpack_votes


SIGMA, ALPHA, N0, N, RUNS = 0.25, 0.05, 10, 1_000, 300
THRESHOLD, IMAGE = 0.7499, torch.full((1, 1, 1), 0.5)
TRUTH = THRESHOLD - 0.5
"""Distance of the image from the other class, 0.2499: the largest radius that is true."""


def below_threshold(images):
    score = THRESHOLD - images.flatten(1)[:, 0]
    return torch.stack([score, -score], dim=1)


SMOOTHED = SmoothedClassifier(below_threshold, SIGMA)


def best_prefix(certificate):
    """What a forger makes of a run: the n, of those above 20, with the largest radius, as if it had been planned."""
    copies = SMOOTHED.noisy_copies(IMAGE, certificate, N)
    labels = below_threshold(copies).argmax(dim=1)
    hits = (labels == certificate.candidate).numpy().cumsum()
    n = np.arange(1, N + 1)
    p_lower = stats.beta.ppf(ALPHA, hits, n - hits + 1)
    best = 20 + int(np.nanargmax(p_lower[20:]))
    selected = sum(certificate.selection_counts.values())
    sequence = unpack_votes(certificate.vote_sequence, certificate.votes)[:selected] + labels[: n[best]].tolist()
    votes = {certificate.candidate: int(hits[best]), 1 - certificate.candidate: int(n[best] - hits[best])}
    return Certificate.from_counts(
        certificate.selection_counts,
        {label: count for label, count in sorted(votes.items()) if count},
        SIGMA,
        ALPHA,
        n0=N0,
        seed=certificate.seed,
        image_hash=certificate.image_hash,
        device="cpu",
        num_classes=2,
        vote_sequence=pack_votes(sequence),
    )


def forged_runs():
    """Certificates of the best prefixes of many runs, with whether a replay agrees."""
    forged = []
    for seed in range(RUNS):
        (certificate,) = SMOOTHED.certify(IMAGE[None], n0=N0, n=N, alpha=ALPHA, seed=seed)
        prefix = best_prefix(certificate)
        assert prefix.verify()
        if prefix.n < N and prefix.candidate == 0:
            forged.append((prefix, prefix.agrees(SMOOTHED.replay(IMAGE, prefix))))
    return forged


@pytest.mark.slow
def test_a_replay_refuses_the_best_prefix_of_a_longer_run():
    """The draws of that n are others. They may have the same counts by chance, but not in the same order."""
    forged = forged_runs()
    assert len(forged) > 0.9 * RUNS
    assert not any(agrees for _, agrees in forged)


@pytest.mark.slow
def test_with_draws_that_do_not_depend_on_n_every_prefix_would_replay(monkeypatch):
    """The control: the same forger, where draws are keyed by seed, image and number alone."""
    monkeypatch.setattr(Sampling, "purpose", lambda self, stage: stage)
    forged = forged_runs()
    assert all(agrees for _, agrees in forged)
    assert np.mean([certificate.radius > TRUTH for certificate, _ in forged]) > 2 * ALPHA


def test_a_prefix_that_hides_its_votes_is_refused_as_well():
    (certificate,) = SMOOTHED.certify(IMAGE[None], n0=N0, n=200, alpha=ALPHA, seed=0)
    hidden = replace(certificate, vote_sequence=None)
    again = SMOOTHED.replay(IMAGE, hidden)
    assert hidden.verify() and again == certificate and certificate.agrees(again) and not hidden.agrees(again)
    (anytime,) = SMOOTHED.certify(IMAGE[None], n0=N0, n=200, alpha=ALPHA, seed=0, bound="mixture")
    of_an_earlier_version = replace(anytime, vote_sequence=None)
    assert of_an_earlier_version.agrees(SMOOTHED.replay(IMAGE, of_an_earlier_version))


def test_another_n_alpha_n0_or_bound_has_other_draws_but_an_anytime_bound_keeps_them():
    def noise(**changes):
        how = {"n0": 5, "n": 30, "alpha": 0.1, "bound": "clopper-pearson", "seed": 3, **changes}
        (certificate,) = SMOOTHED.certify(IMAGE[None], **how)
        return SMOOTHED.noisy_copies(IMAGE, certificate, 5)

    fixed, anytime = noise(), noise(bound="mixture")
    for change in ({"n": 31}, {"alpha": 0.2}, {"n0": 6}, {"bound": "randomized-clopper-pearson"}):
        assert not torch.isclose(noise(**change), fixed).any()
    for change in ({"n": 31}, {"alpha": 0.2}, {"n0": 6}):
        assert torch.equal(noise(bound="mixture", **change), anytime)
