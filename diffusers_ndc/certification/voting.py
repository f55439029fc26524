"""Votes of a base classifier on noisy copies: those of several images, drawn and classified together.

An algorithm for one image is a generator that asks for `Draws` and is sent their `Votes`; `run` serves many of them at
once, an image that is done making room for the next. Votes are handed over when *all* the draws that were asked for
have been classified: copies come back as they are decided, the easy ones early, and a look at those that are back
would be a look at a biased sample.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from ..common.images import content_hash
from ..common.seeds import derive_seeds
from ..diffusion.sifting import Copy, Decided, alike
from .certificate import draws_to_settle


CALL_SIZE = 100
"""Copies in one call of a classifier that has no `stream`."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Draws:
    """Draws of one image that are asked for.

    Args:
        purpose: What they are for; draws for two purposes are independent.
        start: Number of the first one; a draw is the same however it is asked for.
        count: How many.
        scored: Class whose softmax probability is summed as a soft vote, or `None`.
    """

    purpose: str
    start: int
    count: int
    scored: int | None = None


@dataclass
class Votes:
    """Votes of some draws.

    Args:
        counts: Votes of each class; classes without a vote are left out.
        evaluations: Network evaluations that they took.
        num_classes: Number of classes of the classifier, `None` before the first vote.
        score_sum: Sum of the soft votes of the class that was to be scored.
        score_squares: Sum of their squares.
    """

    counts: dict[int, int] = field(default_factory=dict)
    evaluations: int = 0
    num_classes: int | None = None
    score_sum: float = 0.0
    score_squares: float = 0.0

    @property
    def n(self) -> int:
        """Number of draws."""
        return sum(self.counts.values())

    def __add__(self, other: "Votes") -> "Votes":
        return Votes(
            dict(sorted((Counter(self.counts) + Counter(other.counts)).items())),
            self.evaluations + other.evaluations,
            other.num_classes or self.num_classes,
            self.score_sum + other.score_sum,
            self.score_squares + other.score_squares,
        )


def select(n0: int) -> Generator[Draws, Votes, Votes]:
    """Votes of `n0` draws for the choice of the candidate, or of as many as settle it."""
    votes = Votes()
    while more := draws_to_settle(votes.counts, n0 - votes.n):
        votes = votes + (yield Draws("select", votes.n, more))
    return votes


def run(
    classifier: Callable[..., torch.Tensor],
    noisy: Callable[[torch.Tensor, Sequence[int]], torch.Tensor],
    images: Iterable[torch.Tensor],
    seed: int,
    algorithm: Callable[[torch.Tensor, str], Generator[Draws, Votes, Result]],
    on_copies: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, Result]]:
    """What the algorithm returns for each image, as it returns; all images share the classifier's batches.

    An image is opened when the ones before it have no draws to offer, so that the number of open ones depends on the
    classifier's batch, not on the number of images.

    Args:
        classifier: From images to logits; or with `stream`, and `inference`, as `NoisedDiffusionClassifier` has them.
        noisy: From an image `(C, H, W)` and N seeds of 63 bits to its noisy copies `(N, C, H, W)`.
        images: Clean images of shape `(C, H, W)`, pixel units. Only images of one shape, dtype and device, one after
            another, can share batches.
        seed: Seed of all draws.
        algorithm: Called with an image and its content hash; a generator that yields `Draws` and is sent `Votes`.
        on_copies: Called with a number of draws whenever so many more are done.

    Yields:
        The image's place among the images, and the result.

    Raises:
        FloatingPointError: A logit is not finite; it has no vote.
    """
    # as a decorator, the context is left whenever the caller has the word
    serving = getattr(classifier, "inference", torch.no_grad)()(_serve)
    for group in alike(images):
        yield from serving(classifier, noisy, group, seed, algorithm, on_copies)


