"""Votes of a base classifier on noisy copies of images: the one loop behind PREDICT and CERTIFY.

What is asked about an image is a `Procedure`, one plain object per image: it says which draws it needs next and is
given their votes. The loop in `collect_votes` asks images for noisy copies, adds them to the classifier's pool, steps
the pool, and hands the votes back, so that all images under way share full network batches.

Votes are handed over when *all* draws that were asked for have been classified. Copies come back as they are decided,
the easy ones early: to look at those that are back would bias the sample.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from ..common.copies import BaseClassifier, Copy, Decided, group_by_kind
from ..common.images import content_hash
from ..common.prefetch import gains_from_prefetching
from ..common.seeds import derive_seeds
from .near_ties import Ranked


Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True)
class Draws:
    """Draws that a procedure asks for; each one is a noisy copy of the image that has one vote.

    Args:
        purpose: What they are for. Draws for different purposes are independent.
        start: Number of the first one. A draw depends on its number, not on how it is asked for.
        count: How many.
        scored: Class whose softmax probability is summed as a soft vote, or `None`.
        ranked: Whether the two leading classes of each copy are wanted.
    """

    purpose: str
    start: int
    count: int
    scored: int | None = None
    ranked: bool = False


@dataclass
class Votes:
    """Votes of some draws.

    Args:
        counts: Votes of each class. Classes without a vote are left out.
        evaluations: Network evaluations that they took.
        num_classes: Number of classes of the classifier, `None` before the first vote.
        score_sum: Sum of the soft votes of the class that was to be scored.
        score_squares: Sum of their squares.
        labels: Class of each vote, in the order of the draws.
        ranked: The two leading classes of each copy, likewise, if they were to be ranked.
    """

    counts: dict[int, int] = field(default_factory=dict)
    evaluations: int = 0
    num_classes: int | None = None
    score_sum: float = 0.0
    score_squares: float = 0.0
    labels: list[int] = field(default_factory=list)
    ranked: list[Ranked] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of votes."""
        return sum(self.counts.values())

    def __add__(self, other: "Votes") -> "Votes":
        return Votes(
            dict(sorted((Counter(self.counts) + Counter(other.counts)).items())),
            self.evaluations + other.evaluations,
            other.num_classes or self.num_classes,
            self.score_sum + other.score_sum,
            self.score_squares + other.score_squares,
            self.labels + other.labels,
            self.ranked + other.ranked,
        )


class Procedure(Protocol[Result]):
    """What is asked about one image, such as PREDICT or CERTIFY."""

    def next_draws(self) -> Draws | None:
        """The draws that are needed next, or `None` if the result is there."""

    def add(self, votes: Votes) -> None:
        """Take the votes of *all* the draws that `next_draws` asked for."""

    @property
    def result(self) -> Result:
        """The outcome, once `next_draws` is `None`."""


