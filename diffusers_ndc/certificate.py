"""The record of one certified prediction, and its check from the counts alone."""

import math
from dataclasses import asdict, dataclass, field, fields

from .bounds import BOUNDS, certified_radius, check_alpha


@dataclass(frozen=True)
class Certificate:
    """A prediction of the smoothed classifier `g(x) = argmax_c P[f(x + sigma * eps) = c]`, certified or abstained.

    Guarantee (Cohen et al. 2019, arXiv:1902.02918, Theorem 1 and Algorithm CERTIFY): before the draws, the probability
    that CERTIFY returns a label that `g` does not keep on the whole open l2 ball of `radius` around the image is at
    most `alpha`. It speaks of this one image, as it stood after resizing to the network's size, and of `f` exactly as
    it was run.

    Args:
        label: Class that is certified, or `None` for an abstention.
        radius: l2 radius in pixel units (images in [0, 1]); 0 for an abstention.
        sigma: Standard deviation of the smoothing noise, pixel units.
        alpha: Probability with which the certificate may be wrong.
        n0: Number of draws that chose the candidate class.
        n: Number of further draws that the bound rests on.
        selection_counts: Votes of each class among the `n0` draws; classes without a vote are left out.
        counts: Votes of each class among the `n` draws, likewise.
        bound: Name of the bound on the candidate's probability: `clopper-pearson`, for an `n` fixed beforehand, or
            `mixture`, for draws that were watched and stopped.
        seed: Seed of all draws.
        image_hash: Content hash of the image, which enters the seeds of its draws.
        evaluations: Network evaluations spent.
        base_classifier: Settings of the base classifier `f`, for the record.
    """

    label: int | None
    radius: float
    sigma: float
    alpha: float
    n0: int
    n: int
    selection_counts: dict[int, int]
    counts: dict[int, int]
    bound: str = "clopper-pearson"
    seed: int | None = None
    image_hash: str | None = None
    evaluations: int | None = None
    base_classifier: dict = field(default_factory=dict)

    @classmethod
    def from_counts(
        cls,
        selection_counts: dict[int, int],
        counts: dict[int, int],
        sigma: float,
        alpha: float,
        bound: str = "clopper-pearson",
        **record,
    ) -> "Certificate":
        """The certificate that these votes give: candidate by plurality of the selection, radius by the bound.

        Args:
            selection_counts: Votes of each class among the selection draws.
            counts: Votes of each class among the fresh estimation draws.
            sigma: Standard deviation of the smoothing noise, pixel units.
            alpha: Probability with which the certificate may be wrong.
            bound: Name of the lower bound on the candidate's probability, one of `BOUNDS`.
            **record: `seed`, `image_hash`, `evaluations`, `base_classifier`.
        """
        sigma, alpha = float(sigma), float(alpha)
        n0, n = sum(selection_counts.values()), sum(counts.values())
        candidate = plurality(selection_counts)
        radius = certified_radius(BOUNDS[bound](counts.get(candidate, 0), n, alpha), sigma)
        label, radius = (None, 0.0) if radius is None else (candidate, radius)
        return cls(label, radius, sigma, alpha, n0, n, selection_counts, counts, bound, **record)

    @property
    def abstained(self) -> bool:
        """Whether no class could be certified at any radius."""
        return self.label is None

    @property
    def candidate(self) -> int:
        """The class that the selection draws chose (the smallest label among equals)."""
        return plurality(self.selection_counts)

    @property
    def p_lower(self) -> float:
        """Lower bound on the candidate's probability, recomputed from the counts."""
        return BOUNDS[self.bound](self.counts.get(self.candidate, 0), self.n, self.alpha)

    def verify(self) -> bool:
        """Whether label and radius follow from the counts, and the counts are those of `n0` and `n` draws."""
        try:
            check_alpha(self.alpha)
            votes = [*self.selection_counts.values(), *self.counts.values()]
            if (
                self.bound not in BOUNDS
                or not 0 < self.sigma < math.inf
                or any(type(value) is not int or value < 0 for value in [*votes, self.n0, self.n])
                or any(type(label) is not int or label < 0 for label in [*self.selection_counts, *self.counts])
                or sum(self.selection_counts.values()) != self.n0
                or sum(self.counts.values()) != self.n
            ):
                return False
            expected = Certificate.from_counts(self.selection_counts, self.counts, self.sigma, self.alpha, self.bound)
            return self.label == expected.label and math.isclose(self.radius, expected.radius, rel_tol=1e-9)
        except (TypeError, ValueError, AttributeError):
            return False

    def to_dict(self) -> dict:
        """The record as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Certificate":
        """The record that `to_dict` wrote, also after a passage through JSON (where the labels become strings).

        Raises:
            ValueError: A field is missing or unknown, or a count has no whole number for its label.
        """
        known = {f.name for f in fields(cls)}
        required = known - {"bound", "seed", "image_hash", "evaluations", "base_classifier"}
        if not isinstance(data, dict) or not required <= set(data) <= known:
            given = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"`data` has {given}; accepted is a dictionary with {sorted(required)}, and of {known}.")
        counts = {}
        for name in ("selection_counts", "counts"):
            try:
                counts[name] = {int(label): votes for label, votes in data[name].items()}
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"`{name}` is {data[name]!r}; accepted is a dictionary of label to votes.") from None
        return cls(**{**data, **counts})


def plurality(counts: dict[int, int]) -> int:
    """The class with most votes, the smallest label among equals."""
    return min(counts, key=lambda label: (-counts[label], label))
