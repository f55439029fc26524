"""Copies under way: which classes each one still has, at which level, and which of them fill the next batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch


class Copy(NamedTuple):
    """One image to classify.

    Args:
        key: The caller's name for it.
        image: Shape `(C, H, W)`, pixel units.
        seed: Seed of the classifier's own noise for it, 63 bits; `None` for the classifier's one seed.
    """

    key: Any
    image: torch.Tensor
    seed: int | None


class Decided(NamedTuple):
    """Copies that are done, M of them.

    Args:
        keys: Their names.
        logits: Shape `(M, K)`.
        evaluations: Network evaluations that each one took.
    """

    keys: list[Any]
    logits: torch.Tensor
    evaluations: list[int]


def handing_out(copies: Iterable[Copy]) -> Callable[[int], list[Copy]]:
    """The `take` of a stream for copies that are all at hand."""
    waiting = iter(copies)
    return lambda count: list(islice(waiting, count))


def alike(images: Iterable[torch.Tensor]) -> Iterator[Iterator[tuple[int, torch.Tensor]]]:
    """Images with their places, in groups that can share a batch: those that follow each other and are of one kind.

    A group must be used up before the next one is asked for.

    Args:
        images: Images of shape `(C, H, W)`, as they come; the first of a group is taken before the group is used.
    """
    for _, group in groupby(enumerate(images), lambda placed: (placed[1].shape, placed[1].dtype, placed[1].device)):
        yield group


@dataclass
class Pool:
    """P copies, each at a level of its own, with the classes that are still in play; all tensors have P rows.

    A class that is dropped keeps, behind the winner, the gap that it had when it was dropped. Tensors are replaced,
    never changed in place, so that gradients flow through the losses.

    Args:
        keys: The caller's names.
        pair_seeds: For each copy one seed per level.
        evaluations: Network evaluations so far.
        sizes: Number of classes in play.
        x_tau: The noisy images, model units, `(P, C, H, W)`.
        x0_hat: Denoised without a class, likewise, or `None` where the likelihood has no use for them.
        level: Index of the level that comes next, `(P,)`.
        losses: Weighted losses so far, `(P, K)`.
        gaps: Of the dropped classes, `(P, K)`.
        alive: Classes still in play, `(P, K)`.
    """

    keys: list[Any]
    pair_seeds: list[list[int]]
    evaluations: list[int]
    sizes: list[int]
    x_tau: torch.Tensor
    x0_hat: torch.Tensor | None
    level: torch.Tensor
    losses: torch.Tensor
    gaps: torch.Tensor
    alive: torch.Tensor

    def joined(self, other: "Pool") -> "Pool":
        """These copies and then the others."""
        return Pool(*(_added(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def rows(self, index: list[int]) -> "Pool":
        """Some of the copies."""
        return Pool(*(_rows(getattr(self, f.name), index) for f in fields(self)))

    def advance(
        self,
        moved: list[int],
        span: int,
        losses: torch.Tensor,
        thresholds: torch.Tensor,
        relative: bool,
        max_classes: int | None,
    ) -> None:
        """The copies `moved` have been scored at their next levels: drop their classes that are clearly worse.

        Args:
            moved: Rows that were scored.
            span: At how many levels.
            losses: The new losses, `(P, K)`.
            thresholds: By level, `(T,)`: the gap to the best loss above which a class is dropped after it.
            relative: Whether as a share of the best loss.
            max_classes: How many classes go on at most, or `None`.
        """
        steps = torch.zeros_like(self.level)
        steps[moved] = span
        self.level = self.level + steps
        best = losses.masked_fill(~self.alive, torch.inf).amin(1, keepdim=True)
        gap, scale = losses - best, best if relative else 1.0
        kept = ~(gap > thresholds[self.level - 1, None] * scale)
        if max_classes is not None:
            rank = gap.masked_fill(~(kept & self.alive), torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
            kept &= rank < max_classes
        kept = self.alive & (kept | (steps == 0)[:, None])
        self.gaps = torch.where(self.alive & ~kept, gap, self.gaps)
        self.losses, self.alive = losses, kept
        self.sizes = kept.sum(1).tolist()

    def split(self, num_levels: int) -> tuple["Pool", Decided]:
        """The copies that are still open, and the decided ones: with one class left, or beyond the last level."""
        levels = self.level.tolist()
        is_open = [size > 1 and level < num_levels for size, level in zip(self.sizes, levels, strict=True)]
        still, done = ([row for row, flag in enumerate(is_open) if flag == wanted] for wanted in (True, False))
        decided = self.rows(done)
        best = decided.losses.masked_fill(~decided.alive, torch.inf).amin(1, keepdim=True)
        losses = torch.where(decided.alive, decided.losses, best + decided.gaps)
        return self.rows(still), Decided(decided.keys, -losses, decided.evaluations)


def filling(sizes: list[int], batch_size: int) -> list[int]:
    """Rows, the oldest first, whose triples fill whole batches as nearly as whole rows can.

    All rows, where they do not fill one batch.
    """
    everything = list(range(len(sizes)))
    room = sum(sizes) // batch_size * batch_size
    rows = []
    for row in everything:
        if sizes[row] <= room:
            rows.append(row)
            room -= sizes[row]
    return rows or everything


def _added(first, second):
    if first is None or isinstance(first, torch.Tensor):
        return None if first is None else torch.cat([first, second])
    return first + second


def _rows(values, index):
    if values is None or isinstance(values, torch.Tensor):
        return None if values is None else values[index]
    return [values[row] for row in index]
