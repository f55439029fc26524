"""The record of one certified prediction, and its check from the counts alone."""

import argparse
import io
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from ..common import json as strict_json
from ..common.checks import EXACT, check_integer, check_number
from ..common.seeds import uniform_number
from .bounds import (
    ANYTIME,
    BOUNDS,
    CURTAILED,
    MAX_N,
    SOFT,
    Tally,
    are_sums_of_scores,
    certified_radius,
    check_alpha,
    given,
)
from .grid_noise import check_grid, slack
from .lipschitz import LipschitzCertificate
from .record import Record, found


@dataclass(frozen=True)
class Certificate(Record):
    """A prediction of the smoothed classifier `g(x) = argmax_c P[f(x + sigma * eps) = c]`, certified or abstained.

    Guarantee (Cohen et al. 2019, arXiv:1902.02918, Theorem 1 and Algorithm CERTIFY): before the draws, the probability
    that CERTIFY returns a label that `g` does not keep on the whole open l2 ball of `radius` around the image is at
    most `alpha`. It speaks of this one image, as it stood after resizing to the network's size, and of `f` exactly as
    it was run. With soft votes (`empirical-bernstein`) `g(x)` is the class with the largest mean probability.

    Args:
        label: Class that is certified, or `None` for an abstention.
        radius: l2 radius in pixel units (images in [0, 1]); 0 for an abstention.
        sigma: Standard deviation of the smoothing noise, pixel units.
        alpha: Probability with which the certificate may be wrong.
        n0: Number of draws that choose the candidate class. Fewer are made where the others cannot change the choice.
            0: the candidate is the leader of `counts`, and every class has a share `alpha / num_classes`.
        n: Number of further draws that the bound rests on. With the Clopper-Pearson bounds, those that were not made,
            since the outcome was settled, count as failures.
        selection_counts: Votes of each class among the selection draws; classes without a vote are left out.
        counts: Votes of each class among the further draws, likewise.
        bound: Name of the bound on the candidate's probability, one of `bounds.BOUNDS`.
        num_classes: Number of classes.
        u: Uniform random number of the randomized bound, derived from the seed.
        score_sum: Sum of the candidate's soft votes (`empirical-bernstein`).
        score_squares: Sum of their squares.
        seed: Seed of all draws.
        image_hash: Content hash of the image, which enters the seeds of its draws.
        evaluations: Network evaluations spent.
        grid: Where noise was drawn on a grid, its steps between two values of an 8-bit image (`grid_noise`): the
            certificate is then one for 8-bit images and the base classifier behind the rounding to that grid.
        pixels: Number of values of the image, where noise was drawn on a grid.
        device: Kind of device on which the noise was drawn, as torch names it; the same seed gives other noise on
            another one. `None` if it is not known.
        base_classifier: Settings of the base classifier `f`, for the record.
    """

    labelled = ("selection_counts", "counts")

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
    seed: int | None = None
    image_hash: str | None = None
    evaluations: int | None = None
    base_classifier: dict = field(default_factory=dict)
    grid: int | None = None
    pixels: int | None = None
    device: str | None = None

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
        """The certificate that these votes give: candidate by plurality of the selection, radius by the bound.

        Args:
            selection_counts: Votes of each class among the selection draws; whole numbers, as their labels.
            counts: Votes of each class among the fresh estimation draws.
            sigma: Standard deviation of the smoothing noise, pixel units.
            alpha: Probability with which the certificate may be wrong.
            bound: Name of the lower bound on the candidate's probability, one of `bounds.BOUNDS`.
            n0: Number of selection draws as fixed beforehand. Default: all that were made.
            n: Number of further draws as fixed beforehand. Default: all that were made.
            **record: Further fields, by name.

        Raises:
            TypeError: An argument is of another kind.
            ValueError: The votes are none from which this bound could make a certificate.
        """
        for name, given_votes in (("selection_counts", selection_counts), ("counts", counts)):
            if not isinstance(given_votes, dict) or any(type(value) is not int for value in given_votes.values()):
                raise TypeError(f"`{name}` is {given_votes!r}; accepted is a dictionary of label to votes.")
        check_number("sigma", sigma, "a noise level above 0 (pixel units)")
        check_alpha(alpha)
        n0 = sum(selection_counts.values()) if n0 is None else n0
        n = sum(counts.values()) if n is None else n
        votes = cls(None, 0.0, float(sigma), float(alpha), n0, n, selection_counts, counts, bound, **record)
        if flaw := found(votes._flaw_of_draws):
            raise ValueError(f"The `counts` make no certificate: {flaw}; accepted are votes as the class has them.")
        radius = certified_radius(votes.p_lower, votes.sigma)
        if radius is None:
            return votes
        return cls(**{**vars(votes), "label": votes.candidate, "radius": radius})

    @property
    def abstained(self) -> bool:
        """Whether no class could be certified at any radius."""
        return self.label is None

    @property
    def candidate(self) -> int:
        """The class that the selection draws chose, or the leader where there are none (the smallest among equals)."""
        return plurality(self.selection_counts or self.counts)

    @property
    def alpha_of_candidate(self) -> float:
        """`alpha`, or each class's share of it where the leader itself is the candidate."""
        return self.alpha if self.selection_counts else self.alpha / given("num_classes", self.num_classes)

    @property
    def tally(self) -> Tally:
        """What the bound rests on."""
        candidate = self.candidate
        return Tally(
            self.counts.get(candidate, 0),
            self.n,
            max((votes for label, votes in self.counts.items() if label != candidate), default=0),
            self.num_classes,
            self.u,
            self.score_sum,
            self.score_squares,
            0.0 if self.grid is None else slack(self.sigma, self.grid, given("pixels", self.pixels)),
        )

    @property
    def p_lower(self) -> float:
        """The probability whose quantile is the radius, recomputed from the counts: a lower bound on the candidate's.

        With `runner-up` it is not that, but what alone would give the radius of both bounds; see `runner_up_lower`.
        """
        return BOUNDS[self.bound](self.tally, self.alpha_of_candidate)

    @property
    def local_lipschitz(self) -> float:
        """Bound on the slope of the candidate's probability at the image, per pixel unit of l2.

        `Phi^-1(g_c)` changes by at most `1 / sigma` (Salman et al. 2019, arXiv:1906.04584, Lemma 2), so that `g_c` has
        the slope `phi(Phi^-1(g_c)) / sigma` at most, and less the surer it is; taken at the lower bound, which holds
        with probability `1 - alpha`. Where the bound does not exceed one half: what holds everywhere.
        """
        lower = self.p_lower
        if self.bound == "runner-up":  # of its two bounds the one on the candidate, at its share of alpha
            lower = BOUNDS["clopper-pearson"](self.tally, self.alpha / 2)
        return stats.norm.pdf(stats.norm.ppf(max(0.5, lower))).item() / self.sigma

    def _flaw_of_draws(self) -> str | None:
        check_alpha(self.alpha)
        check_number("sigma", self.sigma, "a number")
        votes = [*self.selection_counts.values(), *self.counts.values()]
        labels = [*self.selection_counts, *self.counts]
        made0, made = sum(self.selection_counts.values()), sum(self.counts.values())
        if self.bound not in BOUNDS:
            return f"the bound {self.bound!r} is none of {sorted(BOUNDS)}"
        if not 0 < self.sigma < math.inf:
            return f"sigma is {self.sigma}"
        if any(type(value) is not int or value < 0 for value in (*labels, *votes, self.n0, self.n)):
            return "labels, votes, n0 and n are not all whole numbers from 0"
        if 0 in votes:  # a class that nobody chose is no candidate
            return "a class without a vote is listed"
        if not _choice_is_settled(self.selection_counts, self.n0 - made0):
            return f"{made0} selection draws do not settle the choice of n0 = {self.n0}"
        if made > self.n or (made < self.n and self.bound not in CURTAILED):
            return f"there are {made} votes for n = {self.n}"
        if self.num_classes is not None:
            check_integer("num_classes", self.num_classes, max(labels, default=0) + 1, MAX_N)
        if self.grid is not None:
            check_grid(self.grid, self.sigma)
            check_integer("pixels", self.pixels, 1, EXACT)
        for name in ("u", "score_sum", "score_squares"):
            if (number := getattr(self, name)) is not None:
                check_number(name, number, "a number")
        self._check_kinds()
        if self.u is not None and self.seed is not None and self.image_hash is not None:
            if self.u != (drawn := uniform_number(self.seed, self.image_hash)):
                return f"u is {self.u}, that of seed and image {drawn}"
        if not self._has_what_the_bound_needs():
            return f"num_classes, u or scores are not what the bound {self.bound} needs"
        return None

    def _flaw_of_result(self) -> str | None:
        check_number("radius", self.radius, "a number")
        radius = certified_radius(self.p_lower, self.sigma)
        if radius is None:
            certified = self.label is not None or self.radius != 0
            return "a class is certified, but the bound does not exceed one half" if certified else None
        if type(self.label) is not int or self.label != self.candidate:
            return f"the label is {self.label}, the candidate of the votes {self.candidate}"
        if not math.isclose(self.radius, radius, rel_tol=1e-9):
            return f"the radius is {self.radius}, that of the votes {radius}"
        return None

    def _has_what_the_bound_needs(self) -> bool:
        if (self.bound == "runner-up" or not self.n0) and (self.num_classes is None or self.num_classes < 2):
            return False
        if self.bound == "randomized-clopper-pearson" and (self.u is None or not 0 <= self.u <= 1):
            return False
        if self.bound in SOFT:
            total, squares = self.score_sum, self.score_squares
            scored = total is not None and squares is not None and are_sums_of_scores(total, squares, self.n)
            return scored and self.n0 > 0
        return self.n0 > 0 or self.bound in ANYTIME | CURTAILED

    @property
    def votes(self) -> int:
        """Number of all votes."""
        return sum(self.selection_counts.values()) + sum(self.counts.values())

    def agrees(self, again: "Certificate") -> bool:
        """Whether `again`, a certificate from the same draws, has the same votes; soft ones, to within round-off."""
        return self.votes_moved(again) == 0 and math.isclose(self.radius, again.radius, rel_tol=1e-6)

    def votes_moved(self, again: "Certificate") -> int:
        """How many of the votes fall otherwise in `again`, a certificate from the same draws."""
        moved = 0
        for mine, others in ((self.selection_counts, again.selection_counts), (self.counts, again.counts)):
            gained = [others.get(label, 0) - mine.get(label, 0) for label in {*mine, *others}]
            moved += max(sum(votes for votes in gained if votes > 0), -sum(votes for votes in gained if votes < 0))
        return moved


