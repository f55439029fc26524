import itertools

import pytest
import torch

from diffusers_ndc.certification.certificate import draws_to_settle, plurality
from diffusers_ndc.certification.voting import Draws, Votes, run, select
from diffusers_ndc.common.noise import standard_normal


def always_one(images):
    return torch.tensor([0.0, 1.0]).expand(len(images), 2)


def test_selection_ends_once_its_outcome_is_settled():
    """Against all orders of the remaining votes: zero draws more if, and only if, none of them changes the leader."""
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
        selection = select(15)
        draws, seen = next(selection), Votes()
        try:
            while True:
                labels = votes[draws.start : draws.start + draws.count]
                draws = selection.send(Votes({label: labels.count(label) for label in set(labels)}))
        except StopIteration as stop:
            seen = stop.value
        everything = {label: votes.count(label) for label in set(votes)}
        assert plurality(seen.counts) == plurality(everything) and seen.n <= 15


def noisy(image, seeds):
    return image + 0.1 * standard_normal(tuple(image.shape), seeds, image.dtype, image.device)


def test_images_are_opened_when_there_is_room_for_them():
    """With a batch of ten copies, no more images are read than it takes to fill the next batch."""
    read, done = [], []

    def images():
        for index in range(20):
            read.append(index)
            yield torch.full((1, 2, 2), index / 20)

    def algorithm(image, image_hash):
        votes = yield Draws("first", 0, 5)
        assert votes.counts == {1: 5}
        votes = yield Draws("second", 0, 3)
        done.append(image_hash)
        return votes.n

    class Stream:
        def stream(self, take):
            while copies := take(10):
                assert len(read) - len(done) <= 4
                yield [copy.key for copy in copies], always_one(copies), [1] * len(copies)

    assert dict(run(Stream(), noisy, images(), 0, algorithm)) == dict.fromkeys(range(20), 3)


def test_results_keep_the_order_of_the_images():
    def algorithm_for(order):
        def algorithm(image, image_hash):
            count = 1 + 50 * (order.setdefault(image_hash, len(order)) % 3)
            votes = yield Draws("draw", 0, count)
            return votes.n

        return algorithm

    images = torch.arange(7).view(7, 1, 1, 1) / 7
    votes = dict(run(always_one, noisy, images, 0, algorithm_for({})))
    assert [votes[index] for index in range(7)] == [1, 51, 101, 1, 51, 101, 1]


def test_draws_are_the_same_however_they_are_asked_for():
    def noisy_copies(*requests):
        seen = []

        def watch(images):
            seen.append(images)
            return always_one(images)

        def algorithm(image, image_hash):
            for request in requests:
                votes = yield request
                assert votes.n == request.count

        list(run(watch, noisy, torch.full((1, 1, 2, 2), 0.5), 3, algorithm))
        return torch.cat(seen)

    whole = noisy_copies(Draws("a", 0, 250))
    parts = noisy_copies(Draws("a", 0, 3), Draws("a", 3, 200), Draws("a", 203, 47))
    assert torch.equal(parts, whole)
    assert not torch.isclose(noisy_copies(Draws("b", 0, 250)), whole).all(dim=(1, 2, 3)).any()


def test_an_error_of_the_algorithm_is_not_swallowed():
    def algorithm(image, image_hash):
        yield Draws("a", 0, 1)
        raise RuntimeError("of the algorithm")

    with pytest.raises(RuntimeError, match="of the algorithm"):
        list(run(always_one, noisy, torch.zeros(2, 1, 2, 2), 0, algorithm))
