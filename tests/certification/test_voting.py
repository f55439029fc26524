import itertools

import pytest
import torch

from diffusers_ndc.certification.certificate import draws_to_settle, plurality
from diffusers_ndc.certification.procedures import Sampling, Select
from diffusers_ndc.certification.voting import Draws, Votes, collect_votes
from diffusers_ndc.common.copies import BatchPool, CallableClassifier, Decided
from diffusers_ndc.common.noise import standard_normal


def always_one(images):
    return torch.tensor([0.0, 1.0]).expand(len(images), 2)


def test_selection_ends_once_its_outcome_is_settled():
    """Against all orders of the remaining votes: no more draws if, and only if, none of them changes the leader."""
    for left in range(5):
        for counts in itertools.product(range(4), repeat=3):
            votes = {label: count for label, count in enumerate(counts) if count}
            if not votes:
                continue
            outcomes = set()
            for rest in itertools.product(range(3), repeat=left):
                final = dict(votes)
                for label in rest:
                    final[label] = final.get(label, 0) + 1
                outcomes.add(plurality(final))
            more = draws_to_settle(votes, left)
            assert 0 <= more <= left and (more > 0 or outcomes == {plurality(votes)})
    assert draws_to_settle({}, 20) == 11 and draws_to_settle({3: 11}, 9) == 0 and draws_to_settle({3: 10}, 10) == 1


def test_selection_chooses_what_all_draws_would_have_chosen():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        votes = torch.randint(4, (15,), generator=generator).tolist()
        selection = Select(Sampling(15, 1, 0.001, "mixture"))
        while (draws := selection.next_draws()) is not None:
            labels = votes[draws.start : draws.start + draws.count]
            selection.add(Votes({label: labels.count(label) for label in set(labels)}))
        everything = {label: votes.count(label) for label in set(votes)}
        assert plurality(selection.result.counts) == plurality(everything) and selection.result.n <= 15


def noisy(image, seeds, then=()):
    return image + 0.1 * standard_normal(tuple(image.shape), seeds, image.dtype, image.device)


class AskFor:
    """A procedure that asks for one lot of draws after the other; the result is the number of votes on the last."""

    def __init__(self, *requests, on_done=None):
        self.requests, self.result, self.on_done = list(requests), None, on_done

    def next_draws(self):
        return self.requests[0] if self.requests else None

    def add(self, votes):
        assert votes.n == self.requests.pop(0).count
        self.result = votes.n
        if not self.requests and self.on_done is not None:
            self.on_done()


def test_images_are_opened_when_there_is_room_for_them():
    """With a batch of ten copies, no more images are read than it takes to fill the next batch."""
    read, done = [], []

    def images():
        for index in range(20):
            read.append(index)
            yield torch.full((1, 2, 2), index / 20)

    class InTens(CallableClassifier):
        def pool(self):
            return BatchPool(10, self.classify)

        def classify(self, batch):
            assert len(read) - len(done) <= 4
            return Decided([copy.key for copy in batch], always_one(batch), [1] * len(batch))

    def begin(image, image_hash):
        return AskFor(Draws("first", 0, 5), Draws("second", 0, 3), on_done=lambda: done.append(image_hash))

    results = collect_votes(InTens(always_one), noisy, images(), 0, begin)
    assert dict(results) == dict.fromkeys(range(20), 3) and len(done) == 20


def test_results_keep_the_order_of_the_images():
    order = {}

    def begin(image, image_hash):
        count = 1 + 50 * (order.setdefault(image_hash, len(order)) % 3)
        return AskFor(Draws("draw", 0, count))

    images = torch.arange(7).view(7, 1, 1, 1) / 7
    votes = dict(collect_votes(CallableClassifier(always_one), noisy, images, 0, begin))
    assert [votes[index] for index in range(7)] == [1, 51, 101, 1, 51, 101, 1]


def test_images_that_need_no_draws_have_a_result():
    results = collect_votes(CallableClassifier(always_one), noisy, torch.zeros(2, 1, 2, 2), 0, lambda *_: AskFor())
    assert list(results) == [(0, None), (1, None)]


def test_draws_are_the_same_however_they_are_asked_for():
    def noisy_copies(*requests):
        seen = []

        def watch(images):
            seen.append(images)
            return always_one(images)

        image = torch.full((1, 1, 2, 2), 0.5)
        list(collect_votes(CallableClassifier(watch), noisy, image, 3, lambda *_: AskFor(*requests)))
        return torch.cat(seen)

    whole = noisy_copies(Draws("a", 0, 250))
    parts = noisy_copies(Draws("a", 0, 3), Draws("a", 3, 200), Draws("a", 203, 47))
    assert torch.equal(parts, whole)
    assert not torch.isclose(noisy_copies(Draws("b", 0, 250)), whole).all(dim=(1, 2, 3)).any()


def test_an_error_of_the_procedure_is_not_swallowed():
    class Fails(AskFor):
        def add(self, votes):
            raise RuntimeError("of the procedure")

    with pytest.raises(RuntimeError, match="of the procedure"):
        images = torch.zeros(2, 1, 2, 2)
        list(collect_votes(CallableClassifier(always_one), noisy, images, 0, lambda *_: Fails(Draws("a", 0, 1))))


def test_nobody_works_in_inference_mode_but_the_classifier():
    """Neither the images that are read nor the caller between two results."""

    class Strict(CallableClassifier):
        def inference(self):
            return torch.inference_mode()

    def images():
        for index in range(3):
            assert not torch.is_inference_mode_enabled()
            yield torch.full((1, 2, 2), index / 3)

    def modes(images):
        assert torch.is_inference_mode_enabled()
        return always_one(images)

    for _ in collect_votes(Strict(modes), noisy, images(), 0, lambda *_: AskFor(Draws("a", 0, 150))):
        assert not torch.is_inference_mode_enabled()