def draw_seeds(seed: int, image_hash: str, purpose: str, numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Seeds of numbered draws: that of the smoothing noise, and that of the base classifier's own noise.

    Every draw has seeds of its own, which depend on nothing but these arguments.

    Args:
        seed: Seed of all draws.
        image_hash: Content hash of the clean image.
        purpose: What the draws are for.
        numbers: Numbers of the draws.
    """
    pairs = []
    for number in numbers:
        smoothing_seed, own_seed = derive_seeds((seed, image_hash, purpose, number), 2)
        pairs.append((smoothing_seed, own_seed))
    return pairs


def collect_votes(
    classifier: BaseClassifier,
    add_noise: Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor],
    images: Iterable[torch.Tensor],
    seed: int,
    begin: Callable[[torch.Tensor, str], Procedure[Result]],
    on_copies: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Run a procedure on each image, with all images under way in the same batches.

    An image is opened when those before it have no copies left to hand out. The number of open images therefore
    depends on the classifier's batch, not on the number of images.

    Args:
        classifier: The base classifier.
        add_noise: From an image `(C, H, W)` and N seeds of 63 bits to its noisy copies `(N, C, H, W)`. Its third
            argument are seeds that are likely to be next, so that noise can be made ahead; none on the CPU.
        images: Clean images of shape `(C, H, W)`, pixel units. Consecutive images of one shape, dtype and device share
            batches.
        seed: Seed of all draws.
        begin: Makes the procedure for an image and its content hash.
        on_copies: Progress callback, called with the number of noisy copies that have been decided since the last
            call.

    Yields:
        Number of the image, and the result of its procedure, in the order in which they are done.

    Raises:
        FloatingPointError: A logit is not finite, so that it has no vote. The other images under way are finished
            first, one by one.
        Exception: What reading an image raises, when those under way are finished.
    """
    for group in group_by_kind(images):
        queue = _Queue(group, classifier.randomized, add_noise, seed, begin)
        try:
            yield from _serve(queue, classifier, on_copies)
        except FloatingPointError:
            yield from _finish_others(queue, classifier, on_copies)
            raise
        if queue.unread is not None:
            raise queue.unread


def _serve(
    queue: "_Queue", classifier: BaseClassifier, on_copies: Callable[[int], object] | None
) -> Iterator[tuple[int, Any]]:
    """Have copies decided and their votes counted as long as there are any."""
    pool, without_gradients = classifier.pool(), classifier.inference()
    while True:
        while pool.room > 0:
            copies = queue.next_copies(pool.room)
            if not copies:
                break
            with without_gradients:
                pool.add(copies)
        if len(pool) == 0:
            break
        with without_gradients:
            decided = pool.step()
        queue.count(decided)
        yield from queue.pop_results()  # before the callback, which may fail
        if on_copies is not None and decided.keys:
            on_copies(len(decided.keys))
    yield from queue.pop_results()  # of images that needed no draws


def _finish_others(
    queue: "_Queue", classifier: BaseClassifier, on_copies: Callable[[int], object] | None
) -> Iterator[tuple[int, Any]]:
    """Finish the images under way after one of them failed, each alone, since nobody knows which one it was.

    Their votes do not depend on the company.
    """
    queue.images = iter(())
    yield from queue.pop_results()
    if len(queue.under_way) == 1:
        return
    for image in list(queue.under_way.values()):
        image.ask(image.draws)  # again from the first of these draws
        queue.with_copies = deque([image])
        try:
            yield from _serve(queue, classifier, on_copies)
        except FloatingPointError:
            continue


class _Queue:
    """Images under way: which copies to hand out next, and whose votes have come in."""

    def __init__(self, images, randomized, add_noise, seed, begin):
        self.images, self.randomized = images, randomized
        self.add_noise, self.seed, self.begin = add_noise, seed, begin
        self.with_copies: deque[_OpenImage] = deque()  # the oldest first, so that few images are open
        self.under_way: dict[int, _OpenImage] = {}  # by number of the image
        self.unread: Exception | None = None  # what reading an image raised
        self.results: list[tuple] = []

    def next_copies(self, most: int) -> list[Copy]:
        """Up to `most` noisy copies; fewer if all images have been opened and wait for votes."""
        copies: list[Copy] = []
        while len(copies) < most:
            if not self.with_copies:
                numbered = self._read()
                if numbered is None:
                    break
                self._open(*numbered)
                continue
            oldest = self.with_copies[0]
            copies += self._copies_of(oldest, most - len(copies))
            if oldest.remaining == 0:
                self.with_copies.popleft()
        return copies

    def count(self, decided: Decided) -> None:
        """Count the votes of decided copies."""
        if not decided.keys:
            return
        rows = decided.logits.cpu()  # an accelerator is waited for once, not for each vote
        if not rows.isfinite().all():
            raise FloatingPointError("Logits must be finite, got NaN or infinity from the base classifier.")
        votes = zip(decided.keys, rows.argmax(dim=1).tolist(), rows, decided.evaluations, strict=True)
        for (image, number), label, logits, spent in votes:
            image.count(number, label, logits, spent)
            if image.outstanding == 0:
                image.procedure.add(image.sorted_votes())
                self._continue(image)

    def pop_results(self) -> list[tuple]:
        """Results since the last call, with the numbers of their images."""
        results, self.results = self.results, []
        return results

    def _read(self) -> tuple[int, torch.Tensor] | None:
        """The next image and its number; none after one that cannot be read, so that those under way are finished."""
        try:
            return next(self.images, None)
        except Exception as error:
            self.images, self.unread = iter(()), error
            return None

    def _open(self, number: int, image: torch.Tensor) -> None:
        image = image.detach().clone()  # the source may use its memory for the next image
        image_hash = content_hash(image)
        self._continue(_OpenImage(number, image, image_hash, self.begin(image, image_hash)))

    def _continue(self, image: "_OpenImage") -> None:
        draws = image.procedure.next_draws()
        if draws is None:
            self.results.append((image.number, image.procedure.result))
            self.under_way.pop(image.number, None)
        else:
            image.ask(draws)
            self.under_way[image.number] = image
            self.with_copies.appendleft(image)

    def _copies_of(self, image: "_OpenImage", most: int) -> list[Copy]:
        numbers = image.hand_out(most)
        seeds = self._seeds(image, numbers)
        then = []
        if gains_from_prefetching(image.image.device):
            then = [smoothing_seed for smoothing_seed, _ in self._seeds(image, image.upcoming(len(seeds)))]
        noisy = self.add_noise(image.image, [smoothing_seed for smoothing_seed, _ in seeds], then)
        return [
            Copy((image, number), copy, own_seed if self.randomized else None)
            for number, copy, (_, own_seed) in zip(numbers, noisy, seeds, strict=True)
        ]

    def _seeds(self, image: "_OpenImage", numbers: range) -> list[tuple[int, int]]:
        return draw_seeds(self.seed, image.image_hash, image.draws.purpose, numbers)


class _OpenImage:
    """An image, its procedure, and the votes on the draws that the procedure waits for."""

    def __init__(self, number: int, image: torch.Tensor, image_hash: str, procedure: Procedure):
        self.number, self.image, self.image_hash, self.procedure = number, image, image_hash, procedure

    def ask(self, draws: Draws) -> None:
        self.draws, self.votes = draws, Votes()
        self.labels: dict[int, int] = {}  # by number of the draw
        self.ranked: dict[int, Ranked] = {}
        self.remaining = draws.count  # not handed out yet
        self.outstanding = draws.count  # without a vote yet

    def hand_out(self, most: int) -> range:
        """Numbers of the next draws, at most so many."""
        numbers = self.upcoming(most)
        self.remaining -= len(numbers)
        return numbers

    def upcoming(self, most: int) -> range:
        """Numbers of the draws that would be handed out next."""
        first = self.draws.start + self.draws.count - self.remaining
        return range(first, first + min(most, self.remaining))

    def count(self, number: int, label: int, logits: torch.Tensor, evaluations: int) -> None:
        votes = self.votes
        self.labels[number] = label
        votes.counts[label] = votes.counts.get(label, 0) + 1
        votes.evaluations += evaluations
        votes.num_classes = len(logits)
        if self.draws.scored is not None:
            score = logits.double().softmax(dim=0)[self.draws.scored].item()
            votes.score_sum += score
            votes.score_squares += score**2
        if self.draws.ranked:
            self.ranked[number] = rank(label, logits)
        self.outstanding -= 1

    def sorted_votes(self) -> Votes:
        """The votes in the order of the classes and of the draws, whatever the order in which they came in."""
        self.votes.counts = dict(sorted(self.votes.counts.items()))
        self.votes.labels = [self.labels[number] for number in sorted(self.labels)]
        self.votes.ranked = [self.ranked[number] for number in sorted(self.ranked)]
        return self.votes


def rank(label: int, logits: torch.Tensor) -> Ranked:
    """The class of a vote and the one that comes next, from the logits `(K,)` of a copy."""
    values = logits.double().tolist()
    others = [other for other in range(len(values)) if other != label]
    other = max(others, key=values.__getitem__, default=label)
    return Ranked(label, other, values[label] - values[other], max(abs(values[label]), abs(values[other])))
