"""PREDICT and CERTIFY of Cohen et al. 2019 (arXiv:1902.02918), each as one object per image.

An object says by `next_draws()` which noisy copies it needs votes on, is given these votes by `add(votes)`, and has
its `result` when it needs no more. `voting.collect_votes` serves many of them at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..common.checks import check_integer, plain_number, plain_numbers
from .bound_names import ANYTIME, BOUNDS, CURTAILED, SOFT, default_bound
from .bounds import MAX_N, check_alpha, majority_pvalue
from .certificate import Certificate, draws_to_settle, plurality
from .stopping import STEP, StoppingRule, affordable, check_stopping, largest_provable
from .vote_sequence import pack_votes
from .voting import Draws, Procedure, Votes


@dataclass(frozen=True)
class Prediction:
    """What PREDICT returns.

    With probability at least `1 - alpha`, `label` is the smoothed classifier's class or `None`.

    Args:
        label: The predicted class, or `None` if the two leading classes cannot be distinguished (abstention).
        counts: Votes of each class. Classes without a vote are left out.
        alpha: Probability with which a label that is not `None` may differ from the smoothed classifier's.
        seed: Seed of all draws.
    """

    label: int | None
    counts: dict[int, int]
    alpha: float
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How many noisy copies of an image are drawn and which bound rests on their votes. Fixed before the first draw.

    Args:
        n0: Number of copies that choose the candidate class. 0: the leader at the end is certified, and each class has
            a share `alpha / K`.
        n: Number of further copies that bound its probability; the largest number if the run may stop early.
        alpha: Error probability of one certificate.
        bound: Name of the bound, one of `bound_names.BOUNDS`.
        radii: Radii to settle, pixel units, ascending, or `None`.
        resolution: Gain of radius, pixel units, that is worth further copies, or `None`.
        max_copies_per_radius: Copies that one more of the `radii` may cost in expectation, or `None`
            (`stopping.StoppingRule`).
        max_evaluations: Budget of network evaluations, or `None` (`stopping.affordable`).
    """

    n0: int
    n: int
    alpha: float
    bound: str
    radii: Sequence[float] | None = None
    resolution: float | None = None
    max_copies_per_radius: float | None = None
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "resolution", "max_copies_per_radius"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))

    @classmethod
    def with_defaults(
        cls,
        n0: int | None,
        n: int,
        alpha: float,
        bound: str | None,
        radii: Sequence[float] | None,
        resolution: float | None,
        max_copies_per_radius: float | None,
        max_evaluations: int | None,
    ) -> "Sampling":
        """Fill in the defaults of `n0` and `bound`, which depend on whether the run may stop early."""
        stops_early = radii is not None or resolution is not None or max_evaluations is not None
        if n0 is None:
            n0 = 10 if stops_early else 100
        if bound is None:
            bound = default_bound(stops_early)
        return cls(n0, n, alpha, bound, radii, resolution, max_copies_per_radius, max_evaluations)

    def purpose(self, stage: str) -> str:
        """What the draws of a stage are for; draws for different purposes are independent.

        A bound for an n fixed beforehand is worth nothing if n is chosen after looking. Its draws are therefore keyed
        by n0, n, alpha and bound as well: a run with another n has other draws, and the best prefix of a longer run
        does not replay. An anytime bound holds at all n at once, and its draws need no such key.

        Args:
            stage: "select" (the candidate) or "estimate" (its probability).
        """
        if self.bound in ANYTIME:
            return stage
        return f"{stage}, n0={self.n0}, n={self.n}, alpha={float(self.alpha)!r}, bound={self.bound}"

    @property
    def stops_early(self) -> bool:
        """Whether the run may end before all n copies are made."""
        return self.radii is not None or self.resolution is not None or self.max_evaluations is not None

    def check(self, sigma: float, num_classes: int | None) -> None:
        """Raise if a value is out of range, or if the bound does not allow for the others.

        Args:
            sigma: Smoothing noise, pixel units.
            num_classes: Number of classes, if known.
        """
        check_alpha(self.alpha)
        check_integer("n0", self.n0, 0, MAX_N, "a number of noisy copies")
        check_integer("n", self.n, 1, MAX_N, "a number of noisy copies")
        allowed = set(BOUNDS)
        if self.stops_early or self.n0 == 0:
            allowed &= ANYTIME | CURTAILED
        if not isinstance(self.bound, str) or self.bound not in allowed:
            raise ValueError(
                f"`bound` must be one of {sorted(allowed)} with n0={self.n0}, radii={self.radii!r}, "
                f"resolution={self.resolution!r} and max_evaluations={self.max_evaluations!r}, got {self.bound!r}."
            )
        if num_classes == 1 and (self.n0 == 0 or self.bound == "runner-up"):
            raise ValueError(
                f"`base_classifier` must have two classes or more with n0={self.n0} and the bound {self.bound}, "
                "got one class."
            )
        largest = math.inf
        if self.stops_early:
            share = self.alpha
            if self.n0 == 0 and num_classes is not None:
                share = self.alpha / num_classes
            largest = largest_provable(sigma, share, self.bound, self.n)
        check_stopping(self.radii, self.resolution, self.max_copies_per_radius, self.max_evaluations, largest)


