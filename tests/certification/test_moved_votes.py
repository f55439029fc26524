"""Votes that move between hardware: near-ties explain them, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusers_ndc import Certificate, SmoothedClassifier
from diffusers_ndc.certification.moved_votes import Comparison, Stage, unexplained_votes
from diffusers_ndc.certification.near_ties import (
    TOLERANCES,
    NearTie,
    Ranked,
    find_near_ties,
    near_tie_tolerance,
)
from diffusers_ndc.certification.procedures import Sampling
from diffusers_ndc.certification.recasting import Recast
from diffusers_ndc.certification.vote_sequence import pack_votes, unpack_votes
from diffusers_ndc.certification.voting import Votes, rank


SIGMA, IMAGE = 0.25, torch.full((1, 4, 4), 0.5 + 0.05 / 4)


def hardware(round_off, seed=0):
    """A classifier of logits around 1 whose score is rounded in another way by each seed."""

    def classify(images):
        score = images.flatten(1).mean(1).double() - 0.5
        jitter = torch.sin(1e6 * (1 + seed) * score) * round_off
        return torch.stack([1 - score - jitter, 1 + score + jitter, torch.zeros_like(score)], dim=1)

    return SmoothedClassifier(classify, SIGMA)


def tie(label, other, number=0, stage="estimate"):
    return NearTie(stage, number, label, other, 1e-5)


@pytest.mark.parametrize("how", [{}, {"bound": "mixture"}, {"resolution": 0.01}, {"bound": "runner-up"}])
def test_votes_that_moved_at_near_ties_are_explained_and_listed(how):
    here, there = hardware(2e-4), hardware(2e-4, seed=1)
    (certificate,) = there.certify(IMAGE[None], n0=40, n=4_000, seed=1, **how)
    again = here.replay(IMAGE, certificate)
    comparison = certificate.compare(again)
    assert certificate.agrees(again) and comparison.unexplained == 0
    assert 0 < comparison.moved == len(comparison.votes) <= len(again.near_ties) < 0.02 * certificate.votes
    assert (again.n, again.votes) == (certificate.n, certificate.votes)
    for vote in comparison.votes:
        assert {vote.recorded, vote.replayed} == {0, 1} and 0 <= vote.gap < TOLERANCES["float32"]
        copy = here.noisy_copies(IMAGE, certificate, 1, start=vote.number, stage=vote.stage)
        assert here.base_classifier(copy).argmax().item() == vote.replayed
        assert there.base_classifier(copy).argmax().item() == vote.recorded
    assert replace(there.replay(IMAGE, certificate), evaluations=certificate.evaluations) == certificate


def test_votes_that_moved_elsewhere_are_not_explained():
    (certificate,) = hardware(2e-2, seed=1).certify(IMAGE[None], n0=10, n=4_000, seed=1)
    again = hardware(2e-2).replay(IMAGE, certificate)
    comparison = certificate.compare(again)
    assert not certificate.agrees(again) and 0 < comparison.unexplained <= comparison.moved
    assert {vote.gap is None for vote in comparison.votes} == {True, False}


def test_counts_alone_are_explained_by_near_ties_if_there_are_enough():
    here = hardware(0.0)
    (certificate,) = here.certify(IMAGE[None], n0=10, n=4_000, seed=1, bound="mixture")
    near = sum(tie.label == 0 for tie in here.replay(IMAGE, certificate).near_ties)
    assert 0 < near < 40
    for gained, agrees in ((near, True), (near + 1, False)):
        counts = {0: certificate.counts[0] - gained, 1: certificate.counts[1] + gained}
        record = {name: getattr(certificate, name) for name in ("num_classes", "seed", "image_hash", "n0", "device")}
        forged = Certificate.from_counts(certificate.selection_counts, counts, SIGMA, 0.001, "mixture", **record)
        again = here.replay(IMAGE, forged)
        assert forged.agrees(again) == agrees and forged.votes_moved(again) == gained
        assert forged.compare(again).unexplained == gained - near if not agrees else True


@pytest.mark.parametrize(
    "recorded, replayed, ties, unexplained",
    [
        ({1: 5}, {1: 5}, [], 0),
        ({1: 5}, {1: 4, 2: 1}, [], 1),
        ({1: 5}, {1: 4, 2: 1}, [tie(2, 1)], 0),
        ({1: 5}, {1: 4, 2: 1}, [tie(1, 2)], 1),  # the wrong way round: its vote was already for 1
        ({1: 5}, {1: 4, 2: 1}, [tie(2, 3), tie(3, 1)], 0),  # two votes moved
        ({1: 5}, {1: 4, 2: 1}, [tie(2, 3)], 1),
        ({1: 5, 3: 2}, {1: 3, 2: 4}, [tie(2, 1), tie(2, 1), tie(2, 1), tie(2, 3)], 1),
        ({1: 6}, {1: 5}, [tie(1, 2)], 1),  # another number of votes
        ({}, {}, [], 0),
    ],
)
def test_near_ties_explain_what_flipping_them_can_do(recorded, replayed, ties, unexplained):
    assert unexplained_votes(recorded, replayed, ties) == unexplained


def test_too_many_near_ties_explain_nothing():
    """A forger could choose the votes of a classifier that is always undecided."""
    labels, moved = [0] * 100, [1, *[0] * 99]
    for known in (True, False):
        recorded = [Stage("estimate", {0: 99, 1: 1}, moved if known else None)]
        replayed = [Stage("estimate", {0: 100}, labels if known else None)]
        for count, unexplained in ((1, 0), (2, 0), (3, 1), (100, 1)):
            ties = [tie(0, 1, number) for number in range(count)]
            assert Comparison(recorded, replayed, ties).unexplained == unexplained
    assert Comparison(recorded, replayed, [tie(0, 1, stage="select")]).unexplained == 1


def test_a_near_tie_is_judged_by_the_scale_of_all_logits():
    copies = [Ranked(0, 1, gap, 10.0) for gap in (0.5, 0.009, 0.011)]
    (found,) = find_near_ties({"select": copies}, 1e-3)
    assert (found.stage, found.number, found.label, found.other) == ("select", 1, 0, 1)
    assert found.gap == pytest.approx(9e-4)
    assert find_near_ties({"select": [Ranked(0, 1, 0.0, 0.0)], "estimate": []}, 1e-3)[0].gap == 0.0
    assert rank(1, torch.tensor([-3.0, 2.0, 1.5])) == Ranked(1, 2, 0.5, 2.0)
    alone = rank(0, torch.tensor([-3.0]))
    assert alone == Ranked(0, 0, 0.0, 3.0) and find_near_ties({"select": [alone]}, 1e-3) == ()


def test_the_tolerance_is_that_of_the_coarsest_dtype():
    assert near_tie_tolerance({}) == near_tie_tolerance({"dtype": "float32"}) == 2**-10
    assert near_tie_tolerance({"dtype": "autocast bfloat16", "seed": None}) == 2**-7
    assert near_tie_tolerance({"dtype": "float64"}) < 1e-11
    assert near_tie_tolerance({"dtype": "float32", "classifier": {"dtype": "bfloat16"}}) == 2**-7
    assert near_tie_tolerance({"dtype": "float32", "classifier_dtype": "bfloat16", "levels": [1]}) == 2**-7


def test_a_selection_that_would_go_on_keeps_the_number_of_its_draws():
    """Six votes for one class settle the choice of ten; with one of them moved they do not."""
    record = {"seed": 1, "image_hash": "00", "num_classes": 2, "vote_sequence": pack_votes([1] * 46)}
    certificate = Certificate.from_counts({1: 6}, {1: 40}, SIGMA, 0.001, "mixture", n0=10, **record)
    recast = Recast(certificate, Sampling(10, 40, 0.001, "mixture"), {"seed": 1, "image_hash": "00"}, 1e-3)
    draws = recast.next_draws()
    assert (draws.start, draws.count, draws.ranked) == (0, 6, True)
    ranked = [Ranked(0, 1, 1e-5, 1.0), *[Ranked(1, 0, 1.0, 1.0)] * 5]
    recast.add(Votes({0: 1, 1: 5}, 6, 2, labels=[0, 1, 1, 1, 1, 1], ranked=ranked))
    assert recast.next_draws().count == 40
    recast.add(Votes({1: 40}, 40, 2, labels=[1] * 40, ranked=[Ranked(1, 0, 1.0, 1.0)] * 40))
    assert recast.next_draws() is None
    again = recast.result
    assert again.verify() and certificate.agrees(again) and certificate.votes_moved(again) == 1
    assert not replace(certificate, alpha=0.01).agrees(again)


def test_soft_votes_agree_to_within_round_off():
    def soft(images, off=0.0):
        score = 30 * (images.flatten(1).mean(1) - 0.5).double() + off
        return torch.stack([torch.zeros_like(score), score], dim=1)

    image = torch.full((1, 1, 4, 4), 0.6)
    (certificate,) = SmoothedClassifier(soft, SIGMA).certify(image, n0=10, n=500, bound="empirical-bernstein", seed=1)
    for off, agrees in ((1e-6, True), (0.05, False), (-0.05, False)):
        shifted = SmoothedClassifier(lambda images, off=off: soft(images, off), SIGMA)
        assert certificate.agrees(shifted.replay(image[0], certificate)) == agrees


def test_the_sequence_of_votes_is_read_as_it_was_written():
    for labels in ([], [3], [0] * 1000, np.random.default_rng(0).integers(0, 70_000, 500).tolist()):
        assert unpack_votes(pack_votes(labels), len(labels)) == labels
    packed = pack_votes([1, 2, 3])
    for damaged in ("", "?", packed[:-4], packed[:8], "A" * 40, packed + "AAAA", pack_votes([0] * 10_000_000)):
        with pytest.raises(ValueError, match="`vote_sequence` must"):
            unpack_votes(damaged, 3)
    with pytest.raises(ValueError, match="`vote_sequence` must have 2 votes"):
        unpack_votes(packed, 2)


@pytest.mark.parametrize("sequence", [3, b"", "x", pack_votes([1] * 12), pack_votes([0] + [1] * 12)])
def test_a_record_whose_votes_are_others_than_its_counts_is_flawed(sequence):
    certificate = Certificate.from_counts({1: 3}, {1: 10}, SIGMA, 0.01, vote_sequence=pack_votes([1] * 13))
    assert certificate.verify() and Certificate.from_dict(certificate.to_dict()) == certificate
    assert "near_ties" not in certificate.to_dict()
    assert "vote" in replace(certificate, vote_sequence=sequence).flaw