def plurality(counts: dict[int, int]) -> int:
    """The class with most votes, the smallest label among equals."""
    return min(counts, key=lambda label: (-counts[label], label))


def draws_to_settle(counts: dict[int, int], left: int) -> int:
    """Fewest of the draws left after which the leading class can be certain: 0 where the rest cannot change it."""
    top, second = (sorted(counts.values(), reverse=True) + [0, 0])[:2]
    lead = top - second
    return 0 if left == 0 or lead > left else (left - lead) // 2 + 1


def _choice_is_settled(selection_counts: dict[int, int], left: int) -> bool:
    return left >= 0 and draws_to_settle(selection_counts, left) == 0


def check_file(path: Path) -> Iterator[tuple[str, Certificate | LipschitzCertificate | None, str | None]]:
    """Check all certificates of a file.

    Args:
        path: A JSON file with a certificate of either kind, or JSON lines with one each. Records of a run, which hold
            theirs as `certificate`, serve as well; those without one (clean images, images that failed) are passed
            over.

    Yields:
        Where it stands, the certificate, and its flaw or `None`.

    Raises:
        OSError: The file cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        strict_json.loads(text)
        entries = {str(path): text}
    except ValueError:
        entries = {f"{path}:{number}": line for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    for place, entry in entries.items():
        try:
            data = strict_json.loads(entry)
            if isinstance(data, dict) and "index" in data and "certificate" not in data:
                continue
            data = data.get("certificate", data) if isinstance(data, dict) else data
            kind = LipschitzCertificate if "score_sums" in data else Certificate
            certificate = kind.from_dict(data)
            flaw = certificate.flaw if "digest" in data else "there is no digest"
        except (TypeError, ValueError) as error:
            certificate, flaw = None, str(error)
        yield place, certificate, flaw


def main():
    parser = argparse.ArgumentParser(
        prog="python -m diffusers_ndc.certification.certificate",
        description="Recompute bound and radius of certificates from their votes, without torch, model or images.",
        epilog="Exit code: 0 where all certificates are sound, 1 where one is not, 2 where a file cannot be read.",
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="certificates as JSON, or a run's records")
    add("--replay", action="store_true", help="then also cast the votes of the runs again: needs torch, model, images")
    add("--count", type=int, help="replay so many certificates of each run, chosen at random (default: all)")
    add("--model", help="folder or Hub id of the model, if it is not where the run had it")
    add("--dataset", help="the same of the images")
    args = parser.parse_args()
    if not args.replay and (args.count, args.model, args.dataset) != (None, None, None):
        parser.error("--count, --model and --dataset belong to --replay.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a file or its name holds must not end the check
    worst = max(_say_checked(path) for path in args.files)
    if args.replay:
        folders = sorted({path.parent for path in args.files})
        worst = max(worst, *(_say_replayed(folder, args.count, args.model, args.dataset) for folder in folders))
    sys.exit(worst)


def _say_checked(path: Path) -> int:
    """Print a verdict on each certificate of a file; the exit code that they deserve."""
    worst = 0
    try:
        for place, certificate, flaw in check_file(path):
            if certificate is None or flaw is not None:
                print(f"FLAWED  {place}: {flaw}")
                worst = 1
            else:
                print(f"sound   {place}: {_said(certificate)}, {certificate.n:,} draws")
    except OSError as error:
        print(f"UNREAD  {path}: {error}")
        worst = 2
    return worst


def _say_replayed(folder: Path, count: int | None, model: str | None, dataset: str | None) -> int:
    """Print a verdict on each certificate of a run whose votes are cast again; the exit code that they deserve."""
    from ..evaluation.replay import replay  # with torch and the model

    worst = 0
    try:
        for found in replay(folder, count, model, dataset):
            place, votes = f"{folder}, image {found.index}", found.certificate.votes
            if found.again is None:
                print(f"FLAWED  {place}: {found.problem}", flush=True)
                worst = 1
            elif found.certificate.agrees(found.again):
                print(f"again   {place}: {_said(found.again)}, {votes:,} votes as recorded", flush=True)
            else:
                moved = found.certificate.votes_moved(found.again)
                print(f"MOVED   {place}: {moved:,} of {votes:,} votes; it is {_said(found.again)} now", flush=True)
                worst = 1
    except (OSError, TypeError, ValueError) as error:
        print(f"UNREAD  {folder}: {error}")
        worst = 2
    return worst


def _said(certificate: Certificate | LipschitzCertificate) -> str:
    label = "abstained" if certificate.abstained else f"label {certificate.label}"
    return f"{label}, radius {certificate.radius:.4f}"


if __name__ == "__main__":
    main()
