"""A plan: which sigma for which radius, and what the certificates of a data set will cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..common.markdown import table
from .forecast import Estimate, Forecast, forecast
from .procedures import Sampling
from .simulated import alpha_of_candidate
from .stopping import largest_provable
from .trial import Trial


NEARLY = 0.98
"""The sigma for a radius is the cheapest one with at least this share of the best certified accuracy there."""


@dataclass(frozen=True)
class Plan:
    """Expected certified accuracy and cost by sigma and radius, from a trial on labelled images. All are estimates.

    Choose a sigma by the radius that is asked for, before any image is certified. A choice among certificates of an
    image would be another matter: the best of m of them is false with a probability of up to m times `alpha`.

    Args:
        forecasts: For each sigma, and each radius that can be proved with it, a run that seeks this radius alone.
        together: For each sigma, one run that seeks all the radii that can be proved with it.
        images: Images of the trial.
        copies: Noisy copies of each image in the trial, with each sigma.
        evaluations_per_second: Speed of the network in the trial, in one process.
        peak_memory: Largest memory of this process by the end of the trial, bytes: allocated on the GPU if the images
            are on one, else of the whole process. `None` if unknown.

    Example:
        >>> plan = pipe.plan([0.25, 0.5], images, labels)  # doctest: +SKIP
        >>> print(plan)  # doctest: +SKIP
        >>> pipe.certify(others, sigma=plan.best(0.5).sigma, radii=[0.5])  # doctest: +SKIP
    """

    forecasts: tuple[Forecast, ...]
    together: tuple[Forecast, ...]
    images: int
    copies: int
    evaluations_per_second: float
    peak_memory: int | None

    @classmethod
    def from_trials(cls, trials: Sequence[Trial], sampling: Sampling, radii: Sequence[float], seed: int) -> "Plan":
        """The plan that the votes of trials give.

        Args:
            trials: One for each sigma, with the same images and number of copies.
            sampling: Settings of CERTIFY, checked, with a bound on hard votes. Its radii are replaced by those sought.
            radii: Radii that are asked for, pixel units, ascending.
            seed: Seed of the simulation.
        """
        speed = sum(trial.timed_evaluations for trial in trials) / sum(trial.seconds for trial in trials)
        forecasts, together = [], []
        for trial in trials:
            sought = provable_radii(radii, trial.sigma, sampling, trial.counts.shape[1])
            runs = [[radius] for radius in sought] + ([sought] if sought else [])
            for run in runs:
                settings = sampling if sampling.radii is None else replace(sampling, radii=tuple(run))
                forecasts.append(forecast(trial, settings, run, speed, seed))
            if sought:
                together.append(forecasts.pop())
        memories = [trial.peak_memory for trial in trials if trial.peak_memory is not None]
        return cls(
            forecasts=tuple(forecasts),
            together=tuple(together),
            images=len(trials[0].labels),
            copies=trials[0].copies,
            evaluations_per_second=speed,
            peak_memory=max(memories, default=None),
        )

    @property
    def sigmas(self) -> list[float]:
        """Noise levels of the plan, ascending, pixel units."""
        return sorted({run.sigma for run in self.together})

    @property
    def radii(self) -> list[float]:
        """Radii of the plan, ascending, pixel units."""
        return sorted({radius for run in self.together for radius in run.radii})

    def at(self, sigma: float, radius: float | None = None) -> Forecast | None:
        """The forecast for a sigma and a radius, or for all radii in one run; `None` if there is none.

        Args:
            sigma: One of `sigmas`.
            radius: One of `radii`. Default: all of them.
        """
        runs = self.together if radius is None else self.forecasts
        found = [run for run in runs if run.sigma == sigma and (radius is None or run.radii == (radius,))]
        return found[0] if found else None

    def best(self, radius: float) -> Forecast | None:
        """The forecast of the sigma with the fewest network evaluations among those with nearly the best accuracy.

        Nearly is a certified accuracy of at least `NEARLY` times the best one at this radius.

        Args:
            radius: One of `radii`.

        Returns:
            The forecast, or `None` if no image is expected to be certified at this radius.
        """
        runs = [run for run in self.forecasts if run.radii == (radius,)]
        best = max((run.accuracies[0].value for run in runs), default=0.0)
        if best == 0:
            return None
        return min((run for run in runs if run.accuracies[0].value >= NEARLY * best), key=_evaluations)

    def to_markdown(self) -> str:
        """The plan as Markdown: a table by sigma and radius, the recommendations, speed and memory."""
        rows: list[list[str]] = []
        for sigma in self.sigmas:
            rows += [_row(run, f"{run.radii[0]:g}", run.accuracies[0]) for run in self.forecasts if run.sigma == sigma]
            rows += [_row(run, "all in one run", None) for run in self.together if run.sigma == sigma]
        heads = ["sigma", "radius", "certified accuracy", "noisy copies", "network evaluations", "seconds"]
        recommended = [[f"{radius:g}", *self._recommended(radius)] for radius in self.radii]
        memory = "unknown" if self.peak_memory is None else f"{self.peak_memory / 2**30:.2f} GiB"
        return "\n\n".join(
            [
                f"Expected for one image, with 95% intervals (estimates from {self.copies} noisy copies of each of "
                f"{self.images} images):",
                table(heads, rows),
                "The cheapest sigma with nearly the best certified accuracy at a radius:",
                table(["radius", "sigma", "certified accuracy", "network evaluations", "seconds"], recommended),
                f"Estimates of this machine, with one process: {self.evaluations_per_second:,.0f} network evaluations "
                f"a second; peak memory {memory}.",
            ]
        )

    def _recommended(self, radius: float) -> list[str]:
        best = self.best(radius)
        if best is None:
            return ["none", "0%", "-", "-"]
        return [f"{best.sigma:g}", _percent(best.accuracies[0]), _number(best.evaluations), _seconds(best.seconds)]

    def __str__(self) -> str:
        return self.to_markdown()


def provable_radii(radii: Sequence[float], sigma: float, sampling: Sampling, num_classes: int) -> list[float]:
    """The radii that a run seeks: those that `n` copies that all agree prove."""
    alpha = alpha_of_candidate(sampling, num_classes)
    largest = largest_provable(sigma, alpha, sampling.bound, sampling.n)
    return [radius for radius in radii if radius <= largest]


def _evaluations(run: Forecast) -> float:
    return run.evaluations.value


def _row(run: Forecast, radius: str, accuracy: Estimate | None) -> list[str]:
    shown = "" if accuracy is None else _percent(accuracy)
    return [f"{run.sigma:g}", radius, shown, _number(run.copies), _number(run.evaluations), _seconds(run.seconds)]


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _number(number: Estimate) -> str:
    return f"{number.value:,.0f} ({number.low:,.0f} to {number.high:,.0f})"


def _seconds(seconds: Estimate) -> str:
    return f"{seconds.value:.3g} ({seconds.low:.3g} to {seconds.high:.3g})"