def _serve(classifier, noisy, waiting, seed, algorithm, on_copies):
    finished: list[tuple] = []
    ready: deque[_Open] = deque()

    def proceed(image: _Open, votes: Votes | None) -> None:
        try:
            image.ask(image.steps.send(votes))
            ready.appendleft(image)  # the oldest first, so that few are open
        except StopIteration as stop:
            finished.append((image.index, stop.value))

    def take(count: int) -> list[Copy]:
        copies: list[Copy] = []
        while len(copies) < count:
            if ready:
                copies += ready[0].copies(count - len(copies))
                if not ready[0].left:
                    ready.popleft()
            elif (following := next(waiting, None)) is not None:
                index, image = following
                proceed(_Open(index, image, algorithm, seed, noisy, classifier), None)
            else:
                break
        return copies

    stream = classifier.stream if hasattr(classifier, "stream") else partial(_called, classifier)
    for keys, logits, evaluations in stream(take):
        if not logits.isfinite().all():
            raise FloatingPointError("The base classifier gave a logit that is not finite; it has no vote.")
        for image, row, label, spent in zip(keys, logits, logits.argmax(dim=1).tolist(), evaluations, strict=True):
            if image.count(label, row, spent):
                proceed(image, image.votes)
        if on_copies is not None:
            on_copies(len(keys))
        yield from finished
        finished.clear()
    yield from finished  # of images that asked for no draws


class _Open:
    """An image under way, the draws that its algorithm waits for, and their votes so far."""

    def __init__(self, index, image, algorithm, seed, noisy, classifier):
        self.index, self.image, self.seed, self.noisy = index, image, seed, noisy
        self.randomized = getattr(classifier, "randomized", False)
        self.image_hash = content_hash(image)
        self.steps = algorithm(image, self.image_hash)

    def ask(self, draws: Draws) -> None:
        self.draws, self.votes = draws, Votes()
        self.left = self.missing = draws.count

    def copies(self, most: int) -> list[Copy]:
        """The next copies, `most` at most."""
        start = self.draws.start + self.draws.count - self.left
        numbers = range(start, start + min(most, self.left))
        seeds = [derive_seeds((self.seed, self.image_hash, self.draws.purpose, number), 2) for number in numbers]
        smoothing, own_seeds = zip(*seeds, strict=True)
        own = own_seeds if self.randomized else [None] * len(seeds)
        self.left -= len(seeds)
        return [Copy(self, *both) for both in zip(self.noisy(self.image, smoothing), own, strict=True)]

    def count(self, label: int, logits: torch.Tensor, evaluations: int) -> bool:
        """Count a vote; whether it was the last one that the algorithm is waiting for."""
        votes, scored = self.votes, self.draws.scored
        votes.counts[label] = votes.counts.get(label, 0) + 1
        votes.evaluations += evaluations
        votes.num_classes = len(logits)
        if scored is not None:
            score = logits.double().softmax(dim=0)[scored].item()
            votes.score_sum += score
            votes.score_squares += score**2
        self.missing -= 1
        if not self.missing:
            votes.counts = dict(sorted(votes.counts.items()))
        return not self.missing


def check_logits(logits: torch.Tensor, count: int) -> None:
    """Refuse what no votes of so many images can be read from.

    Raises:
        TypeError: It is no tensor of real numbers.
        ValueError: It has not the shape `(N, K)` with N images and K at least 1.
    """
    if not isinstance(logits, torch.Tensor) or logits.is_complex() or logits.dtype == torch.bool or logits.is_meta:
        given = f"{logits.dtype} on {logits.device}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TypeError(f"`base_classifier` gave {given}; accepted is a tensor of logits.")
    if logits.ndim != 2 or len(logits) != count or not logits.shape[1]:
        raise ValueError(
            f"`base_classifier` gave the shape {tuple(logits.shape)} for {count} images; accepted is (N, K)."
        )


def _called(classifier: Callable[..., torch.Tensor], take: Callable[[int], list[Copy]]) -> Iterator[Decided]:
    """The stream of a classifier that has none: batch by batch, one evaluation a copy."""
    while copies := take(CALL_SIZE):
        seeds = [copy.seed for copy in copies]
        own = {} if seeds[0] is None else {"seeds": seeds}
        logits = classifier(torch.stack([copy.image for copy in copies]), **own)
        check_logits(logits, len(copies))
        yield Decided([copy.key for copy in copies], logits, [1] * len(copies))
