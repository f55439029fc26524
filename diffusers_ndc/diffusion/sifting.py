"""Noisy copies under way in the diffusion classifier: full network batches, and classes that are sifted on the way.

Each copy stands at a level of its own with the classes that are still in play. A step of the pool scores the next
level of as many copies as fill network batches, drops the classes that are clearly worse, and removes the copies that
are decided: with one class left, or beyond the last level.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..common.copies import Copy, Decided
from ..common.noise import NoiseSource
from ..common.prefetch import NoiseAhead, gains_from_prefetching
from .class_sifter import FeatureSift
from .noise_levels import NoiseLevels


POOL_BATCHES = 4
"""Network batches that the triples under way should fill; with fewer there is room for more copies."""

OPENED_BATCHES = 16
"""Network batches that the triples of copies added at once may fill, unless it is one copy."""


@dataclass(frozen=True)
class Triples:
    """What the network is to score: (copy, level, class) triples in ascending order, as three tensors of one length.

    Args:
        row: Row of the copy among those under way.
        level: Index of the level.
        label: Class.
    """

    row: torch.Tensor
    level: torch.Tensor
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def next_levels(cls, in_play: torch.Tensor, num_levels: int) -> "Triples":
        """The classes in play of some copies, each at `num_levels` levels, from 0.

        Args:
            in_play: Classes in play, shape `(P, K)`.
            num_levels: Number of levels.
        """
        return cls(*in_play[:, None].expand(-1, num_levels, -1).nonzero(as_tuple=True))

    def split(self, size: int) -> Iterator["Triples"]:
        """Parts of `size` triples, the last one perhaps smaller."""
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield Triples(self.row[part], self.level[part], self.label[part])

    def distinct_pairs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The different (copy, level) pairs, whose classes share their noise.

        Returns:
            Rows and levels of the P pairs, shape `(P,)`, and for each triple the number of its pair.
        """
        is_new = torch.ones(len(self), dtype=torch.bool)
        is_new[1:] = (self.row[1:] != self.row[:-1]) | (self.level[1:] != self.level[:-1])
        return self.row[is_new], self.level[is_new], is_new.cumsum(dim=0) - 1

    def to(self, device: torch.device | str) -> "Triples":
        """The same triples on another device."""
        return Triples(self.row.to(device), self.level.to(device), self.label.to(device))


@dataclass
class OpenCopies:
    """P copies under way; all lists and tensors have P rows.

    A class that is dropped keeps, behind the winner, the gap that it had when it was dropped. A copy that is decided
    when it is opened stands beyond the last level. Tensors are replaced, never changed in place, so that gradients
    flow through the losses.

    Args:
        keys: The caller's names.
        pair_seeds: For each copy one seed per level.
        evaluations: Network evaluations so far.
        x_tau: The noisy images, model units, `(P, C, H, W)`.
        x0_hat: Denoised without a class, likewise, or `None` if the likelihood does not use them.
        level: Index of the level that comes next, `(P,)`.
        losses: Weighted losses so far, `(P, K)`.
        gaps: Gaps of the dropped classes, `(P, K)`.
        in_play: Classes still in play, `(P, K)`.
        num_in_play: Their number for each copy.
    """

    keys: list[Any]
    pair_seeds: list[list[int]]
    evaluations: list[int]
    x_tau: torch.Tensor
    x0_hat: torch.Tensor | None
    level: torch.Tensor
    losses: torch.Tensor
    gaps: torch.Tensor
    in_play: torch.Tensor
    num_in_play: list[int]

    def __len__(self) -> int:
        return len(self.keys)

    def followed_by(self, other: "OpenCopies") -> "OpenCopies":
        """These copies and then the others."""
        x0_hat = None
        if self.x0_hat is not None and other.x0_hat is not None:
            x0_hat = torch.cat([self.x0_hat, other.x0_hat])
        return OpenCopies(
            self.keys + other.keys,
            self.pair_seeds + other.pair_seeds,
            self.evaluations + other.evaluations,
            torch.cat([self.x_tau, other.x_tau]),
            x0_hat,
            torch.cat([self.level, other.level]),
            torch.cat([self.losses, other.losses]),
            torch.cat([self.gaps, other.gaps]),
            torch.cat([self.in_play, other.in_play]),
            self.num_in_play + other.num_in_play,
        )

    def rows(self, index: list[int]) -> "OpenCopies":
        """Some of the copies."""
        return OpenCopies(
            [self.keys[row] for row in index],
            [self.pair_seeds[row] for row in index],
            [self.evaluations[row] for row in index],
            self.x_tau[index],
            None if self.x0_hat is None else self.x0_hat[index],
            self.level[index],
            self.losses[index],
            self.gaps[index],
            self.in_play[index],
            [self.num_in_play[row] for row in index],
        )

    def sifted_by(self, sift: FeatureSift, scores: torch.Tensor, num_levels: int) -> "OpenCopies":
        """Copies that were just opened, with their candidates in play.

        A class that is dropped keeps its score's distance from the best one as its gap, so that gradients flow through
        the scores. With a `loss_weight` the scores enter the losses, and a single candidate needs no evaluation.

        Args:
            sift: The sift.
            scores: Scores of the classes, shape `(P, K)`.
            num_levels: Number of levels.
        """
        in_play = sift.candidates(scores)
        num_in_play = in_play.sum(dim=1)
        gaps = torch.where(in_play, 0.0, scores.amax(dim=1, keepdim=True) - scores)
        return replace(
            self,
            level=torch.where(num_in_play > 1, 0, num_levels),
            losses=-sift.loss_weight * scores,
            gaps=gaps,
            in_play=in_play,
            num_in_play=num_in_play.tolist(),
        )

    def logits(self) -> torch.Tensor:
        """Minus the losses; a dropped class keeps its gap behind the winner. Shape `(P, K)`."""
        best = self.losses.masked_fill(~self.in_play, torch.inf).amin(dim=1, keepdim=True)
        return -torch.where(self.in_play, self.losses, best + self.gaps)


