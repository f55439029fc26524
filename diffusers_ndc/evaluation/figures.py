"""The figures of a run, from its records alone: clean and certified accuracy, average certified radius, and cost.

Every certificate is recomputed from its votes. One that does not follow from them is listed, and counts nowhere. A run
that classified clean images, without certificates, has `alpha` null in its settings.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ..certification.bound_names import SOFT
from .lower_bound import EDGES, PERCENT, bin_counts, images_for_half, quantile
from .outcomes import Outcome, is_number, outcome_of
from .records import read_records, read_run
from .share import Share
from .task import Task, check_name


MEANING_OF_SECONDS = "seconds: an image's share of its process's time, by network evaluations"

SETTINGS_SHOWN = (
    "model",
    "dataset",
    "split",
    "method",
    "classifier",
    "sift",
    "sigma",
    "n0",
    "n",
    "alpha",
    "seed",
    "max_copies_per_radius",
    "max_evaluations",
)
"""Settings of a run that a report shows."""


@dataclass(frozen=True)
class Report:
    """The figures of one run: its settings, the result for each image, and what no share or average counts.

    Args:
        name: Name of the run.
        run: Its settings, as `read_run` returns them; `sigma` and `radii` in pixel units.
        outcomes: Results of the certificates that verify and belong to this run, or of the classified images.
        failed: Reason by index for images that could not be read, certified or classified.
        rejected: Reason by index for records that are malformed, or whose certificates do not verify or have another
            sigma or alpha than the run.

    Example:
        >>> report = Report.from_folder("examples/mnist/evaluation/sigma-0.5")
        >>> report.at(0.5)
        Share(count=88, total=100)
    """

    name: str
    run: dict
    outcomes: list[Outcome]
    failed: dict[int, str]
    rejected: dict[int, str]

    @classmethod
    def from_folder(cls, folder: str | Path, name: str | None = None) -> "Report":
        """Read a run's folder and verify every certificate in it.

        Args:
            folder: The run's folder.
            name: Name of the run. Default: the name of the folder.

        Raises:
            FileNotFoundError: The folder, or `run.json` in it, does not exist.
            ValueError: `run.json` lacks a setting or has an invalid one, or there are no records.
        """
        run = read_run(folder)
        _check_settings(run, folder)
        records = read_records(folder)
        if not records:
            raise ValueError(f"`folder` must hold records of a run, got {folder}, which holds no records.")
        outcomes, failed, rejected = [], {}, {}
        for index, record in records.items():
            if "failed" in record:
                failed[index] = str(record["failed"])
                continue
            try:
                outcomes.append(outcome_of(record, run))
            except ValueError as error:
                rejected[index] = str(error)
        return cls(name or Path(folder).resolve().name, run, outcomes, failed, rejected)

    @property
    def certified(self) -> bool:
        """Whether the run's records are certificates, rather than predictions for clean images."""
        return self.run["alpha"] is not None

    @property
    def task(self) -> Task | None:
        """The evaluation task of the run, if it has one."""
        task = self.run.get("task")
        return None if task is None else Task.from_dict(task)

    @property
    def radii(self) -> list[float]:
        """The run's radii in ascending order, pixel units; 0 is always among them."""
        return sorted({0.0, *self.run["radii"]})

    def at(self, radius: float) -> Share:
        """Certified accuracy: the share that is correct, and certified at this radius (pixel units).

        At radius 0 this is clean accuracy.
        """
        return Share(sum(outcome.proved >= radius for outcome in self.outcomes), len(self.outcomes))

    def answers(self, radius: float) -> bool:
        """Whether the run set out to tell the certified accuracy at a radius (pixel units).

        One that stopped early answers for its own radii, one on clean images for 0 alone.
        """
        if radius == 0:
            return True
        return self.certified and (not self.run.get("stop_early") or radius in self.radii)

    @property
    def average_radius(self) -> float:
        """Average certified radius (ACR), pixel units; an incorrect label or an abstention counts as 0."""
        if not self.outcomes:
            return 0.0
        return fmean(max(outcome.proved, 0.0) for outcome in self.outcomes)

    @property
    def images_for_half(self) -> Share | None:
        """The smallest share of the images whose radii make at least half of the total radius.

        The total is the sum of the radii that `average_radius` averages. The images are those with the largest radii,
        see `lower_bound.images_for_half`; `None` if no radius is above 0. This share is a figure of this set of
        images: its `interval` has no meaning.
        """
        number = images_for_half([max(outcome.proved, 0.0) for outcome in self.outcomes])
        return None if number is None else Share(number, len(self.outcomes))

    @property
    def p_lower_bins(self) -> list[tuple[float, float, Share]]:
        """Lower edge, upper edge and share of the images for each bin of `p_lower`, in ascending order.

        An incorrect label or an abstention counts as 0, so the first bin holds what is not correctly certified.
        """
        counts = bin_counts([outcome.p_lower for outcome in self.outcomes])
        edges = zip([0.0, *EDGES], [*EDGES, 1.0], counts, strict=True)
        return [(low, high, Share(count, len(self.outcomes))) for low, high, count in edges]

    @property
    def p_lower_quantiles(self) -> dict[int, float]:
        """Quantiles of `p_lower` over all images by per cent, empty without images.

        An incorrect label or an abstention counts as 0.
        """
        if not self.outcomes:
            return {}
        values = [outcome.p_lower for outcome in self.outcomes]
        return {percent: quantile(values, percent) for percent in PERCENT}

    @property
    def abstentions(self) -> Share:
        """Images without a certified class."""
        return Share(sum(outcome.predicted is None for outcome in self.outcomes), len(self.outcomes))

    @property
    def at_budget(self) -> Share | None:
        """Images that spent the run's budget of network evaluations (`max_evaluations`), `None` without a budget.

        What they would have proved with more is not known. A few may have been done just then.
        """
        budget = self.run.get("max_evaluations")
        if budget is None:
            return None
        spent = [outcome.evaluations for outcome in self.outcomes if outcome.evaluations is not None]
        return Share(sum(evaluations >= budget for evaluations in spent), len(spent))

    @property
    def classes(self) -> dict[int, "Report"]:
        """A report for each class that has results, named after the class, or its number if it has no name."""
        names = self.run.get("id2label") or {}
        classes = {}
        for label in sorted({outcome.label for outcome in self.outcomes}):
            outcomes = [outcome for outcome in self.outcomes if outcome.label == label]
            classes[label] = Report(names.get(str(label), str(label)), self.run, outcomes, {}, {})
        return classes

    @property
    def missing(self) -> int:
        """Images of the run without a record here: it is not finished, or they are on another machine."""
        recorded = len(self.outcomes) + len(self.failed) + len(self.rejected)
        return self.run.get("images", recorded) - recorded

    @property
    def meaning_of_alpha(self) -> str:
        """What `alpha` says about all certificates of a run; abstentions spent noisy copies too, and count."""
        alpha, m = self.run["alpha"], len(self.outcomes)
        return (
            f"alpha = {alpha:g} is the error probability of each certificate by itself, not of the whole set: of "
            f"these m = {m:,} certificates about alpha * m = {alpha * m:.3g} may be wrong (at most, in expectation)."
        )

    @property
    def meaning_of_p_lower(self) -> str:
        """What `p_lower` is in this run, with what its bound and its early stops mean for it."""
        bounds = {outcome.bound for outcome in self.outcomes}
        sentences = [
            "p_lower is the lower bound on the probability of the certified class under noise, from which the radius "
            "follows: sigma * Phi^-1(p_lower). It counts as 0 for incorrect labels and abstentions."
        ]
        if "runner-up" in bounds:
            sentences.append(
                "With the bound runner-up it is no bound on that probability, but the probability that alone would "
                "give the radius of the two bounds."
            )
        if bounds & SOFT:
            sentences.append("With soft votes it bounds the mean probability that the votes give the class.")
        if self.run.get("stop_early"):
            sentences.append(
                f"This run stopped early and sought no radius beyond {self.radii[-1]:g}, so its p_lower is limited by "
                "what the run set out to prove: the true probabilities may be much higher."
            )
        return " ".join(sentences)

    @property
    def cost(self) -> dict[str, tuple[float, float] | None]:
        """Mean and median of network evaluations and of seconds per image, `None` if no record has them."""
        evaluations = [outcome.evaluations for outcome in self.outcomes if outcome.evaluations is not None]
        seconds = [outcome.seconds for outcome in self.outcomes if outcome.seconds is not None]
        return {"network evaluations": _mean_and_median(evaluations), "seconds": _mean_and_median(seconds)}

    def to_dict(self) -> dict:
        """Convert to plain values, for JSON."""
        by_class = [{"label": label, "name": only.name, **only._accuracy()} for label, only in self.classes.items()]
        per_image = {}
        for quantity, both in self.cost.items():
            per_image[quantity] = None if both is None else {"mean": both[0], "median": both[1]}
        values = {
            "name": self.name,
            "run": self.run,
            "certified": self.certified,
            **self._accuracy(),
            "missing": self.missing,
            "failed": self.failed,
            "rejected": self.rejected,
            "by_class": by_class,
            "per_image": per_image,
            "meaning_of_seconds": MEANING_OF_SECONDS,
        }
        if self.certified:
            values["certificates"] = len(self.outcomes)
            values["average_certified_radius"] = self.average_radius
            values["lower_bound"] = self._lower_bound()
            values["abstentions"] = self.abstentions.to_dict()
            if self.at_budget is not None:
                values["at_budget"] = self.at_budget.to_dict()
            values["meaning_of_alpha"] = self.meaning_of_alpha
        return values

    def _lower_bound(self) -> dict:
        quantiles = self.p_lower_quantiles.items()
        half = self.images_for_half
        if half is None:
            half_of_total_radius = None
        else:
            half_of_total_radius = {"share": half.value, "count": half.count, "total": half.total}
        return {
            "meaning": self.meaning_of_p_lower,
            "quantiles": [{"quantile": percent / 100, "p_lower": value} for percent, value in quantiles],
            "bins": [{"from": low, "to": high, **share.to_dict()} for low, high, share in self.p_lower_bins],
            "half_of_total_radius": half_of_total_radius,
        }

    def _accuracy(self) -> dict:
        values: dict[str, Any] = {"clean_accuracy": self.at(0).to_dict()}
        if self.certified:
            values["certified_accuracy"] = [{"radius": radius, **self.at(radius).to_dict()} for radius in self.radii]
        return values


