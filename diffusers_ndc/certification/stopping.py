"""When to stop certifying an image: all target radii are settled, or the radius can hardly grow any more."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..common.checks import check_number, plain_numbers
from .bounds import ANYTIME, BOUNDS, Tally, certified_radius, clopper_pearson_lower


STEP = 20
"""Copies between two looks at the votes, or an eighth of the copies so far if that is more. It sets how often one
looks; the bounds hold for any choice."""

GIVE_UP = 0.01
"""Chance, at each look, of underestimating the votes to come. Stopping too early may cost a certificate, but it never
makes one false."""


@dataclass(frozen=True)
class StoppingRule:
    """Decides how many more noisy copies to classify before the next look at the votes.

    No certificate depends on this rule for its truth: the bound holds for any rule (`bounds.ANYTIME`), or counts the
    copies that were never made as failures (`bounds.CURTAILED`).

    Args:
        sigma: Standard deviation of the smoothing noise, pixel units.
        alpha: Error probability of the bound.
        bound: One of `bounds.ANYTIME` or `bounds.CURTAILED`.
        n: Largest number of copies.
        radii: Target radii, pixel units, ascending; or `None`. The run stops when each is proved or out of reach.
        resolution: The run stops when the radius can grow by no more than this, pixel units; or `None`.
    """

    sigma: float
    alpha: float
    bound: str
    n: int
    radii: Sequence[float] | None = None
    resolution: float | None = None

    def more(self, tally: Tally, made: int, proved: float) -> int:
        """Number of copies to classify before the next look; 0 to stop.

        Args:
            tally: Votes so far.
            made: Number of copies so far.
            proved: Largest radius proved so far, pixel units; -1 if none.
        """
        step = min(self.n - made, max(STEP, made // 8))
        reachable = self._reachable(tally, made)
        if self.resolution is not None:
            gain = reachable - max(proved, 0.0)
            return step if gain > self.resolution else 0
        targets = [radius for radius in self.radii or () if proved < radius <= reachable]
        if not targets:
            return 0
        return self._fewest_to_prove(targets[0], tally, step)

    def radius_after(self, copies: int, tally: Tally, votes: int | None = None) -> float:
        """The radius after further copies, -1 for an abstention.

        Args:
            copies: Number of further copies.
            tally: Votes so far.
            votes: Number of further votes for the candidate. Default: all copies vote for it.
        """
        count = tally.count + (copies if votes is None else votes)
        n = tally.n + copies if self.bound in ANYTIME else tally.n
        p_lower = BOUNDS[self.bound](replace(tally, count=count, n=n), self.alpha)
        radius = certified_radius(p_lower, self.sigma)
        return -1.0 if radius is None else radius

    def _reachable(self, tally: Tally, made: int) -> float:
        """The largest radius still in reach, -1 for none.

        With a curtailed bound: the radius if all remaining copies vote for the candidate. With an anytime bound, which
        may use many copies: the radius if they vote for it at the upper confidence bound of its rate so far.
        """
        left = self.n - made
        if left == 0:
            return -1.0
        if self.bound not in ANYTIME:
            return self.radius_after(left, tally)
        rate = 1 - clopper_pearson_lower(made - tally.count, made, GIVE_UP)
        return self.radius_after(left, tally, math.ceil(rate * left))

    def _fewest_to_prove(self, radius: float, tally: Tally, step: int) -> int:
        """Fewest of the next `step` copies that prove `radius` if all vote for the candidate; `step` if none do.

        No earlier look could prove the radius, and a unanimous image spends no copy beyond it. The radius grows with
        the number of unanimous copies, so the smallest such number is found by bisection.
        """
        if self.radius_after(step, tally) < radius:
            return step
        return 1 + bisect_left(range(1, step), radius, key=lambda copies: self.radius_after(copies, tally))


def largest_provable(sigma: float, alpha: float, bound: str, n: int) -> float:
    """The radius that `n` copies prove if all vote for the candidate, -1 if they cannot certify even the label."""
    if n == 0:
        return -1.0
    planned = 0 if bound in ANYTIME else n
    return StoppingRule(sigma, alpha, bound, n).radius_after(n, Tally(0, planned))


def check_stopping(radii: Sequence[float] | None, resolution: float | None, largest: float) -> None:
    """Raise unless `radii` and `resolution` describe when to stop.

    Args:
        radii: Ascending radii from 0 to `largest`, pixel units, or `None`.
        resolution: A difference of radii above 0, pixel units, or `None`.
        largest: Largest provable radius (`largest_provable`).

    Raises:
        TypeError: One of them is not a number or, for `radii`, numbers.
        ValueError: They are not as described, or both are given.
    """
    if radii is not None and resolution is not None:
        raise ValueError(f"`radii` must be None if `resolution` is given, got {radii!r} and {resolution!r}.")
    if resolution is not None:
        expected = "a finite difference of radii above 0 (pixel units)"
        check_number("resolution", resolution, expected)
        if not 0 < resolution < math.inf:
            raise ValueError(f"`resolution` must be {expected}, got {resolution!r}.")
    if radii is not None:
        _check_radii(radii, largest)


def _check_radii(radii: Sequence[float], largest: float) -> None:
    expected = "one or more finite radii of at least 0 (pixel units), ascending and different"
    radii = plain_numbers("radii", radii, expected)
    if not radii or not all(0 <= radius < math.inf for radius in radii):
        raise ValueError(f"`radii` must be {expected}, got {radii!r}.")
    if any(later <= earlier for earlier, later in zip(radii, radii[1:], strict=False)):
        raise ValueError(f"`radii` must be {expected}, got {radii!r}.")
    if radii[-1] > largest:
        provable = f"at most {largest:.4f}" if largest >= 0 else "no radius is, not even 0"
        raise ValueError(
            f"`radii` must be provable by `n` copies that all agree, at this `alpha` and `sigma` ({provable}), "
            f"got {radii[-1]}."
        )