class Scorer(Protocol):
    """What the pool needs of the classifier."""

    batch_size: int
    levels: NoiseLevels

    @property
    def opening_evaluations(self) -> int:
        """Network evaluations of a copy before its first level."""

    @property
    def expected_classes(self) -> float:
        """Mean number of classes in play before the first level."""

    def open_copies(self, copies: Sequence[Copy]) -> OpenCopies:
        """Copies before their first level, with their candidate classes in play."""

    def squared_errors_of(self, copies: OpenCopies, triples: Triples, noise: NoiseSource) -> torch.Tensor:
        """Squared error of each triple."""


class SiftingPool:
    """The pool of `NoisedDiffusionClassifier`; see `common.copies.Pool`.

    Args:
        scorer: The classifier.
    """

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.rule = scorer.levels.sifting
        self.num_levels = len(scorer.levels)
        # without a rule nothing is looked at before the last level, and all levels are scored at once
        self.levels_per_step = self.num_levels if self.rule is None else 1
        self.copies: OpenCopies | None = None
        self.ahead = NoiseAhead()

    def __len__(self) -> int:
        return 0 if self.copies is None else len(self.copies)

    @property
    def room(self) -> int:
        """Copies to add: enough for a full batch of the unconditional denoiser, but a limited number of triples."""
        scorer = self.scorer
        under_way = 0 if self.copies is None else self.levels_per_step * sum(self.copies.num_in_play)
        if under_way >= POOL_BATCHES * scorer.batch_size:
            return 0
        most = int(OPENED_BATCHES * scorer.batch_size / (self.levels_per_step * scorer.expected_classes))
        full_batch = scorer.batch_size // max(1, scorer.opening_evaluations)
        return max(1, min(most, full_batch))

    def add(self, copies: Sequence[Copy]) -> None:
        """Add copies, at most `room` of them."""
        opened = self.scorer.open_copies(copies)
        self.copies = opened if self.copies is None else self.copies.followed_by(opened)
        self._expect_noise(self.copies, ())

    def step(self) -> Decided:
        """Score the next level of as many copies as fill network batches, sift their classes, remove the decided ones.

        Raises:
            FloatingPointError: A loss is not finite.
        """
        if self.copies is None:
            raise RuntimeError("`pool` must hold copies before a step, got none.")
        rows = self._rows_to_score(self.copies)
        self._expect_noise(self.copies, rows)
        if rows:
            self._score(self.copies, rows)
        if rows and self.rule is not None:
            self._sift(self.copies, rows)
        return self._remove_decided(self.copies)

    def _rows_to_score(self, copies: OpenCopies) -> list[int]:
        """The copies that are scored next: they fill batches, and are not decided yet."""
        open_rows = [row for row, level in enumerate(copies.level.tolist()) if level < self.num_levels]
        triples_of = [self.levels_per_step * copies.num_in_play[row] for row in open_rows]
        return [open_rows[number] for number in rows_that_fill(triples_of, self.scorer.batch_size)]

    def _expect_noise(self, copies: OpenCopies, rows: Sequence[int]) -> None:
        """Have noise made ahead: that of the next level of each copy, and of the level after it for those in `rows`.

        Some of it is made in vain, for copies that are decided before. Without a rule all levels are scored at once.
        """
        if self.rule is None or not gains_from_prefetching(copies.x_tau.device):
            return
        levels = copies.level.tolist()
        seeds = []
        for row in range(len(copies)):
            seeds += copies.pair_seeds[row][levels[row] : levels[row] + 1]  # none beyond the last level
        for row in rows:
            seeds += copies.pair_seeds[row][levels[row] + 1 : levels[row] + 2]
        self.ahead.expect(tuple(copies.x_tau.shape[1:]), seeds, copies.x_tau.dtype)

    def _score(self, copies: OpenCopies, rows: list[int]) -> None:
        """Add the losses of the classes in play at the next levels of these copies."""
        span = self.levels_per_step
        triples = Triples.next_levels(copies.in_play[rows], span)
        row, label = torch.tensor(rows, device=triples.row.device)[triples.row], triples.label
        level = copies.level[row] + triples.level
        triples = Triples(row, level, label).to("cpu")
        errors = self.scorer.squared_errors_of(copies, triples, self.ahead.standard_normal)
        weights = errors.new_tensor(self.scorer.levels.weights)
        copies.losses = copies.losses.index_put((row, label), weights[level] * errors, accumulate=True)
        advance = torch.zeros_like(copies.level)
        advance[rows] = span
        copies.level = copies.level + advance
        for index in rows:
            copies.evaluations[index] += span * copies.num_in_play[index]

    def _sift(self, copies: OpenCopies, rows: list[int]) -> None:
        """Drop the classes of these copies that the rule drops after the level that was just scored."""
        rule = self.rule
        assert rule is not None
        thresholds = copies.losses.new_tensor((*rule.thresholds, torch.inf))  # nothing is dropped after the last level
        best = copies.losses.masked_fill(~copies.in_play, torch.inf).amin(dim=1, keepdim=True)
        gaps = copies.losses - best
        limits = thresholds[copies.level - 1, None]
        if rule.relative:
            limits = limits * best
        is_worse = gaps > limits  # False for a limit of 0 * inf
        stays = copies.in_play & ~is_worse
        if rule.max_classes is not None:
            rank = gaps.masked_fill(~stays, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
            stays = stays & (rank < rule.max_classes)
        was_scored = torch.zeros(len(copies), dtype=torch.bool, device=stays.device)
        was_scored[rows] = True
        stays = torch.where(was_scored[:, None], stays, copies.in_play)
        copies.gaps = torch.where(copies.in_play & ~stays, gaps, copies.gaps)
        copies.in_play = stays
        copies.num_in_play = stays.sum(dim=1).tolist()

    def _remove_decided(self, copies: OpenCopies) -> Decided:
        open_rows: list[int] = []
        decided_rows: list[int] = []
        for row, (number, level) in enumerate(zip(copies.num_in_play, copies.level.tolist(), strict=True)):
            if level < self.num_levels and (number > 1 or level == 0):
                open_rows.append(row)
            else:
                decided_rows.append(row)
        decided = copies.rows(decided_rows)
        self.copies = copies.rows(open_rows) if open_rows else None
        return Decided(decided.keys, decided.logits(), decided.evaluations)


def rows_that_fill(sizes: list[int], batch_size: int) -> list[int]:
    """Rows, the oldest first, whose sizes add up to whole batches as nearly as whole rows can.

    All rows if they do not fill one batch.

    Args:
        sizes: Triples of each row.
        batch_size: Triples of a batch.
    """
    left = sum(sizes) // batch_size * batch_size
    rows = []
    for row, size in enumerate(sizes):
        if size <= left:
            rows.append(row)
            left -= size
    return rows or list(range(len(sizes)))