class Ask:
    """A fixed number of votes; the result is these votes."""

    def __init__(self, draws: Draws):
        self.draws, self.result = draws, Votes()

    def next_draws(self) -> Draws | None:
        return self.draws if self.result.n < self.draws.count else None

    def add(self, votes: Votes) -> None:
        self.result = votes


class Select:
    """The selection of CERTIFY: the votes of `n0` copies, or of as many as settle which class leads.

    The candidate is the class that leads among all `n0`: copies that could not change it are not drawn.
    """

    def __init__(self, sampling: Sampling):
        self.sampling, self.result = sampling, Votes()

    def next_draws(self) -> Draws | None:
        missing = draws_to_settle(self.result.counts, self.sampling.n0 - self.result.n)
        return Draws(self.sampling.purpose("select"), self.result.n, missing) if missing else None

    def add(self, votes: Votes) -> None:
        self.result = self.result + votes


def check_predicting(n: int, alpha: float) -> None:
    """Raise unless these are a number of noisy copies and an error probability for PREDICT."""
    check_alpha(alpha)
    check_integer("n", n, 1, MAX_N, "a number of noisy copies")


class Predict:
    """Algorithm PREDICT (Cohen et al. 2019, Section 3.2.1):

    counts <- votes of n noisy copies
    n_A, n_B <- the two largest counts
    if BinomPValue(n_A, n_A + n_B, 1/2) <= alpha: return the leading class, else ABSTAIN
    """

    def __init__(self, n: int, alpha: float, seed: int):
        self.alpha, self.seed = float(alpha), seed
        # keyed by n and alpha, as for a bound: the most significant prefix of a longer run is none of its draws
        self.question = Ask(Draws(f"predict, n={n}, alpha={self.alpha!r}", 0, n))

    def next_draws(self) -> Draws | None:
        return self.question.next_draws()

    def add(self, votes: Votes) -> None:
        self.question.add(votes)

    @property
    def result(self) -> Prediction:
        counts = self.question.result.counts
        top, runner_up = [*sorted(counts.values(), reverse=True), 0][:2]
        significant = majority_pvalue(top, runner_up) <= self.alpha
        return Prediction(plurality(counts) if significant else None, counts, self.alpha, self.seed)


class Certify:
    """Algorithm CERTIFY (Cohen et al. 2019, Section 3.2.2):

        counts0 <- votes of n0 noisy copies;     candidate <- the class that leads in counts0
        counts  <- votes of n fresh copies;      p_lower <- LowerConfBound(counts[candidate], n, 1 - alpha)
        if p_lower > 1/2: return candidate and radius sigma * Phi^-1(p_lower), else ABSTAIN

    The last line is `Certificate.from_counts`.

    Args:
        sigma: Smoothing noise, pixel units.
        sampling: Numbers of copies and the bound.
        origin: What the certificate says of where its votes come from, by field.
        made: How many of the n copies to draw first. Default: all.
    """

    def __init__(self, sigma: float, sampling: Sampling, origin: dict, made: int | None = None):
        self.sigma, self.sampling, self.origin = sigma, sampling, origin
        self.selection, self.votes = Select(sampling), Votes()
        self.missing = sampling.n if made is None else made

    def next_draws(self) -> Draws | None:
        selection_draws = self.selection.next_draws()
        if selection_draws is not None:
            return selection_draws
        if self.missing == 0:
            return None
        return Draws(self.sampling.purpose("estimate"), self.votes.n, self.missing, self._scored())

    def add(self, votes: Votes) -> None:
        if self.selection.next_draws() is not None:
            self.selection.add(votes)
        else:
            self.votes = self.votes + votes
            self.missing -= votes.n

    @property
    def result(self) -> Certificate:
        return certificate_of(self.selection.result, self.votes, self.sigma, self.sampling, self.origin)

    def _scored(self) -> int | None:
        """The class whose soft votes the bound needs."""
        return plurality(self.selection.result.counts) if self.sampling.bound in SOFT else None


