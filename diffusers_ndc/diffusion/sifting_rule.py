"""The rule by which classes are dropped on the way."""

import math
from dataclasses import dataclass, replace

from ..common.checks import check_integer, check_number, plain_numbers


MAX_CLASSES = 10**9
"""Largest `max_classes`: beyond the number of classes of any model."""


@dataclass(frozen=True)
class SiftingRule:
    """When a class is dropped: the sift-and-refine of Chen et al. (arXiv:2402.02316).

    Levels are visited in order. After each one, a class is dropped if its loss so far exceeds the smallest loss by
    more than that level's threshold. The rule is fixed beforehand and belongs to the classifier: it is the same for
    every image, and each noisy copy is sifted by its own losses.

    Args:
        thresholds: One threshold per level but the last, at least 0, in the units of the weighted loss.
        relative: Whether the thresholds are fractions of the smallest loss so far instead. Noisy copies that are hard
            to denoise have larger losses, and larger gaps between equally likely classes.
        max_classes: Largest number of classes that are kept, those with the smallest losses. `None`: no limit.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range.

    Example:
        >>> SiftingRule((3.0, 2.0), max_classes=5).loosened(2)
        SiftingRule(thresholds=(6.0, 4.0), relative=False, max_classes=5)
    """

    thresholds: tuple[float, ...]
    relative: bool = False
    max_classes: int | None = None

    def __post_init__(self):
        expected = "finite numbers of at least 0, one per level but the last"
        object.__setattr__(self, "thresholds", plain_numbers("thresholds", self.thresholds, expected))
        if not all(0 <= threshold < math.inf for threshold in self.thresholds):
            raise ValueError(f"`thresholds` must be {expected}, got {self.thresholds}.")
        if not isinstance(self.relative, bool):
            raise TypeError(f"`relative` must be True or False, got {self.relative!r}.")
        if self.max_classes is not None:
            check_integer("max_classes", self.max_classes, 1, MAX_CLASSES, "None or an integer")

    def loosened(self, factor: float) -> "SiftingRule":
        """The same rule with wider thresholds.

        Args:
            factor: Every threshold is multiplied by this, a finite number above 0.

        Raises:
            TypeError: `factor` is not a number.
            ValueError: `factor` is not finite and above 0.
        """
        factor = check_factor(factor)
        return replace(self, thresholds=tuple(factor * threshold for threshold in self.thresholds))


def check_factor(factor: float) -> float:
    """Return `factor` as a float, or raise unless it is a finite number above 0."""
    expected = "a finite number above 0"
    factor = check_number("factor", factor, expected)
    if not 0 < factor < math.inf:
        raise ValueError(f"`factor` must be {expected}, got {factor}.")
    return factor
