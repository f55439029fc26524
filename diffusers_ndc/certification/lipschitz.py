"""The diffusion classifier as a Lipschitz function: a certificate without smoothing, checked without torch.

Chen et al., arXiv:2402.02316, on the robustness of the diffusion classifier itself. `dc` gives the class with the
smallest expected loss `L_y(x) = sum_i w_i E[l(h(x + sigma_i eps, sigma_i, y), x)]`, where `h` is clipped to [-1, 1]
and `l(h, x) = min(||h - x||^2 / D, cap)`. The margin `L_b - L_a` of two classes cannot change faster than
`lipschitz_constant`, so that class a keeps on leading within margin / constant. The classifier has no randomness: only
its expectation is estimated.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..common.checks import EXACT, check_integer, check_number
from ..diffusion.noise_levels import NoiseLevels
from .bounds import MAX_N, are_sums_of_scores, check_alpha, empirical_bernstein_lower, required
from .record import Record, first_flaw


LEVELS = NoiseLevels((4.0,), (1.0,), cap=0.3)
"""The default. At levels of little noise the classes differ by far less than the constant grows; and a cap not far
above the losses that occur makes the constant small and leaves the margins as they are."""


ROUND_OFF = 1e-4
"""How far the mean scores of the same draws may be apart on other hardware or in other batches."""


def lipschitz_constant(levels: NoiseLevels, pixels: int) -> float:
    """Bound on how fast the margin of two classes changes with the image, per unit of l2 in model units.

    `sum_i w_i (c sqrt(2 / pi) / sigma_i + min(4, 4 sqrt(c)) / sqrt(D))` with the cap c. The first part: as a function
    of `x + sigma eps` alone the difference of two losses lies in [-c, c], and the mean of such a function under
    Gaussian noise moves by `c sqrt(2 / pi) / sigma` at most (Stein's identity, or the total variation between two
    Gaussians: the network need not be smooth). The second: the losses compare with x itself, and below the cap
    `||h - x||^2 / D` has a gradient of at most `2 sqrt(c / D)` in x, the difference of two of them one of
    `2 ||h_a - h_b|| / D <= 4 / sqrt(D)`. The paper's constant is that of c = 4.

    Args:
        levels: Noise levels and weights, with a `cap` (4: the losses of clipped images as they are).
        pixels: Number D of values of an image.
    """
    cap = required("cap", levels.cap)
    direct = min(4, 4 * math.sqrt(cap)) / math.sqrt(pixels)
    return sum(
        weight * (cap * math.sqrt(2 / math.pi) / sigma + direct)
        for sigma, weight in zip(levels.sigmas, levels.weights, strict=True)
    )


def largest_loss(levels: NoiseLevels) -> float:
    """The most that a class can be charged, model units per value: the cap times the sum of the weights."""
    return required("cap", levels.cap) * sum(levels.weights)


@dataclass(frozen=True)
class LipschitzCertificate(Record):
    """A prediction of the diffusion classifier with clipped, capped losses, certified or abstained.

    Guarantee: with probability at least `1 - alpha` over the draws, `label` is the class of the smallest expected loss
    at every image within the open l2 ball of `radius`. Each draw gives, for each rival b of the candidate a,
    a margin `sum_i w_i (l_b - l_a)`, bounded by the cap; its mean is bounded from below by Maurer & Pontil's empirical
    Bernstein bound at `alpha / (K - 1)`, so that all hold at once, and the smallest one is divided by
    `lipschitz_constant`.

    Args:
        label: Class that is certified, or `None` for an abstention.
        radius: l2 radius in pixel units; 0 for an abstention.
        alpha: Probability with which the certificate may be wrong.
        n0: Number of draws that choose the candidate.
        n: Number of further draws that the bounds rest on.
        selection_losses: Mean loss of each class over the selection draws, model units per value.
        score_sums: For each rival, the sum of its scores: margins, mapped from [-W cap, W cap] to [0, 1], with W the
            sum of the weights.
        score_squares: Sums of their squares.
        pixels: Number of values of the image.
        num_classes: Number of classes K, labelled 0 to K - 1; all but the candidate are rivals.
        seed: Seed of all draws.
        image_hash: Content hash of the image, which enters the seeds of its draws.
        evaluations: Network evaluations spent.
        device: Kind of device on which the noise was drawn, as torch names it.
        base_classifier: Settings of the classifier; its `levels` give the constant.
    """

    labelled = ("selection_losses", "score_sums", "score_squares")

    label: int | None
    radius: float
    alpha: float
    n0: int
    n: int
    selection_losses: dict[int, float]
    score_sums: dict[int, float]
    score_squares: dict[int, float]
    pixels: int
    num_classes: int

    @classmethod
    def from_scores(cls, **record: Any) -> "LipschitzCertificate":
        """The certificate that these scores give; arguments are the fields but `label` and `radius`.

        Raises:
            ValueError: The scores are none of which a certificate can be made.
        """
        scores = cls(None, 0.0, **record)
        if flaw := first_flaw(scores._flaw_of_draws):
            raise ValueError(f"The `score_sums` make no certificate: {flaw}; accepted are those of draws.")
        return cls(*scores._result, **record)

    @property
    def abstained(self) -> bool:
        """Whether no class could be certified at any radius."""
        return self.label is None

    @property
    def candidate(self) -> int:
        """The class with the smallest loss over the selection draws, the smallest label among equals."""
        return min(self.selection_losses, key=lambda label: (self.selection_losses[label], label))

    @property
    def levels(self) -> NoiseLevels:
        """Noise levels, weights and cap, model units."""
        return NoiseLevels.from_dict(self.base_classifier["levels"])

    @property
    def margin_lower(self) -> float:
        """Lower bound on the smallest margin of the candidate (model units per value), recomputed from the scores."""
        share = self.alpha / len(self.score_sums)
        lowest = min(
            empirical_bernstein_lower(total, self.score_squares[rival], self.n, share)
            for rival, total in self.score_sums.items()
        )
        return (2 * lowest - 1) * self.largest

    @property
    def largest(self) -> float:
        """The most that a class can be charged, and so the largest margin."""
        return largest_loss(self.levels)

    @property
    def _result(self) -> tuple[int | None, float]:
        radius = self.margin_lower / lipschitz_constant(self.levels, self.pixels) / 2  # model to pixel units
        return (self.candidate, radius) if radius > 0 else (None, 0.0)

    def agrees(self, again: "LipschitzCertificate") -> bool:
        """Whether `again`, a certificate from the same draws, has the same scores, to within round-off."""
        alike = (self.n0, self.n, self.num_classes, self.candidate)
        return alike == (again.n0, again.n, again.num_classes, again.candidate) and all(
            abs(value - getattr(again, name)[label]) <= ROUND_OFF * draws
            for name, draws in (("selection_losses", 1), ("score_sums", self.n), ("score_squares", self.n))
            for label, value in getattr(self, name).items()
        )

    def _flaw_of_draws(self) -> str | None:
        check_alpha(self.alpha)
        for name in ("n0", "n", "pixels"):
            check_integer(name, getattr(self, name), 1, EXACT)
        self._check_kinds()
        if self.base_classifier.get("method") != "dc":
            return f"the method is {self.base_classifier.get('method')!r}"
        if self.levels.cap is None or self.levels.sifting is not None:
            return "the levels have no cap, or they sift the classes"
        losses = self.selection_losses
        check_integer("num_classes", self.num_classes, 2, MAX_N)
        if len(losses) != self.num_classes or sorted(losses) != list(range(self.num_classes)):
            return f"there are losses of {sorted(losses)}, not of {self.num_classes} classes"
        if not set(losses) - {self.candidate} == set(self.score_sums) == set(self.score_squares):
            return f"there are scores of {sorted(self.score_sums)}, not of all rivals of {self.candidate}"
        for name in self.labelled:
            for label, value in getattr(self, name).items():
                check_integer("label", label, 0, MAX_N)
                check_number(f"{name} of {label}", value, "a number")
        if not all(0 <= loss <= self.largest * (1 + 1e-6) for loss in losses.values()):
            return f"a loss is outside of 0 to {self.largest}, what the cap allows"
        for rival, total in self.score_sums.items():
            squares = self.score_squares[rival]
            if not are_sums_of_scores(total, squares, self.n):
                return f"no {self.n} scores have the sum {total} and the sum of squares {squares}"
        return None

    def _flaw_of_result(self) -> str | None:
        check_number("radius", self.radius, "a number")
        label, radius = self._result
        if type(self.label) is not type(label) or self.label != label:
            return f"the label is {self.label}, that of the scores {label}"
        if not math.isclose(self.radius, radius, rel_tol=1e-9):
            return f"the radius is {self.radius}, that of the scores {radius}"
        return None
