"""Noisy copies of images, and what a classifier of them is: the meeting point of certification and diffusion.

Certification asks for votes on noisy copies; a base classifier decides them in a *pool*, which it fills with copies of
several images so that network batches are full:

    pool = classifier.pool()
    pool.add(copies)            # as many as pool.room
    decided = pool.step()       # one round of work; copies leave as soon as they are decided
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch


BATCH_SIZE = 100
"""Noisy copies in one call of a plain callable."""


class Copy(NamedTuple):
    """One image to classify.

    Args:
        key: The caller's name for it.
        image: Shape `(C, H, W)`, pixel units.
        seed: Seed of the classifier's own noise for it, 63 bits. `None`: the classifier's own seed.
    """

    key: Any
    image: torch.Tensor
    seed: int | None


class Decided(NamedTuple):
    """M copies that have been classified.

    Args:
        keys: Their names, M of them.
        logits: Shape `(M, K)`.
        evaluations: Network evaluations that each one took.
    """

    keys: list[Any]
    logits: torch.Tensor
    evaluations: list[int]


class Pool(Protocol):
    """Copies under way in a classifier.

    Copies leave as soon as they are decided, so not in the order in which they came: easy ones leave early. Whoever
    counts votes must wait for *all* copies up to a number that was fixed beforehand; the first hundred to leave are a
    biased sample.
    """

    @property
    def room(self) -> int:
        """How many copies to add before the next step; 0 if there are enough. Above 0 for an empty pool."""

    def __len__(self) -> int:
        """Number of copies under way."""

    def add(self, copies: Sequence[Copy]) -> None:
        """Add at most `room` copies of one shape, dtype and device."""

    def step(self) -> Decided:
        """Do one round of work and remove the copies that are decided, perhaps none.

        Raises:
            FloatingPointError: A loss or logit is not finite.
        """


@runtime_checkable
class BaseClassifier(Protocol):
    """A classifier of noisy copies that `SmoothedClassifier` can smooth.

    It must be one and the same function for all images and treat the images of a batch independently, as a network in
    evaluation mode does. A plain callable becomes one by `CallableClassifier`.
    """

    @property
    def randomized(self) -> bool:
        """Whether it draws noise of its own for each image, which must depend on that image's seed alone."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes K, or `None` if it is not known."""

    @property
    def settings(self) -> dict:
        """What defines the classifier, as plain values for the record."""

    def check_images(self, images: torch.Tensor) -> None:
        """Raise a `TypeError` or `ValueError` if the classifier cannot take these images, shape `(N, C, H, W)`."""

    def inference(self) -> AbstractContextManager:
        """Context for evaluations without gradients, which can be entered again and again."""

    def pool(self) -> Pool:
        """An empty pool."""

    def __call__(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Logits `(N, K)` of images `(N, C, H, W)`, with one seed per image if it is `randomized`."""


class BatchPool:
    """A pool for classifiers that decide a whole batch of copies at once.

    Args:
        batch_size: Largest number of copies in one call of `classify`.
        classify: Classifies a batch of copies.
    """

    def __init__(self, batch_size: int, classify: Callable[[list[Copy]], Decided]):
        self.batch_size = batch_size
        self.classify = classify
        self.waiting: list[Copy] = []

    @property
    def room(self) -> int:
        return self.batch_size - len(self.waiting)

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, copies: Sequence[Copy]) -> None:
        self.waiting += copies

    def step(self) -> Decided:
        batch, self.waiting = self.waiting, []
        return self.classify(batch)


class CallableClassifier:
    """Any callable from images to logits as a `BaseClassifier`: one evaluation per noisy copy.

    Args:
        function: From images `(N, C, H, W)` in pixel units to logits `(N, K)`. It must treat the images of a batch
            independently.
        randomized: Whether it has randomness of its own. It is then called with `seeds=`, one integer of 63 bits per
            image, on which all its randomness must depend.
        num_classes: Number of classes K, if known.
        settings: What defines the callable, as plain values for the record.

    Raises:
        TypeError: `function` is not callable, or `settings` are not plain values.

    Example:
        >>> classifier = CallableClassifier(lambda images: torch.zeros(len(images), 2), num_classes=2)
        >>> classifier(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        randomized: bool = False,
        num_classes: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        if not callable(function):
            raise TypeError(f"`function` must be a callable from images to logits, got {type(function).__name__}.")
        self.function = function
        self.randomized = randomized
        self.num_classes = num_classes
        self.settings = dict(settings or {})
        try:
            json.dumps(self.settings)
        except (TypeError, ValueError):
            raise TypeError(f"`settings` must be plain values that JSON can hold, got {settings!r}.") from None

    def check_images(self, images: torch.Tensor) -> None:
        """Accept any images: what the callable can take is not known."""

    def inference(self) -> torch.no_grad:
        """Context for evaluations without gradients."""
        return torch.no_grad()

    def pool(self) -> BatchPool:
        """An empty pool."""
        return BatchPool(BATCH_SIZE, self._classify)

    def __call__(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Logits `(N, K)` of images `(N, C, H, W)`.

        Raises:
            TypeError: The callable did not return a tensor of real numbers.
            ValueError: It returned another shape than `(N, K)`.
        """
        logits = self.function(images, seeds=seeds) if self.randomized else self.function(images)
        check_logits(logits, len(images))
        return logits

    def _classify(self, batch: list[Copy]) -> Decided:
        images = torch.stack([copy.image for copy in batch])
        seeds = [copy.seed for copy in batch if copy.seed is not None]
        logits = self(images, seeds if self.randomized else None)
        return Decided([copy.key for copy in batch], logits, [1] * len(batch))


def as_base_classifier(classifier: BaseClassifier | Callable[..., torch.Tensor]) -> BaseClassifier:
    """The classifier itself, or the adapter around a plain callable.

    Raises:
        TypeError: `classifier` is not callable, or has some members of a `BaseClassifier` and not all.
    """
    if isinstance(classifier, BaseClassifier):
        return classifier
    if getattr(classifier, "randomized", False) is True and not hasattr(classifier, "pool"):
        raise TypeError(
            "`base_classifier` must be wrapped as `CallableClassifier(function, randomized=True)` if it has "
            f"randomness of its own, got {type(classifier).__name__} with an attribute `randomized`."
        )
    if hasattr(classifier, "pool"):  # meant to be one; as a plain callable its own randomness would not be seen
        raise TypeError(
            f"`base_classifier` must have all members of BaseClassifier or be a plain callable, got "
            f"{type(classifier).__name__}, which has a `pool` but not all of them."
        )
    if not callable(classifier):
        raise TypeError(
            f"`base_classifier` must be a callable from images to logits, got {type(classifier).__name__}."
        )
    return CallableClassifier(classifier)


def check_logits(logits: object, num_images: int) -> None:
    """Raise if votes cannot be read from what a callable returned for `num_images` images.

    Raises:
        TypeError: It is not a tensor of real numbers.
        ValueError: It does not have the shape `(N, K)` with N images and K at least 1.
    """
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"`base_classifier` must return a tensor of logits, got {type(logits).__name__}.")
    if logits.is_complex() or logits.dtype == torch.bool or logits.is_meta:
        raise TypeError(f"`base_classifier` must return a tensor of logits, got {logits.dtype} on {logits.device}.")
    if logits.ndim != 2 or len(logits) != num_images or logits.shape[1] == 0:
        raise ValueError(
            f"`base_classifier` must return logits of shape (N, K) for N = {num_images} images, got "
            f"{tuple(logits.shape)}."
        )


def group_by_kind(images: Iterable[torch.Tensor]) -> Iterator[Iterator[tuple[int, torch.Tensor]]]:
    """Group consecutive images that can share a batch: same shape, dtype and device.

    A group must be used up before the next one is asked for. Images are read one by one.

    Args:
        images: Images of shape `(C, H, W)`.

    Yields:
        One iterator per group, over (number of the image, image).
    """

    def kind(numbered: tuple[int, torch.Tensor]) -> tuple:
        _, image = numbered
        return image.shape, image.dtype, image.device

    for _, group in groupby(enumerate(images), key=kind):
        yield group


def decide_all(pool: Pool, copies: Iterable[Copy], context: AbstractContextManager | None = None) -> Iterator[Decided]:
    """Classify copies of one kind, all of them, in the order in which they are decided.

    Args:
        pool: An empty pool.
        copies: The copies, read when there is room for them.
        context: Context of the classifier's work, such as that of `BaseClassifier.inference`. It is not active while
            the caller works. Default: none.
    """
    waiting = iter(copies)
    if context is None:
        context = nullcontext()
    while True:
        while pool.room > 0:
            batch = list(islice(waiting, pool.room))
            if not batch:
                break
            with context:
                pool.add(batch)
        if len(pool) == 0:
            return
        with context:
            decided = pool.step()
        yield decided
