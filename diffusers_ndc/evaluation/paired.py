"""Two runs on the same images: which images one of them certifies at a radius and the other does not."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from .comparison import images_of
from .figures import Report


@dataclass(frozen=True)
class PairedCounts:
    """How many of the images that two runs share are correctly certified at one radius, by which of them.

    Args:
        both: Images that both certify.
        only_first: Images that the first run alone certifies.
        only_second: Images that the second run alone certifies.
        neither: Images that none certifies.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the exact test of McNemar (1947, doi:10.1007/BF02295996).

        If neither run certified more images than the other among all that could have been drawn, each image that only
        one of them certifies would be the first one's with probability 1/2.

        Example:
            >>> PairedCounts(80, 6, 0, 14).p_value
            0.03125
        """
        differing = self.only_first + self.only_second
        return float(stats.binomtest(self.only_first, differing).pvalue) if differing else 1.0


@dataclass(frozen=True)
class Paired:
    """Two runs side by side, over the images that both have, by their hashes and true classes.

    Args:
        first: A run.
        second: Another one.
    """

    first: Report
    second: Report

    @cached_property
    def shared(self) -> list[int]:
        """Indices of the images that are the same in both runs, in ascending order."""
        first, second = images_of(self.first), images_of(self.second)
        return sorted(index for index in first if index in second and not first[index].differs(second[index]))

    @cached_property
    def differing(self) -> int:
        """Number of indices that both runs have, with images or true classes that differ or are not known."""
        first, second = ({outcome.image_index for outcome in report.outcomes} for report in (self.first, self.second))
        return len(first & second) - len(self.shared)

    @property
    def radii(self) -> list[float]:
        """Radii at which the comparison is fair, in ascending order, pixel units; 0 is always among them.

        A run that stopped early answers for the radii that it set out to prove and for no other, a run on clean images
        for 0 alone. Two runs that did not stop early can be compared at every radius: these are the radii of both, and
        ten to a hundred round numbers up to the largest one that was proved.
        """
        runs = (self.first, self.second)
        if not all(report.certified for report in runs):
            return [0.0]
        early = [set(report.radii) for report in runs if report.run.get("stop_early")]
        if early:
            return sorted(set.intersection(*early))
        largest = max([0.0, *self._proved.flat])
        rounded: set[float] = set()
        if largest > 0:
            step = 10 ** math.floor(math.log10(largest)) / 10
            rounded = {float(f"{number * step:.12g}") for number in range(int(largest / step) + 1)}
        return sorted({*self.first.radii, *self.second.radii, *rounded})

    def at(self, radius: float) -> PairedCounts:
        """The counts at a radius (pixel units). At radius 0 an image counts if its class is correct."""
        first, second = self._proved >= radius
        counts = (first & second, first & ~second, ~first & second, ~first & ~second)
        return PairedCounts(*(int(each.sum()) for each in counts))

    @cached_property
    def _proved(self) -> np.ndarray:
        """For each run, the proved radius of each shared image, -1 where the class is incorrect."""
        rows = []
        for report in (self.first, self.second):
            proved = {outcome.image_index: outcome.proved for outcome in report.outcomes}
            rows.append([proved[index] for index in self.shared])
        return np.array(rows, dtype=float)
