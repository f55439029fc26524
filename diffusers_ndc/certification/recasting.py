"""The votes of a record, cast again."""

from dataclasses import replace

from .bound_names import SOFT
from .certificate import Certificate, draws_to_settle, plurality
from .near_ties import find_near_ties
from .procedures import Sampling, certificate_of
from .voting import Draws, Votes


class Recast:
    """CERTIFY on the draws of a record: as many as were made for it, wherever their votes fall this time.

    Args:
        certificate: The record.
        sampling: Its numbers of copies and its bound.
        origin: What the new certificate says of where its votes come from, by field.
        tolerance: Largest relative gap of two logits that nearly tie.
    """

    def __init__(self, certificate: Certificate, sampling: Sampling, origin: dict, tolerance: float):
        self.certificate, self.sampling, self.origin, self.tolerance = certificate, sampling, origin, tolerance
        self.selection, self.votes = Votes(), Votes()
        self.selected = sum(certificate.selection_counts.values())
        self.made = sum(certificate.counts.values())

    def next_draws(self) -> Draws | None:
        if self.selection.n < self.selected:
            return Draws(self.sampling.purpose("select"), 0, self.selected, ranked=True)
        if self.votes.n < self.made:
            scored = plurality(self.selection.counts) if self.sampling.bound in SOFT else None
            return Draws(self.sampling.purpose("estimate"), 0, self.made, scored, ranked=True)
        return None

    def add(self, votes: Votes) -> None:
        if self.selection.n < self.selected:
            self.selection = votes
        else:
            self.votes = votes

    @property
    def result(self) -> Certificate:
        sampling = self.sampling
        if draws_to_settle(self.selection.counts, sampling.n0 - self.selected) > 0:
            # A vote of the selection has moved, so that more would have been drawn here. The choice is that of those
            # that were drawn.
            sampling = replace(sampling, n0=self.selected)
        again = certificate_of(self.selection, self.votes, self.certificate.sigma, sampling, self.origin)
        ranked = {"select": self.selection.ranked, "estimate": self.votes.ranked}
        return replace(again, near_ties=find_near_ties(ranked, self.tolerance))
