"""The figures of a run, from its records alone: clean and certified accuracy, average certified radius, and cost.

Every certificate is recomputed from its votes. One that does not follow from them is listed, and counts nowhere. A run
that classified clean images, without certificates, has `alpha` null in its settings.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from ..certification.bounds import SOFT
from ..certification.certificate import Certificate
from ..common.checks import EXACT
from .lower_bound import EDGES, PERCENT, bin_counts, images_for_half, quantile
from .records import read_records, read_run
from .share import Share


MEANING_OF_SECONDS = "seconds: an image's share of its process's time, by network evaluations"


class Outcome(NamedTuple):
    """The result for one image.

    Args:
        label: The true class.
        predicted: The certified class, `None` for an abstention; in a run without certificates, the predicted class.
        radius: Certified radius, pixel units; 0 for an abstention, and in a run without certificates.
        evaluations: Number of network evaluations, `None` if unknown.
        seconds: The image's share of its process's time, `None` if unknown.
        p_lower: The certificate's `p_lower`, from which the radius follows; 0 for an incorrect class or an abstention,
            and in a run without certificates. With the bound `runner-up` it is not a bound on the class's probability.
        bound: Name of the certificate's bound, one of `bounds.BOUNDS`; `None` in a run without certificates.
    """

    label: int
    predicted: int | None
    radius: float
    evaluations: int | None
    seconds: float | None
    p_lower: float = 0.0
    bound: str | None = None

    @property
    def proved(self) -> float:
        """`radius` if the class is correct, else -1."""
        return self.radius if self.predicted == self.label else -1.0


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
                outcomes.append(_outcome(record, run))
            except ValueError as error:
                rejected[index] = str(error)
        return cls(name or Path(folder).resolve().name, run, outcomes, failed, rejected)

    @property
    def certified(self) -> bool:
        """Whether the run's records are certificates, rather than predictions for clean images."""
        return self.run["alpha"] is not None

    @property
    def radii(self) -> list[float]:
        """The run's radii in ascending order, pixel units; 0 is always among them."""
        return sorted({0.0, *self.run["radii"]})

    def at(self, radius: float) -> Share:
        """Certified accuracy: the share that is correct, and certified at this radius (pixel units).

        At radius 0 this is clean accuracy.
        """
        return Share(sum(outcome.proved >= radius for outcome in self.outcomes), len(self.outcomes))

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
    images, id2label = run.get("images", 0), run.get("id2label")
    checks = [
        ("sigma", _is_number(sigma), "a finite number of at least 0"),
        ("alpha", alpha is None or (_is_number(alpha) and 0 < alpha < 1), "a probability between 0 and 1, or null"),
        ("n", n is None or (type(n) is int and n > 0), "a positive integer, or null"),
        ("radii", isinstance(radii, list) and all(map(_is_number, radii)), "a list of finite numbers of at least 0"),
        ("images", type(images) is int and images >= 0, "an integer of at least 0"),
        ("id2label", isinstance(id2label, dict | None), "an object, or null"),
    ]
    for name, valid, expected in checks:
        if not valid:
            raise ValueError(f"`{name}` in {folder}/run.json must be {expected}, got {run[name]!r}.")


def _is_number(value: Any) -> bool:
    """Whether this is a finite number of at least 0."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _outcome(record: dict, run: dict) -> Outcome:
    """The result that a record holds.

    Raises:
        ValueError: The record is malformed, belongs to another run, or its certificate does not verify.
    """
    if record.get("run") != run.get("id"):
        raise ValueError(f"`run` must be {run.get('id')}, got {record.get('run')}.")
    if type(record.get("label")) is not int:
        raise ValueError(f"`label` must be a class index, got {record.get('label')!r}.")
    seconds = record.get("seconds")
    if seconds is not None and not _is_number(seconds):
        raise ValueError(f"`seconds` must be a finite number of at least 0, or null, got {seconds!r}.")
    if run["alpha"] is None:
        return _classified_outcome(record)
    return _certified_outcome(record, run)


def _classified_outcome(record: dict) -> Outcome:
    for name in ("predicted", "evaluations"):
        value = record.get(name)
        if type(value) is not int or not 0 <= value <= EXACT:
            raise ValueError(f"`{name}` must be an integer from 0 to 2**53, got {value!r}.")
    return Outcome(record["label"], record["predicted"], 0.0, record["evaluations"], record.get("seconds"))


def _certified_outcome(record: dict, run: dict) -> Outcome:
    certificate = Certificate.from_dict(record.get("certificate", {}))
    if not certificate.verify():
        raise ValueError("`certificate` must have a label and a radius that follow from its votes, got others.")
    if (certificate.sigma, certificate.alpha) != (run["sigma"], run["alpha"]):
        raise ValueError(
            f"`certificate` must have the run's sigma {run['sigma']} and alpha {run['alpha']}, got sigma "
            f"{certificate.sigma} and alpha {certificate.alpha}."
        )
    if record.get("image_hash") != certificate.image_hash:
        raise ValueError("`certificate` must be of this image, got one of another image.")
    correct = certificate.label == record["label"]
    return Outcome(
        record["label"],
        certificate.label,
        certificate.radius,
        certificate.evaluations,
        record.get("seconds"),
        p_lower=certificate.p_lower if correct else 0.0,
        bound=certificate.bound,
    )


def _mean_and_median(values: list[int] | list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    return fmean(values), median(values)
