"""Noisy copies under way in the diffusion classifier, and what the network is to score of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..common.transfer import to_device
from .class_sifter import FeatureSift


@dataclass(frozen=True)
class Triples:
    """What the network is to score: (copy, level, class) triples in ascending order, as three tensors on the CPU.

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
            in_play: Classes in play, shape `(P, K)`, on the CPU.
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


@dataclass
class OpenCopies:
    """P copies under way; all lists and tensors have P rows.

    A class that is dropped keeps, behind the winner, the gap that it had when it was dropped. A copy that is decided
    when it is opened stands beyond the last level. Tensors are replaced, never changed in place, so that gradients
    flow through the losses. What decides which network batch comes next is on the CPU, so that an accelerator is
    waited for once when classes are dropped, and not for each question.

    Args:
        keys: The caller's names.
        pair_seeds: For each copy one seed per level.
        evaluations: Network evaluations so far.
        x_tau: The noisy images, model units, `(P, C, H, W)`.
        x0_hat: Denoised without a class, likewise, or `None` if the likelihood does not use them.
        level: Index of the level that comes next, P of them.
        losses: Weighted losses so far, `(P, K)`.
        gaps: Gaps of the dropped classes, `(P, K)`.
        in_play: Classes still in play, `(P, K)`.
        in_play_on_cpu: The same on the CPU.
    """

    keys: list[Any]
    pair_seeds: list[list[int]]
    evaluations: list[int]
    x_tau: torch.Tensor
    x0_hat: torch.Tensor | None
    level: list[int]
    losses: torch.Tensor
    gaps: torch.Tensor
    in_play: torch.Tensor
    in_play_on_cpu: torch.Tensor

    def __post_init__(self) -> None:
        self.num_in_play = self.in_play_on_cpu.sum(dim=1).tolist()

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
            self.level + other.level,
            torch.cat([self.losses, other.losses]),
            torch.cat([self.gaps, other.gaps]),
            torch.cat([self.in_play, other.in_play]),
            torch.cat([self.in_play_on_cpu, other.in_play_on_cpu]),
        )

    def rows(self, index: list[int]) -> "OpenCopies":
        """Some of the copies."""
        here = torch.tensor(index, dtype=torch.long)
        there = to_device(here, self.x_tau.device)
        return OpenCopies(
            [self.keys[row] for row in index],
            [self.pair_seeds[row] for row in index],
            [self.evaluations[row] for row in index],
            self.x_tau[there],
            None if self.x0_hat is None else self.x0_hat[there],
            [self.level[row] for row in index],
            self.losses[there],
            self.gaps[there],
            self.in_play[there],
            self.in_play_on_cpu[here],
        )

    def sifted_by(
        self, sift: FeatureSift, scores: torch.Tensor, in_play: torch.Tensor, on_cpu: torch.Tensor, num_levels: int
    ) -> "OpenCopies":
        """Copies that were just opened, with their candidates in play.

        A class that is dropped keeps its score's distance from the best one as its gap, so that gradients flow through
        the scores. With a `loss_weight` the scores enter the losses, and a single candidate needs no evaluation.

        Args:
            sift: The sift.
            scores: Scores of the classes, shape `(P, K)`.
            in_play: The candidates by these scores, shape `(P, K)`.
            on_cpu: The same on the CPU.
            num_levels: Number of levels.
        """
        gaps = torch.where(in_play, 0.0, scores.amax(dim=1, keepdim=True) - scores)
        return replace(
            self,
            level=[0 if number > 1 else num_levels for number in on_cpu.sum(dim=1).tolist()],
            losses=-sift.loss_weight * scores,
            gaps=gaps,
            in_play=in_play,
            in_play_on_cpu=on_cpu,
        )

    def logits(self) -> torch.Tensor:
        """Minus the losses; a dropped class keeps its gap behind the winner. Shape `(P, K)`."""
        best = self.losses.masked_fill(~self.in_play, torch.inf).amin(dim=1, keepdim=True)
        return -torch.where(self.in_play, self.losses, best + self.gaps)


def in_one_copy(in_play: torch.Tensor, finite: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Classes in play and whether all losses are finite, on the CPU, for which an accelerator is waited for once.

    Args:
        in_play: Classes in play, shape `(P, K)`.
        finite: Whether the losses are finite, a tensor without axes.
    """
    values = torch.cat([in_play.flatten(), finite.view(1)]).to("cpu")
    return values[:-1].view(in_play.shape), bool(values[-1])
