"""Noisy copies under way in the diffusion classifier: full network batches, and classes that are sifted on the way.

Each copy stands at a level of its own with the classes that are still in play. A step of the pool scores the next
level of as many copies as fill network batches, drops the classes that are clearly worse, and removes the copies that
are decided: with one class left, or beyond the last level.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ..common.copies import Copy, Decided
from ..common.noise import NoiseSource
from ..common.prefetch import NoiseAhead, gains_from_prefetching
from ..common.transfer import to_device
from .noise_levels import NoiseLevels
from .open_copies import OpenCopies, Triples, in_one_copy


POOL_BATCHES = 4
"""Network batches that the triples under way should fill; with fewer there is room for more copies."""

OPENED_BATCHES = 16
"""Network batches that the triples of copies added at once may fill, unless it is one copy."""


class Scorer(Protocol):
    """What the pool needs of the classifier."""

    levels: NoiseLevels

    @property
    def network_batch(self) -> int | None:
        """Triples per network evaluation, `None` as long as that is not known."""

    def network_batch_for(self, images: torch.Tensor) -> int:
        """Triples per network evaluation, for images like these."""

    @property
    def opening_evaluations(self) -> int:
        """Network evaluations of a copy before its first level."""

    @property
    def expected_classes(self) -> float:
        """Mean number of classes in play before the first level."""

    def open_copies(self, copies: Sequence[Copy]) -> OpenCopies:
        """Copies before their first level, with their candidate classes in play."""

    def squared_errors_of(self, copies: OpenCopies, triples: Triples, noise: NoiseSource) -> torch.Tensor:
        """Squared error of each triple, finite or not."""

    def require_finite(self, finite: bool) -> None:
        """Raise a `FloatingPointError` unless the losses are finite."""


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
        scorer, batch_size = self.scorer, self.scorer.network_batch
        if batch_size is None:
            return 1  # with which the batch size is found
        under_way = 0 if self.copies is None else self.levels_per_step * sum(self.copies.num_in_play)
        if under_way >= POOL_BATCHES * batch_size:
            return 0
        most = int(OPENED_BATCHES * batch_size / (self.levels_per_step * scorer.expected_classes))
        full_batch = batch_size // max(1, scorer.opening_evaluations)
        return max(1, min(most, full_batch))

    def add(self, copies: Sequence[Copy]) -> None:
        """Add copies, at most `room` of them."""
        opened = self.scorer.open_copies(copies)
        self.copies = opened if self.copies is None else self.copies.followed_by(opened)
        self._expect_noise(self.copies, ())

    def step(self) -> Decided:
        """Score the next level of as many copies as fill network batches, sift their classes, remove the decided ones.

        An accelerator is waited for once, when all of this is on its way: for the classes that are left.

        Raises:
            FloatingPointError: A loss is not finite.
        """
        if self.copies is None:
            raise RuntimeError("`pool` must hold copies before a step, got none.")
        rows = self._rows_to_score(self.copies)
        self._expect_noise(self.copies, rows)
        if rows:
            finite = self._score(self.copies, rows)
            if self.rule is not None:
                self._sift(self.copies, rows, finite)
            else:
                self.scorer.require_finite(bool(finite))
        return self._remove_decided(self.copies)

    def _rows_to_score(self, copies: OpenCopies) -> list[int]:
        """The copies that are scored next: they fill batches, and are not decided yet."""
        open_rows = [row for row, level in enumerate(copies.level) if level < self.num_levels]
        triples_of = [self.levels_per_step * copies.num_in_play[row] for row in open_rows]
        batch_size = self.scorer.network_batch_for(copies.x_tau)
        return [open_rows[number] for number in rows_that_fill(triples_of, batch_size)]

    def _expect_noise(self, copies: OpenCopies, rows: Sequence[int]) -> None:
        """Have noise made ahead: that of the next level of each copy, and of the level after it for those in `rows`.

        Some of it is made in vain, for copies that are decided before. Without a rule all levels are scored at once.
        """
        if self.rule is None or not gains_from_prefetching(copies.x_tau.device):
            return
        levels = copies.level
        seeds = []
        for row in range(len(copies)):
            seeds += copies.pair_seeds[row][levels[row] : levels[row] + 1]  # none beyond the last level
        for row in rows:
            seeds += copies.pair_seeds[row][levels[row] + 1 : levels[row] + 2]
        self.ahead.expect(tuple(copies.x_tau.shape[1:]), seeds, copies.x_tau.dtype)

    def _score(self, copies: OpenCopies, rows: list[int]) -> torch.Tensor:
        """Add the losses of the classes in play at the next levels of these copies; return whether they are finite."""
        span = self.levels_per_step
        chosen = torch.tensor(rows)
        triples = Triples.next_levels(copies.in_play_on_cpu[chosen], span)
        row, label = chosen[triples.row], triples.label
        level = torch.tensor(copies.level)[row] + triples.level
        errors = self.scorer.squared_errors_of(copies, Triples(row, level, label), self.ahead.standard_normal)
        weights = torch.tensor(self.scorer.levels.weights, dtype=errors.dtype)[level]
        row, label, weights = (to_device(values, errors.device) for values in (row, label, weights))
        copies.losses = copies.losses.index_put((row, label), weights * errors, accumulate=True)
        for index in rows:
            copies.level[index] += span
            copies.evaluations[index] += span * copies.num_in_play[index]
        return errors.isfinite().all()

    def _sift(self, copies: OpenCopies, rows: list[int], finite: torch.Tensor) -> None:
        """Drop the classes of these copies that the rule drops after the level that was just scored.

        Args:
            copies: All copies.
            rows: Those that were scored.
            finite: Whether the losses that were added are finite, a tensor without axes.
        """
        rule = self.rule
        assert rule is not None
        thresholds = (*rule.thresholds, torch.inf)  # nothing is dropped after the last level
        limits = torch.tensor([thresholds[level - 1] for level in copies.level], dtype=copies.losses.dtype)
        limits = to_device(limits, copies.losses.device)[:, None]
        best = copies.losses.masked_fill(~copies.in_play, torch.inf).amin(dim=1, keepdim=True)
        gaps = copies.losses - best
        if rule.relative:
            limits = limits * best
        is_worse = gaps > limits  # False for a limit of 0 * inf
        stays = copies.in_play & ~is_worse
        if rule.max_classes is not None:
            rank = gaps.masked_fill(~stays, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
            stays = stays & (rank < rule.max_classes)
        was_scored = torch.zeros(len(copies), dtype=torch.bool)
        was_scored[rows] = True
        stays = torch.where(to_device(was_scored, stays.device)[:, None], stays, copies.in_play)
        on_cpu, all_finite = in_one_copy(stays, finite)
        self.scorer.require_finite(all_finite)
        gaps = torch.where(copies.in_play & ~stays, gaps, copies.gaps)
        self.copies = replace(copies, gaps=gaps, in_play=stays, in_play_on_cpu=on_cpu)

    def _remove_decided(self, copies: OpenCopies) -> Decided:
        open_rows: list[int] = []
        decided_rows: list[int] = []
        for row, (number, level) in enumerate(zip(copies.num_in_play, copies.level, strict=True)):
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