def _check_settings(run: dict, folder: str | Path) -> None:
    """Raise a `ValueError` unless a run has the settings that a report needs."""
    needed = ["sigma", "alpha", "n", "radii"]
    if "alpha" in run and run["alpha"] is None:  # nothing was certified; a missing alpha does not say that
        needed = ["sigma", "radii"]
    missing = [name for name in needed if run.get(name) is None]
    if missing:
        raise ValueError(
            f"run.json in {folder} must have values for {needed}, got none for {missing}. "
            "In a run without certificates `alpha` is null."
        )
    sigma, alpha, n, radii = (run.get(name) for name in ("sigma", "alpha", "n", "radii"))
    images, id2label, budget = run.get("images", 0), run.get("id2label"), run.get("max_evaluations")
    checks = [
        ("sigma", is_number(sigma), "a finite number of at least 0"),
        ("alpha", alpha is None or (is_number(alpha) and 0 < alpha < 1), "a probability between 0 and 1, or null"),
        ("n", n is None or (type(n) is int and n > 0), "a positive integer, or null"),
        ("radii", isinstance(radii, list) and all(map(is_number, radii)), "a list of finite numbers of at least 0"),
        ("images", type(images) is int and images >= 0, "an integer of at least 0"),
        ("max_evaluations", budget is None or (type(budget) is int and budget > 0), "a positive integer, or absent"),
        ("id2label", isinstance(id2label, dict | None), "an object, or null"),
    ]
    for name, valid, expected in checks:
        if not valid:
            raise ValueError(f"`{name}` in {folder}/run.json must be {expected}, got {run[name]!r}.")
    if run.get("task") is not None:
        _check_task(run, folder)


def _check_task(run: dict, folder: str | Path) -> None:
    """Raise a `ValueError` if a run is not of the task that it states."""
    try:
        task = Task.from_dict(run["task"])
        check_name(task)
    except ValueError as error:
        raise ValueError(f"`task` in {folder}/run.json must be a valid task: {error}") from None
    expected: dict[str, Any] = {**task.differing(run), "images": task.images}
    if run["alpha"] is not None and run["sigma"] not in task.sigmas:
        expected["sigma"] = f"one of {list(task.sigmas)}"
    for name, value in expected.items():
        if run.get(name) != value:
            raise ValueError(
                f"`{name}` in {folder}/run.json must be that of its task {task.name}, {value}, got {run.get(name)!r}."
            )


def _mean_and_median(values: list[int] | list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    return fmean(values), median(values)
