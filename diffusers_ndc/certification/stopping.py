"""When an image has been looked at enough: every radius settled, or the radius as sharp as it will get."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..common.checks import check_number, plain_numbers
from .bounds import ANYTIME, BOUNDS, Tally, certified_radius, clopper_pearson_lower


STEP = 20
"""Draws between two looks, or an eighth of those made if that is more: how often one looks, not what is seen."""

GIVE_UP = 0.01
"""Chance, at each look, of expecting too little of the draws to come. It may cost a certificate, never its truth."""


@dataclass(frozen=True)
class StoppingRule:
    """How many more draws to make before the next look.

    Nothing here bears on the truth of a certificate: the bound allows for any rule (`bounds.ANYTIME`), or counts the
    draws that were not made as failures (`bounds.CURTAILED`).

    Args:
        sigma: Smoothing noise, pixel units.
        alpha: Error probability of the bound.
        bound: One of `bounds.ANYTIME` or `bounds.CURTAILED`.
        n: Most draws.
        radii: Radii to be settled, pixel units, ascending; or `None`.
        resolution: Gain of radius, pixel units, that is worth further draws; or `None`.
    """

    sigma: float
    alpha: float
    bound: str
    n: int
    radii: Sequence[float] | None = None
    resolution: float | None = None

    def more(self, tally: Tally, made: int, proved: float) -> int:
        """Draws to make before the next look, 0 where none would tell anything.

        Args:
            tally: Votes so far.
            made: Number of draws so far.
            proved: Largest radius proved so far, -1 without one.
        """
        left = self.n - made
        step = min(left, max(STEP, made // 8))
        reachable = self._reachable(tally, made)
        if self.resolution is not None:
            return step if reachable - max(proved, 0.0) > self.resolution else 0
        goals = [radius for radius in self.radii or () if proved < radius <= reachable]
        if not goals or self.radius_after(step, tally) < goals[0]:
            return step if goals else 0
        too_few, enough = 0, step  # the fewest draws that prove the next radius, should all vote for the candidate
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self.radius_after(middle, tally) >= goals[0]:
                enough = middle
            else:
                too_few = middle
        return enough

    def radius_after(self, draws: int, tally: Tally, votes: int | None = None) -> float:
        """The radius after further draws, -1 for an abstention.

        Args:
            draws: Their number.
            tally: Votes so far.
            votes: Of the draws, for the candidate. Default: all.
        """
        count = tally.count + (draws if votes is None else votes)
        n = tally.n + draws if self.bound in ANYTIME else tally.n
        radius = certified_radius(BOUNDS[self.bound](replace(tally, count=count, n=n), self.alpha), self.sigma)
        return -1.0 if radius is None else radius

    def _reachable(self, tally: Tally, made: int) -> float:
        """The radius that all `n` draws can prove (a curtailed bound), or are at all likely to."""
        left, share = self.n - made, 1.0
        if self.bound in ANYTIME:
            share = 1 - clopper_pearson_lower(made - tally.count, made, GIVE_UP)
        return self.radius_after(left, tally, math.ceil(share * left)) if left else -1.0


def largest_provable(sigma: float, alpha: float, bound: str, n: int) -> float:
    """The radius that `n` draws prove if all vote for the candidate, -1 where not even the label."""
    rule = StoppingRule(sigma, alpha, bound, n)
    return rule.radius_after(n, Tally(0, 0 if bound in ANYTIME else n)) if n else -1.0


def check_stopping(radii: Sequence[float] | None, resolution: float | None, largest: float) -> None:
    """Refuse radii that are not ascending or beyond `largest`, the largest provable one; a `resolution` below 0.

    Raises:
        TypeError: They are no numbers.
        ValueError: They are not as described, or both are given.
    """
    if radii is not None and resolution is not None:
        raise ValueError(f"`radii` ({radii!r}) and `resolution` ({resolution!r}) are both given; accepted is one.")
    if resolution is not None:
        accepted = "a difference of radii above 0 (pixel units)"
        check_number("resolution", resolution, accepted)
        if not 0 < resolution < math.inf:
            raise ValueError(f"`resolution` is {resolution!r}; accepted is {accepted}.")
    if radii is None:
        return
    radii = plain_numbers("radii", radii, "radii of at least 0 (pixel units)")
    ascending = len(radii) and all(a < b for a, b in zip(radii, radii[1:], strict=False))
    if not ascending or not 0 <= radii[0] < math.inf:
        raise ValueError(
            f"`radii` is {radii!r}; accepted are one or more different radii, ascending, 0 or above (pixel units)."
        )
    if not radii[-1] <= largest:
        provable = f"{largest:.4f} is the largest" if largest >= 0 else "none, not even 0, is"
        raise ValueError(
            f"`radii` goes up to {radii[-1]}; {provable} that `n` draws can prove at this `alpha` and `sigma`, if all "
            "of them agree."
        )
