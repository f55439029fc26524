"""The record of one certified prediction, and its check from the counts alone."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from scipy import stats

from ..common.checks import EXACT, check_integer, check_kind, check_number
from ..common.seeds import uniform_number
from .bound_names import ANYTIME, BOUNDS, CURTAILED, SOFT, Tally, required
from .bounds import MAX_N, are_sums_of_scores, certified_radius, check_alpha
from .grid_noise import check_grid, slack
from .moved_votes import Comparison, Stage
from .near_ties import NearTie
from .record import RADIUS_ROUND_OFF, ROUND_OFF, Record, first_flaw
from .vote_sequence import unpack_votes


@dataclass(frozen=True)
class Certificate(Record):
    """A prediction of the smoothed classifier `g(x) = argmax_c P[f(x + sigma * eps) = c]`, certified or abstained.

    Guarantee (Cohen et al. 2019, arXiv:1902.02918, Theorem 1 and Algorithm CERTIFY): before the noise is drawn, the
    probability that CERTIFY returns a label that `g` does not keep on the whole open l2 ball of `radius` around the
    image is at most `alpha`. The guarantee holds for this one image, as it stood after resizing to the network's size,
    and for `f` exactly as it was run. With soft votes (`empirical-bernstein`) `g(x)` is the class with the largest
    mean probability.

    Args:
        label: Class that is certified, or `None` for an abstention.
        radius: l2 radius in pixel units (images in [0, 1]); 0 for an abstention.
        sigma: Standard deviation of the smoothing noise, pixel units.
        alpha: Probability that the certificate may be wrong.
        n0: Number of noisy copies that select the candidate class. Fewer are made if the others cannot change the
            choice. If 0, the candidate is the leader of `counts`, and every class gets a share `alpha / num_classes`.
        n: Number of further copies that the bound rests on. With the Clopper-Pearson bounds, copies that were not
            made, because the outcome was settled, count as failures.
        selection_counts: Votes of each class among the selection copies; classes without a vote are left out.
        counts: Votes of each class among the further copies; classes without a vote are left out.
        bound: Name of the bound on the candidate's probability, one of `bound_names.BOUNDS`.
        num_classes: Number of classes.
        u: Uniform random number of the randomized bound, derived from the seed.
        score_sum: Sum of the candidate's soft votes (`empirical-bernstein`).
        score_squares: Sum of their squares.
        grid: If the noise was drawn on a grid, the grid steps between two values of an 8-bit image (`grid_noise`). The
            certificate then holds for 8-bit images and the base classifier behind the rounding to that grid.
        pixels: Number of values of the image, if the noise was drawn on a grid.
        vote_sequence: All votes in the order of their draws, those of the selection first (`vote_sequence`), so that a
            replay can compare each one. Records of 0.1.0 have none.
        near_ties: In a replay, the copies whose vote other hardware may cast otherwise. Not part of the record.
        seed: Seed of all random numbers.
        image_hash: Content hash of the image, which enters the seeds of its noise.
        evaluations: Network evaluations spent.
        device: Kind of device that the network ran on, as torch names it, for information: the noise is the same on
            every device. Version 0.1.0 drew it on that device. `None` if unknown.
        base_classifier: Settings of the base classifier `f`, for the record.
    """

    labelled = ("selection_counts", "counts")
    numbers = ("radius", "sigma", "alpha", "u", "score_sum", "score_squares")

    label: int | None
    radius: float
    sigma: float
    alpha: float
    n0: int
    n: int
    selection_counts: dict[int, int]
    counts: dict[int, int]
    bound: str = "clopper-pearson"
    num_classes: int | None = None
    u: float | None = None
    score_sum: float | None = None
    score_squares: float | None = None
    grid: int | None = None
    pixels: int | None = None
    vote_sequence: str | None = None
    near_ties: tuple[NearTie, ...] = field(default=(), compare=False, repr=False, metadata={"recorded": False})

    @classmethod
    def from_counts(
        cls,
        selection_counts: dict[int, int],
        counts: dict[int, int],
        sigma: float,
        alpha: float,
        bound: str = "clopper-pearson",
        n0: int | None = None,
        n: int | None = None,
        **record: Any,
    ) -> "Certificate":
        """The certificate that follows from these votes: candidate by plurality of the selection, radius by the bound.

        Args:
            selection_counts: Votes of each class among the selection copies, as integers by integer labels.
            counts: Votes of each class among the fresh estimation copies, as integers by integer labels.
            sigma: Standard deviation of the smoothing noise, pixel units.
            alpha: Probability that the certificate may be wrong.
            bound: Name of the lower bound on the candidate's probability, one of `bound_names.BOUNDS`.
            n0: Number of selection copies as fixed beforehand. Default: all votes of the selection.
            n: Number of further copies as fixed beforehand. Default: all further votes.
            **record: Further fields, by name.

        Returns:
            The certificate, an abstention if the bound does not exceed 1/2.

        Raises:
            TypeError: An argument is of another type.
            ValueError: No certificate with this bound can follow from these votes.

        Example:
            >>> Certificate.from_counts({3: 20}, {3: 990, 5: 10}, sigma=0.25, alpha=0.001).label
            3
        """
        for name, votes in (("selection_counts", selection_counts), ("counts", counts)):
            if not isinstance(votes, dict) or any(type(number) is not int for number in votes.values()):
                raise TypeError(f"`{name}` must be a dictionary of class label to number of votes, got {votes!r}.")
        sigma = check_number("sigma", sigma, "a noise level above 0 (pixel units)")
        alpha = check_alpha(alpha)
        n0 = sum(selection_counts.values()) if n0 is None else n0
        n = sum(counts.values()) if n is None else n
        for name in ("u", "score_sum", "score_squares"):
            if record.get(name) is not None:
                record[name] = check_number(name, record[name], "a number or None")
        abstention = cls(None, 0.0, sigma, alpha, n0, n, selection_counts, counts, bound, **record)
        flaw = first_flaw(abstention._flaw_of_draws)
        if flaw is not None:
            raise ValueError(f"`counts` and the other arguments must make a certificate, got a flaw: {flaw}.")
        radius = certified_radius(abstention.p_lower, abstention.sigma)
        if radius is None:
            return abstention
        return replace(abstention, label=abstention.candidate, radius=radius)

    @property
    def abstained(self) -> bool:
        """Whether no class could be certified at any radius."""
        return self.label is None

    @property
    def candidate(self) -> int:
        """The class selected by `selection_counts`, or the leader of `counts` without any; the smallest of a tie."""
        return plurality(self.selection_counts or self.counts)

    @property
    def alpha_of_candidate(self) -> float:
        """`alpha`, or each class's share of it if the leader of `counts` is itself the candidate."""
        if self.selection_counts:
            return self.alpha
        return self.alpha / required("num_classes", self.num_classes)

    @property
    def tally(self) -> Tally:
        """The numbers that the bound is computed from."""
        candidate = self.candidate
        rivals = [votes for label, votes in self.counts.items() if label != candidate]
        return Tally(
            count=self.counts.get(candidate, 0),
            n=self.n,
            rival=max(rivals, default=0),
            num_classes=self.num_classes,
            u=self.u,
            score_sum=self.score_sum,
            score_squares=self.score_squares,
            slack=0.0 if self.grid is None else slack(self.sigma, self.grid, required("pixels", self.pixels)),
        )

    @property
    def p_lower(self) -> float:
        """Lower bound on the candidate's probability, recomputed from the counts. Its quantile gives the radius.

        With `runner-up` it is the probability that alone would give the radius of both bounds; see `runner_up_lower`.
        """
        return BOUNDS[self.bound](self.tally, self.alpha_of_candidate)

    @property
    def local_lipschitz(self) -> float:
        """Bound on the slope of the candidate's probability at the image, per pixel unit of l2.

        `Phi^-1(g_c)` changes by at most `1 / sigma` (Salman et al. 2019, arXiv:1906.04584, Lemma 2), so that `g_c` has
        a slope of at most `phi(Phi^-1(g_c)) / sigma`, which falls as `g_c` grows above one half. It is taken at the
        lower bound, which holds with probability `1 - alpha`. If the bound does not exceed one half, this is the
        largest slope anywhere.
        """
        lower = self.p_lower
        if self.bound == "runner-up":  # of its two bounds the one on the candidate, at its share of alpha
            lower = BOUNDS["clopper-pearson"](self.tally, self.alpha / 2)
        return stats.norm.pdf(stats.norm.ppf(max(0.5, lower))).item() / self.sigma

    @property
    def votes(self) -> int:
        """Number of all votes."""
        return sum(self.selection_counts.values()) + sum(self.counts.values())

    def agrees(self, again: "Certificate") -> bool:
        """Whether a replay, `again`, has the same votes, but for some that near-ties explain, and the same radius.

        A near-tie is a copy whose two leading classes are closer than round-off (`near_ties.TOLERANCES`), and it
        explains a vote that moved between exactly these two. With moved votes the radius may differ as well. The sums
        of soft votes may differ by round-off, and the radius may be lower by it.

        A replay compares draw by draw. Records of 0.1.0 have counts alone, which must differ by no more than near-ties
        can have moved. That does for an anytime bound only: with a bound for an n fixed beforehand, one of a few
        hundred chosen n has the same counts by chance, and a record without `vote_sequence` agrees with no replay.
        """
        if any(getattr(self, name) != getattr(again, name) for name in ("sigma", "alpha", "n", "bound")):
            return False
        if self.vote_sequence is None and again.vote_sequence is not None and self.bound not in ANYTIME:
            return False
        comparison = self.compare(again)
        if comparison.unexplained > 0:
            return False
        if self.bound in SOFT:
            return self._sums_agree(again)
        return comparison.moved > 0 or math.isclose(self.radius, again.radius, rel_tol=1e-6)

    def votes_moved(self, again: "Certificate") -> int:
        """How many votes fall on another class in a replay, `again`; without `vote_sequence` at least so many do."""
        return self.compare(again).moved

    def compare(self, again: "Certificate") -> Comparison:
        """Compare the votes with those of a replay, `again`: draw by draw if both have a `vote_sequence`."""
        return Comparison(self._stages, again._stages, again.near_ties)

    @property
    def _stages(self) -> list[Stage]:
        if self.vote_sequence is None:
            return [Stage("select", self.selection_counts, None), Stage("estimate", self.counts, None)]
        labels = unpack_votes(self.vote_sequence, self.votes)
        selected = sum(self.selection_counts.values())
        return [
            Stage("select", self.selection_counts, labels[:selected]),
            Stage("estimate", self.counts, labels[selected:]),
        ]

    def _sums_agree(self, again: "Certificate") -> bool:
        """Whether soft votes of the same candidate have the same sums to within round-off, and prove as much."""
        if self.candidate != again.candidate or self.radius > again.radius * (1 + RADIUS_ROUND_OFF):
            return False
        for name in ("score_sum", "score_squares"):
            if not abs(getattr(self, name) - getattr(again, name)) <= ROUND_OFF * self.n:  # NaN agrees with nothing
                return False
        return True

    def _flaw_of_draws(self) -> str | None:
        check_alpha(self.alpha)
        check_number("sigma", self.sigma, "a noise level above 0 (pixel units)")
        labels = [*self.selection_counts, *self.counts]
        votes = [*self.selection_counts.values(), *self.counts.values()]
        selected, made = sum(self.selection_counts.values()), sum(self.counts.values())
        if self.bound not in BOUNDS:
            return f"the bound {self.bound!r} is not one of {sorted(BOUNDS)}"
        if not 0 < self.sigma < math.inf:
            return f"sigma is {self.sigma}"
        if any(type(number) is not int or number < 0 for number in (*labels, *votes, self.n0, self.n)):
            return "labels, votes, n0 and n are not all integers of at least 0"
        if 0 in votes:  # a class without a vote must not become the candidate
            return "a class without a vote is listed"
        if not _choice_is_settled(self.selection_counts, self.n0 - selected):
            return f"{selected} selection votes do not settle the choice of n0 = {self.n0}"
        if made > self.n or (made < self.n and self.bound not in CURTAILED):
            return f"there are {made} votes for n = {self.n}"
        if self.num_classes is not None:
            check_integer("num_classes", self.num_classes, max(labels, default=0) + 1, MAX_N)
        if self.grid is not None:
            check_grid(self.grid, self.sigma)
        if self.grid is not None or self.pixels is not None:
            check_integer("pixels", self.pixels, 1, EXACT)
        for name, value in (("u", self.u), ("score_sum", self.score_sum), ("score_squares", self.score_squares)):
            if value is not None:
                check_number(name, value, "a number")
        self._check_kinds()
        check_kind("vote_sequence", self.vote_sequence, str, type(None))
        if self.vote_sequence is not None:
            if any(Counter(stage.labels) != stage.counts for stage in self._stages):
                return "the vote sequence has other votes than the counts"
        return self._flaw_of_u() or self._flaw_of_bound()

    def _flaw_of_u(self) -> str | None:
        if self.u is None or self.seed is None or self.image_hash is None:
            return None
        expected = uniform_number(self.seed, self.image_hash)
        return None if self.u == expected else f"u is {self.u}, but seed and image give {expected}"

    def _flaw_of_bound(self) -> str | None:
        """Whether something is missing that this bound needs."""
        needs_num_classes = self.bound == "runner-up" or self.n0 == 0
        if needs_num_classes and (self.num_classes is None or self.num_classes < 2):
            return f"num_classes is {self.num_classes}; the bound {self.bound} with n0 = {self.n0} needs at least 2"
        if self.bound == "randomized-clopper-pearson":
            if self.u is None or not 0 <= self.u <= 1:
                return f"u is {self.u}; the bound {self.bound} needs a number from 0 to 1"
            if self.seed is None or self.image_hash is None:  # u could have been chosen, to prove any radius
                return f"the bound {self.bound} needs the seed and the image_hash that u comes from"
        if self.n0 == 0 and self.bound not in ANYTIME | CURTAILED:
            return f"n0 is 0; the bound {self.bound} needs selection votes"
        if self.bound in SOFT:
            total, squares = self.score_sum, self.score_squares
            if total is None or squares is None or not are_sums_of_scores(total, squares, self.n):
                return f"score_sum {total} and score_squares {squares} are not sums of {self.n} scores in [0, 1]"
        return None

    def _flaw_of_result(self) -> str | None:
        check_number("radius", self.radius, "a number")
        radius = certified_radius(self.p_lower, self.sigma)
        if radius is None:
            if self.label is not None or self.radius != 0:
                return "a class is certified, but the bound does not exceed one half"
            return None
        if type(self.label) is not int or self.label != self.candidate:
            return f"the label is {self.label}, but the candidate of the votes is {self.candidate}"
        if not math.isclose(self.radius, radius, rel_tol=1e-9):
            return f"the radius is {self.radius}, but the votes give {radius}"
        return None


def plurality(counts: dict[int, int]) -> int:
    """The class with most votes, the smallest label of a tie."""
    return min(counts, key=lambda label: (-counts[label], label))


def draws_to_settle(counts: dict[int, int], left: int) -> int:
    """Fewest of the remaining copies after which the leading class may be settled; 0 if the rest cannot change it."""
    top, second = (sorted(counts.values(), reverse=True) + [0, 0])[:2]
    lead = top - second
    if left == 0 or lead > left:
        return 0
    return (left - lead) // 2 + 1


def _choice_is_settled(selection_counts: dict[int, int], left: int) -> bool:
    return left >= 0 and draws_to_settle(selection_counts, left) == 0