class CertifyEarly(Certify):
    """CERTIFY that ends as soon as the result is settled or its budget is spent, by a bound that allows for it.

    Votes are looked at every now and then, when all copies asked for have been counted; the `StoppingRule` says how
    many more are worth drawing, and `affordable` how many fit into the budget. The result is the certificate with the
    largest radius that was seen: an anytime bound holds at all looks at once, and a curtailed one counts the copies
    that were not drawn as failures.
    """

    def __init__(self, sigma: float, sampling: Sampling, origin: dict):
        if sampling.radii is not None:  # of an array or a tensor
            sampling = replace(sampling, radii=plain_numbers("radii", sampling.radii, "radii"))
        super().__init__(sigma, sampling, origin, made=min(sampling.n, STEP))
        self.best: Certificate | None = None

    def add(self, votes: Votes) -> None:
        super().add(votes)
        if self.votes.n > 0:
            self._look()

    def _look(self) -> None:
        sampling = self.sampling
        looked_at = self.votes.n if sampling.bound in ANYTIME else sampling.n
        latest = certificate_of(
            self.selection.result, self.votes, self.sigma, replace(sampling, n=looked_at), self.origin
        )
        if self.best is None or latest.radius > self.best.radius:
            self.best = latest
        proved = -1.0 if self.best.abstained else self.best.radius
        rule = StoppingRule(
            self.sigma,
            latest.alpha_of_candidate,
            sampling.bound,
            sampling.n,
            sampling.radii,
            sampling.resolution,
            sampling.max_copies_per_radius,
        )
        self.missing = rule.more(latest.tally, self.votes.n, proved)
        if sampling.max_evaluations is not None:
            made = self.selection.result.n + self.votes.n
            self.missing = min(self.missing, affordable(sampling.max_evaluations, self._spent, made))

    @property
    def result(self) -> Certificate:
        assert self.best is not None  # n is at least 1
        return replace(self.best, evaluations=self._spent)

    @property
    def _spent(self) -> int:
        """Network evaluations so far."""
        return self.selection.result.evaluations + self.votes.evaluations


def growing_certificates(
    votes_on: Callable[[Procedure[Votes]], Votes], sigma: float, sampling: Sampling, origin: dict
) -> Iterator[Certificate]:
    """CERTIFY as it goes: a certificate after every `STEP` noisy copies, on all votes so far.

    Args:
        votes_on: Runs a procedure on the image.
        sigma: Smoothing noise, pixel units.
        sampling: Numbers of copies, and an anytime bound.
        origin: Further fields of the certificates: where the votes come from.
    """
    selection, votes = votes_on(Select(sampling)), Votes()
    while votes.n < sampling.n:
        more = min(STEP, sampling.n - votes.n)
        votes = votes + votes_on(Ask(Draws(sampling.purpose("estimate"), votes.n, more)))
        yield certificate_of(selection, votes, sigma, replace(sampling, n=votes.n), origin)


def certificate_of(selection: Votes, votes: Votes, sigma: float, sampling: Sampling, origin: dict) -> Certificate:
    """The certificate that these votes give.

    Args:
        selection: Votes that choose the candidate.
        votes: Votes that bound its probability.
        sigma: Smoothing noise, pixel units.
        sampling: Numbers of copies as fixed beforehand, and the bound.
        origin: Further fields of the certificate: where the votes come from.
    """
    soft = sampling.bound in SOFT
    return Certificate.from_counts(
        selection.counts,
        votes.counts,
        sigma,
        sampling.alpha,
        bound=sampling.bound,
        n0=sampling.n0,
        n=sampling.n,
        num_classes=votes.num_classes,
        score_sum=votes.score_sum if soft else None,
        score_squares=votes.score_squares if soft else None,
        evaluations=selection.evaluations + votes.evaluations,
        vote_sequence=pack_votes(selection.labels + votes.labels),
        **origin,
    )
