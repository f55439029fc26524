"""CERTIFY on simulated votes: what it would prove, and at what cost, if an image's probabilities were these."""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from .bound_names import ANYTIME, Tally
from .certificate import plurality
from .procedures import Sampling, Select
from .stopping import STEP, StoppingRule, affordable
from .voting import Votes


@dataclass(frozen=True)
class SimulatedRun:
    """The outcome of CERTIFY on simulated votes.

    Args:
        candidate: The class that was certified.
        radius: The radius that was proved, pixel units; -1 for an abstention.
        copies: Noisy copies that were drawn, those of the selection among them.
    """

    candidate: int
    radius: float
    copies: int


class SimulatedCertify:
    """CERTIFY as `procedures.Certify` and `CertifyEarly` run it, on votes drawn by known probabilities.

    What a look at the votes says depends on their numbers alone, and is remembered: bounds are slow, and simulated
    images meet the same numbers again and again.

    Args:
        sigma: Smoothing noise, pixel units.
        sampling: Numbers of copies, radii and limits, with a bound on hard votes.
        num_classes: Number of classes K.
    """

    def __init__(self, sigma: float, sampling: Sampling, num_classes: int):
        self.sampling = sampling
        self.rule = StoppingRule(
            sigma,
            alpha_of_candidate(sampling, num_classes),
            sampling.bound,
            sampling.n,
            sampling.radii,
            max_copies_per_radius=sampling.max_copies_per_radius,
        )
        self._radii: dict[tuple[int, int], float] = {}
        self._steps: dict[tuple[int, int, int], int] = {}

    def run(self, probabilities: np.ndarray, evaluations: float, generator: np.random.Generator) -> SimulatedRun:
        """Run CERTIFY once.

        Args:
            probabilities: Probability of each class to have a noisy copy's vote, shape `(K,)`.
            evaluations: Network evaluations that a noisy copy takes, on average.
            generator: Source of the votes.
        """
        candidate, selected = self._select(probabilities, generator)
        probability = probabilities[candidate]
        sampling = self.sampling
        if not sampling.stops_early:
            count = int(generator.binomial(sampling.n, probability))
            return SimulatedRun(candidate, self._radius(count, sampling.n), selected + sampling.n)
        made, count, proved, step = 0, 0, -1.0, min(sampling.n, STEP)
        while step:
            made, count = made + step, count + int(generator.binomial(step, probability))
            proved = max(proved, self._radius(count, made))
            step = self._step(count, made, proved)
            if sampling.max_evaluations is not None:
                copies = selected + made
                spent = round(copies * evaluations)
                step = min(step, affordable(sampling.max_evaluations, spent, copies))
        return SimulatedRun(candidate, proved, selected + made)

    def _select(self, probabilities: np.ndarray, generator: np.random.Generator) -> tuple[int, int]:
        """The candidate, and the number of copies that chose it.

        Without a selection the leader at each look is certified; it is taken to be the most probable class.
        """
        select = Select(self.sampling)
        while (draws := select.next_draws()) is not None:
            drawn = generator.multinomial(draws.count, probabilities)
            select.add(Votes({int(label): int(drawn[label]) for label in drawn.nonzero()[0]}))
        if not select.result.counts:
            return int(probabilities.argmax()), 0
        return plurality(select.result.counts), select.result.n

    def _radius(self, count: int, made: int) -> float:
        key = (count, made)
        if key not in self._radii:
            self._radii[key] = self.rule.radius_after(0, self._tally(count, made))
        return self._radii[key]

    def _step(self, count: int, made: int, proved: float) -> int:
        key = (count, made, bisect_right(self.sampling.radii or (), proved))  # all that the rule sees of `proved`
        if key not in self._steps:
            self._steps[key] = self.rule.more(self._tally(count, made), made, proved)
        return self._steps[key]

    def _tally(self, count: int, made: int) -> Tally:
        n = made if self.sampling.bound in ANYTIME else self.sampling.n
        return Tally(count, n)


def alpha_of_candidate(sampling: Sampling, num_classes: int) -> float:
    """Error probability of the candidate's bound: without a selection the classes share `alpha`."""
    return sampling.alpha if sampling.n0 else sampling.alpha / num_classes
