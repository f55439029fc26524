"""The distribution of `p_lower` over the images of a run, and how few images make up half of the total radius.

The average certified radius alone can be arbitrarily large for a trivial classifier: a constant classifier has a
probability of 1 on the images of its class, and each radius there grows with the number of noisy copies
(arXiv:2410.06895). The distribution shows how many images have such a radius.

These are plain functions of numbers; `figures.Report` applies them to its images.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction


EDGES = (0.5, 0.9, 0.99, 0.999)
"""Edges between the bins of `p_lower`. A bin contains its lower edge; the last one ends with 1."""

PERCENT = (10, 25, 50, 75, 90)
"""Quantiles that a report shows."""


def bin_counts(p_lower: Sequence[float]) -> list[int]:
    """Number of images in each bin between `EDGES`.

    Args:
        p_lower: One value per image, from 0 to 1; 0 for an image that is not correctly certified.

    Returns:
        Counts of the bins in ascending order, one more than there are edges.

    Example:
        >>> bin_counts([0.0, 0.5, 0.95, 0.999, 1.0])
        [1, 1, 1, 0, 2]
    """
    counts = [0] * (len(EDGES) + 1)
    for value in p_lower:
        counts[bisect_right(EDGES, value)] += 1
    return counts


def quantile(p_lower: Sequence[float], percent: int) -> float:
    """The smallest of the values such that at least `percent` per cent of the images have it or less.

    It is always one of the values, and nothing is interpolated.

    Args:
        p_lower: One value per image, at least one.
        percent: An integer from 1 to 100.

    Returns:
        The quantile.

    Example:
        >>> quantile([0.0, 0.6, 0.9, 0.99], 50)
        0.6
    """
    rank = (percent * len(p_lower) + 99) // 100  # rounded up, in integers: 0.1 * 70 is above 7 as a float
    return sorted(p_lower)[rank - 1]


def images_for_half(radii: Sequence[float]) -> int | None:
    """The smallest number of images whose radii make at least half of the total radius.

    These are the images with the largest radii. Which one of several equal radii counts first does not change their
    number. The sums are exact, so the result depends neither on the order of the images nor on round-off. With equal
    radii it is half of the images, rounded up; the fewer images decide the average radius, the smaller it is.

    Args:
        radii: One certified radius per image, at least 0; 0 for an image that is not correctly certified.

    Returns:
        The number of images, or `None` if no radius is above 0.

    Example:
        >>> images_for_half([1.0, 1.0, 3.0, 0.0])
        1
        >>> images_for_half([1.0, 1.0, 1.0, 1.0])
        2
    """
    exact = sorted((Fraction(radius) for radius in radii), reverse=True)
    total = sum(exact)
    if total == 0:
        return None
    number, reached = 0, Fraction(0)
    while 2 * reached < total:
        reached += exact[number]
        number += 1
    return number
