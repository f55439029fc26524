"""Which votes of a record fall on another class in a replay, and whether near-ties explain them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from .near_ties import NearTie


LARGEST_SHARE = 0.02
"""With a larger share of near-ties (but for a single one) they explain nothing: a forger could choose their votes."""


@dataclass(frozen=True)
class MovedVote:
    """A vote that falls on another class in a replay.

    Args:
        stage: "select" or "estimate".
        number: Number of the draw in its stage, from 0.
        recorded: Its class on the record.
        replayed: Its class in the replay.
        gap: Relative difference of the two classes' logits in the replay if they nearly tie, else `None`: round-off
            does not explain this one.
    """

    stage: str
    number: int
    recorded: int
    replayed: int
    gap: float | None


@dataclass(frozen=True)
class Stage:
    """The votes of one stage of a certificate.

    Args:
        name: "select" or "estimate".
        counts: Votes of each class; classes without a vote are left out.
        labels: Class of each vote in the order of the draws, or `None` if it is not known.
    """

    name: str
    counts: dict[int, int]
    labels: list[int] | None


@dataclass(frozen=True)
class Comparison:
    """The votes of a record beside those of a replay.

    Args:
        recorded: Stages of the record.
        replayed: The same stages of the replay.
        near_ties: Near-ties among the copies of the replay.
    """

    recorded: Sequence[Stage]
    replayed: Sequence[Stage]
    near_ties: Sequence[NearTie]

    @property
    def draw_by_draw(self) -> bool:
        """Whether each vote can be compared, and not only their numbers."""
        for old, new in zip(self.recorded, self.replayed, strict=True):
            if old.labels is None or new.labels is None or len(old.labels) != len(new.labels):
                return False
        return True

    @property
    def votes(self) -> list[MovedVote]:
        """The votes that moved; none if it cannot be said which."""
        if not self.draw_by_draw:
            return []
        gaps = {(tie.stage, tie.number, tie.label, tie.other): tie.gap for tie in self._explaining}
        moved = []
        for old, new in zip(self.recorded, self.replayed, strict=True):
            for number, (was, now) in enumerate(zip(old.labels or [], new.labels or [], strict=True)):
                if was != now:
                    moved.append(MovedVote(old.name, number, was, now, gaps.get((old.name, number, now, was))))
        return moved

    @property
    def moved(self) -> int:
        """How many votes moved; where only their numbers are known, at least so many did."""
        if self.draw_by_draw:
            return len(self.votes)
        pairs = zip(self.recorded, self.replayed, strict=True)
        return sum(unexplained_votes(old.counts, new.counts, ()) for old, new in pairs)

    @property
    def unexplained(self) -> int:
        """How many of them the near-ties do not explain."""
        if self.draw_by_draw:
            return sum(vote.gap is None for vote in self.votes)
        unexplained = 0
        for old, new in zip(self.recorded, self.replayed, strict=True):
            ties = [tie for tie in self._explaining if tie.stage == old.name]
            unexplained += unexplained_votes(old.counts, new.counts, ties)
        return unexplained

    @property
    def _explaining(self) -> Sequence[NearTie]:
        copies = sum(sum(stage.counts.values()) for stage in self.replayed)
        return self.near_ties if len(self.near_ties) <= max(1, LARGEST_SHARE * copies) else ()


def unexplained_votes(recorded: dict[int, int], replayed: dict[int, int], ties: Sequence[NearTie]) -> int:
    """How many votes moved that near-ties cannot explain, where only the counts are known.

    A near-tie between a and b, with a vote for a in the replay, can have had one for b on the record. Each can move
    one vote from a to b, and a surplus may pass through several classes: what gets from the classes with too many
    votes to those with too few is a maximum flow.

    Args:
        recorded: Votes of each class on the record.
        replayed: Votes of each class in the replay.
        ties: Near-ties among these copies.
    """
    labels = sorted({*recorded, *replayed, *(label for tie in ties for label in (tie.label, tie.other))})
    source, sink = len(labels), len(labels) + 1
    capacity = np.zeros((len(labels) + 2, len(labels) + 2), dtype=np.int32)
    place = {label: number for number, label in enumerate(labels)}
    for label in labels:
        surplus = replayed.get(label, 0) - recorded.get(label, 0)
        capacity[source, place[label]] = max(0, surplus)
        capacity[place[label], sink] = max(0, -surplus)
    for tie in ties:
        capacity[place[tie.label], place[tie.other]] += 1
    moved = max(int(capacity[source].sum()), int(capacity[:, sink].sum()))
    return moved - int(maximum_flow(csr_array(capacity), source, sink).flow_value)
