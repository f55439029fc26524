"""The diffusion classifier as a Lipschitz function: a certificate without smoothing, checked without torch.

Chen et al., arXiv:2402.02316, on the robustness of the diffusion classifier itself. `dc` returns the class with the
smallest expected loss `L_y(x) = sum_i w_i E[l(h(x + sigma_i eps, sigma_i, y), x)]`, where `h` is clipped to [-1, 1]
and `l(h, x) = min(||h - x||^2 / D, cap)`. The margin `L_b - L_a` of two classes cannot change faster than
`lipschitz_constant`, so class a keeps leading within margin / constant. The classifier has no randomness: only its
expectation is estimated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..common.checks import EXACT, check_integer, check_kind, check_number, plain_numbers
from .bounds import MAX_N, are_sums_of_scores, check_alpha, empirical_bernstein_lower
from .record import RADIUS_ROUND_OFF, ROUND_OFF, Record, first_flaw


LEVELS_FIELDS = frozenset(
    ("sigmas", "weights", "thresholds", "relative", "max_classes", "smoothing_sigma", "method", "cap")
)
"""Keys of the dictionary in which a record states noise levels (`NoiseLevels.to_dict`)."""


def lipschitz_constant(sigmas: Sequence[float], weights: Sequence[float], cap: float, pixels: int) -> float:
    """Bound on how fast the margin of two classes changes with the image, per unit of l2 in model units.

    `sum_i w_i (c sqrt(2 / pi) / sigma_i + min(4, 4 sqrt(c)) / sqrt(D))` with the cap c. The first part: as a function
    of `x + sigma eps` alone the difference of two losses lies in [-c, c], and the mean of such a function under
    Gaussian noise moves by `c sqrt(2 / pi) / sigma` at most (Stein's identity, or the total variation between two
    Gaussians: the network need not be smooth). The second: the losses compare with x itself, and below the cap
    `||h - x||^2 / D` has a gradient of at most `2 sqrt(c / D)` in x, the difference of two of them one of
    `2 ||h_a - h_b|| / D <= 4 / sqrt(D)`. The paper's constant (Chen et al., arXiv:2402.02316) is that of c = 4.

    Args:
        sigmas: Noise levels, model units.
        weights: Weight of the loss at each level.
        cap: Largest loss at one level, mean squared error per value in model units, up to 4 (the losses of clipped
            images as they are).
        pixels: Number D of values of an image.

    Returns:
        The constant, loss per unit of l2 in model units (images in [-1, 1]). Per pixel unit it is twice as much.

    Raises:
        TypeError: An argument is not a number, or not a sequence of numbers.
        ValueError: There are not as many weights as levels.

    Example:
        >>> round(lipschitz_constant([4.0], [1.0], cap=0.3, pixels=784), 4)
        0.1381
    """
    sigmas = plain_numbers("sigmas", sigmas, "numbers, one per level")
    weights = plain_numbers("weights", weights, "numbers, one per level")
    cap = check_number("cap", cap, "a mean squared error above 0 and up to 4")
    direct = min(4, 4 * math.sqrt(cap)) / math.sqrt(pixels)
    return sum(
        weight * (cap * math.sqrt(2 / math.pi) / sigma + direct) for sigma, weight in zip(sigmas, weights, strict=True)
    )


def largest_loss(weights: Sequence[float], cap: float) -> float:
    """The largest loss of a class, and so the largest margin (model units per value): the cap times the total weight.

    Args:
        weights: Weight of the loss at each level.
        cap: Largest loss at one level.
    """
    return cap * sum(weights)


@dataclass(frozen=True)
class CappedLevels:
    """The noise levels behind a `LipschitzCertificate`, as its record states them: all classes at every level.

    Args:
        sigmas: Noise levels, model units.
        weights: Weight of the loss at each level.
        cap: Largest loss at one level, mean squared error per value in model units.
    """

    sigmas: tuple[float, ...]
    weights: tuple[float, ...]
    cap: float

    @classmethod
    def from_dict(cls, levels: dict) -> "CappedLevels":
        """Read the `levels` of a classifier's settings, as `NoiseLevels.to_dict` writes them.

        Raises:
            TypeError, ValueError: The dictionary does not describe noise levels with a cap and without sifting.
        """
        check_kind("levels", levels, dict)
        if not {"sigmas", "weights"} <= set(levels) <= LEVELS_FIELDS:
            raise ValueError(
                f"`levels` must have sigmas, weights and others of {sorted(LEVELS_FIELDS)}, got {levels}."
            )
        sigmas = plain_numbers("sigmas", levels["sigmas"], "numbers, one per level")
        weights = plain_numbers("weights", levels["weights"], "numbers, one per level")
        if not sigmas or not all(0 < sigma < math.inf for sigma in sigmas):
            raise ValueError(f"`sigmas` must be one or more finite numbers above 0, got {sigmas}.")
        if len(weights) != len(sigmas):
            raise ValueError(f"`weights` must be as many as `sigmas` ({len(sigmas)}), got {len(weights)}.")
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(f"`weights` must be finite numbers of at least 0, not all 0, got {weights}.")
        if levels.get("thresholds") is not None or levels.get("max_classes") is not None:
            raise ValueError("`levels` must score all classes at every level, got levels that sift the classes.")
        if levels.get("relative", False) is not False:
            raise ValueError(f"`relative` must be False without thresholds, got {levels['relative']!r}.")
        check_kind("method", levels.get("method"), str, type(None))
        smoothing_sigma = levels.get("smoothing_sigma")
        if smoothing_sigma is not None:
            smoothing_sigma = check_number("smoothing_sigma", smoothing_sigma, "a noise level of at least 0 or None")
            if not 0 <= smoothing_sigma < math.inf:
                raise ValueError(f"`smoothing_sigma` must be finite and at least 0, got {smoothing_sigma}.")
        if levels.get("cap") is None:
            raise ValueError("`levels` must have a `cap`, got None.")
        cap = check_number("cap", levels["cap"], "a mean squared error above 0 and up to 4")
        if not 0 < cap <= 4:
            raise ValueError(f"`cap` must be a mean squared error above 0 and up to 4, got {cap}.")
        return cls(sigmas, weights, cap)


@dataclass(frozen=True)
class LipschitzCertificate(Record):
    """A prediction of the diffusion classifier with clipped, capped losses, certified or abstained.

    Guarantee (Chen et al., arXiv:2402.02316): with probability at least `1 - alpha` over the draws, `label` is the
    class of the smallest expected loss at every image within the open l2 ball of `radius`. A draw is fresh noise at
    every level. It gives, for each rival b of the candidate a, a margin `sum_i w_i (l_b - l_a)`, bounded by the cap.
    The mean of the margins is bounded from below by Maurer & Pontil's empirical Bernstein bound at `alpha / (K - 1)`,
    so that all bounds hold at once, and the smallest bound is divided by `lipschitz_constant`.

    Args:
        label: Class that is certified, or `None` for an abstention.
        radius: l2 radius in pixel units; 0 for an abstention.
        alpha: Probability with which the certificate may be wrong.
        n0: Number of draws that choose the candidate.
        n: Number of further draws, on which the bounds rest.
        selection_losses: Mean loss of each class over the selection draws, model units per value.
        score_sums: For each rival, the sum of its scores: margins, mapped from [-W cap, W cap] to [0, 1], with W the
            sum of the weights.
        score_squares: Sums of their squares.
        pixels: Number of values of the image.
        num_classes: Number of classes K, labelled 0 to K - 1; all but the candidate are rivals.
        seed: Seed of all draws.
        image_hash: Content hash of the image, which enters the seeds of its draws.
        evaluations: Network evaluations spent.
        device: Kind of device that the network ran on, as torch names it, for information.
        base_classifier: Settings of the classifier; its `levels` give the constant.
    """

    labelled = ("selection_losses", "score_sums", "score_squares")
    numbers = ("radius", "alpha", "selection_losses", "score_sums", "score_squares")

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
        """Compute `label` and `radius` from the scores.

        Args:
            **record: All fields except `label` and `radius`, by name.

        Returns:
            The certificate.

        Raises:
            ValueError: The scores cannot come from such draws, or the settings do not describe such a classifier.
        """
        scores = cls(None, 0.0, **record)
        flaw = first_flaw(scores._flaw_of_draws)
        if flaw is not None:
            raise ValueError(f"`score_sums` must be the scores of draws, got a record with a flaw: {flaw}.")
        label, radius = scores._result
        return cls(label, radius, **record)

    @property
    def abstained(self) -> bool:
        """Whether no class could be certified at any radius."""
        return self.label is None

    @property
    def candidate(self) -> int:
        """The class with the smallest loss over the selection draws, the smallest label among equals."""
        return min(self.selection_losses, key=lambda label: (self.selection_losses[label], label))

    @property
    def levels(self) -> CappedLevels:
        """Noise levels, weights and cap, model units."""
        return CappedLevels.from_dict(self.base_classifier["levels"])

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
        """The largest loss of a class, and so the largest margin."""
        levels = self.levels
        return largest_loss(levels.weights, levels.cap)

    @property
    def _result(self) -> tuple[int | None, float]:
        """Label and radius that follow from the scores."""
        levels = self.levels
        constant = lipschitz_constant(levels.sigmas, levels.weights, levels.cap, self.pixels)
        radius = self.margin_lower / constant / 2  # model to pixel units
        if radius > 0:
            return self.candidate, radius
        return None, 0.0

    def agrees(self, again: "LipschitzCertificate") -> bool:
        """Whether a certificate from the same draws has the same scores and proves as much, to within round-off.

        Args:
            again: The certificate that `replay` returns.
        """
        if self.label != again.label or self.radius > again.radius * (1 + RADIUS_ROUND_OFF):
            return False
        for name in ("n0", "n", "num_classes", "candidate"):
            if getattr(self, name) != getattr(again, name):
                return False
        for name, draws in (("selection_losses", 1), ("score_sums", self.n), ("score_squares", self.n)):
            others = getattr(again, name)
            for label, value in getattr(self, name).items():
                if not abs(value - others[label]) <= ROUND_OFF * draws:  # NaN agrees with nothing
                    return False
        return True

    def _flaw_of_draws(self) -> str | None:
        check_alpha(self.alpha)
        for name in ("n0", "n", "pixels"):
            check_integer(name, getattr(self, name), 1, EXACT)
        self._check_kinds()
        if self.base_classifier.get("method") != "dc":
            return f"the method is {self.base_classifier.get('method')!r}, not 'dc'"
        losses, largest = self.selection_losses, self.largest  # raises if the levels have no cap or sift the classes
        check_integer("num_classes", self.num_classes, 2, MAX_N)
        if len(losses) != self.num_classes or sorted(losses) != list(range(self.num_classes)):
            return f"there are losses of {sorted(losses)}, not of {self.num_classes} classes"
        rivals = set(losses) - {self.candidate}
        if set(self.score_sums) != rivals or set(self.score_squares) != rivals:
            return f"there are scores of {sorted(self.score_sums)}, not of all rivals of {self.candidate}"
        for name in self.labelled:
            for label, value in getattr(self, name).items():
                check_integer("label", label, 0, MAX_N)
                check_number(f"{name} of {label}", value, "a number")
        if not all(0 <= loss <= largest * (1 + 1e-6) for loss in losses.values()):
            return f"a loss is not between 0 and {largest}, the largest one with this cap"
        for rival, total in self.score_sums.items():
            squares = self.score_squares[rival]
            if not are_sums_of_scores(total, squares, self.n):
                return f"no {self.n} scores have the sum {total} and the sum of squares {squares}"
        return None

    def _flaw_of_result(self) -> str | None:
        check_number("radius", self.radius, "a number")
        label, radius = self._result
        if type(self.label) is not type(label) or self.label != label:
            return f"the label is {self.label}, but the scores give {label}"
        if not math.isclose(self.radius, radius, rel_tol=1e-9):
            return f"the radius is {self.radius}, but the scores give {radius}"
        return None
