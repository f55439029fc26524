"""What a run says as a whole, from its records alone: (certified) accuracy, average radius, cost, and a picture.

    python -m diffusers_ndc.evaluation.report runs/sigma-0.25 runs/sigma-0.5 --output compared

Every certificate is recomputed from its votes; one that does not follow from them is listed, and counts nowhere. A run
of a classifier of clean images, without certificates, has `alpha` null in its settings.
"""

import argparse
import json
import os
import re
import sys
import textwrap
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..certification.bounds import clopper_pearson_lower
from ..certification.certificate import Certificate
from ..common.checks import EXACT
from .records import read_records, read_run


PUBLISHED = {0.25: 0.80, 0.5: 0.707}
"""Certified accuracy of APNDC on CIFAR-10 at l2 radii in pixel units (Chen et al., arXiv:2402.02316)."""

PUBLISHED_NAME = "published for CIFAR-10, APNDC (arXiv:2402.02316): over 80% at 0.25, 70.7% at 0.5"

MEANING_OF_SECONDS = "seconds: an image's share of its process's time, by network evaluations"


def _is_number(value: Any) -> bool:
    """Whether this is a finite number of at least 0."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


SETTINGS = {
    "sigma": _is_number,
    "alpha": lambda value: value is None or (_is_number(value) and 0 < value < 1),
    "n": lambda value: value is None or (type(value) is int and value > 0),
    "radii": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "images": lambda value: type(value) is int and value >= 0,
    "id2label": lambda value: isinstance(value, dict | None),
}
"""What the settings of a run must be that a report computes with."""

# Okabe and Ito's colours, told apart by colour-blind readers too, and styles of lines and points for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"))


@dataclass(frozen=True)
class Share:
    """So many of so many images.

    Args:
        count: Images that have the property.
        total: Images that were looked at.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share itself, 0 of no images."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% Clopper-Pearson interval of the share among all images that could have been drawn.

        It covers that share with probability at least 0.95 over a random sample of images; the error probability
        `alpha` of each certificate is another matter.
        """
        if not self.total:
            return 0.0, 1.0
        low = clopper_pearson_lower(self.count, self.total, 0.025)
        return low, 1 - clopper_pearson_lower(self.total - self.count, self.total, 0.025)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        low, high = self.interval
        return {"share": self.value, "count": self.count, "total": self.total, "low": low, "high": high}


class Outcome(NamedTuple):
    """What became of an image.

    Args:
        label: The true class.
        predicted: The certified class, `None` for an abstention; without certificates, the classifier's.
        radius: Certified radius, pixel units; 0 for an abstention, and without certificates.
        evaluations: Network evaluations spent, `None` where not known.
        seconds: The image's share of its process's time, `None` where not known.
    """

    label: int
    predicted: int | None
    radius: float
    evaluations: int | None
    seconds: float | None

    @property
    def proved(self) -> float:
        """`radius` where the class is right, else -1."""
        return self.radius if self.predicted == self.label else -1.0


@dataclass(frozen=True)
class Report:
    """One run: its settings, what became of its images, and what is left out of every share and average.

    Args:
        name: Name of the run.
        run: Its settings, as `read_run` has them; `sigma` and `radii` in pixel units.
        outcomes: Those of the certificates that verify and are this run's, or of the classified images.
        failed: Reason by index of images that could not be read, certified or classified.
        rejected: Reason by index of records that are malformed, or whose certificates do not verify or have another
            run's sigma or alpha.
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
            name: Name of the run. Default: that of the folder.

        Raises:
            FileNotFoundError: The folder, or `run.json` in it, does not exist.
            ValueError: `run.json` lacks a setting or has one that none can be, or there are no records.
        """
        run, records = read_run(folder), read_records(folder)
        # a run that certifies nothing says so: its alpha is null, not left out
        needed = ("sigma", "radii") if run.get("alpha", "") is None else ("sigma", "alpha", "n", "radii")
        lacking = [setting for setting in needed if run.get(setting) is None]
        if lacking:
            raise ValueError(
                f"run.json in {folder} lacks {lacking}; accepted are the settings of a certification, or `alpha` null."
            )
        for setting, value in run.items():
            if setting in SETTINGS and not SETTINGS[setting](value):
                raise ValueError(f"run.json in {folder} has a {setting} of {value!r}, which no run has.")
        if not records:
            raise ValueError(f"{folder} holds no records.")
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
        """Whether the run's records are certificates; those of a run without are the classes of clean images."""
        return self.run["alpha"] is not None

    @property
    def radii(self) -> list[float]:
        """The run's radii in ascending order, pixel units; 0 is always among them."""
        return sorted({0.0, *self.run["radii"]})

    def at(self, radius: float) -> Share:
        """Certified accuracy: right, and proved at this radius (pixel units); at 0, clean accuracy."""
        return Share(sum(outcome.proved >= radius for outcome in self.outcomes), len(self.outcomes))

    @property
    def average_radius(self) -> float:
        """Average certified radius (ACR), pixel units; wrong or abstained counts as 0."""
        return fmean([max(outcome.proved, 0.0) for outcome in self.outcomes] or [0.0])

    @property
    def abstentions(self) -> Share:
        """Images without a certified class."""
        return Share(sum(outcome.predicted is None for outcome in self.outcomes), len(self.outcomes))

    @property
    def classes(self) -> dict[int, "Report"]:
        """The same of each class that has outcomes; its name, or number where it has none, is the report's."""
        names = self.run.get("id2label") or {}
        labels = sorted({outcome.label for outcome in self.outcomes})
        of_class = {label: [outcome for outcome in self.outcomes if outcome.label == label] for label in labels}
        return {
            label: Report(names.get(str(label), str(label)), self.run, outcomes, {}, {})
            for label, outcomes in of_class.items()
        }

    @property
    def missing(self) -> int:
        """Images of the run that have no record here: it is not finished, or they lie on another machine."""
        there = len(self.outcomes) + len(self.failed) + len(self.rejected)
        return self.run.get("images", there) - there

    @property
    def meaning_of_alpha(self) -> str:
        """What `alpha` of a certified run says of all certificates; those that abstain were drawn too, and count."""
        alpha, m = self.run["alpha"], len(self.outcomes)
        return (
            f"alpha = {alpha:g} is the error probability of each certificate by itself, not of the whole set: of "
            f"these m = {m:,} certificates about alpha * m = {alpha * m:.3g} may be wrong (at most, in expectation)."
        )

    @property
    def cost(self) -> dict[str, tuple[float, float] | None]:
        """Mean and median of network evaluations and of seconds for each image, `None` where no record has them."""
        columns: dict[str, list[int | None] | list[float | None]] = {
            "network evaluations": [outcome.evaluations for outcome in self.outcomes],
            "seconds": [outcome.seconds for outcome in self.outcomes],
        }
        known = {name: [value for value in values if value is not None] for name, values in columns.items()}
        return {name: (fmean(values), median(values)) if values else None for name, values in known.items()}

    @property
    def shares(self) -> dict[str, Share]:
        """Shares of the images by what they are shares of."""
        if not self.certified:
            return {"right (clean accuracy)": self.at(0)}
        proved = {f"right, and certified at radius {radius:g}": self.at(radius) for radius in self.radii if radius}
        return {"right at radius 0 (clean accuracy)": self.at(0), **proved, "abstained": self.abstentions}

    def to_dict(self) -> dict:
        """All of it as plain values, for JSON."""
        values = {
            "name": self.name,
            "run": self.run,
            "certified": self.certified,
            **self._accuracy(),
            "missing": self.missing,
            "failed": self.failed,
            "rejected": self.rejected,
            "by_class": [
                {"label": label, "name": only.name, **only._accuracy()} for label, only in self.classes.items()
            ],
            "per_image": {name: both and {"mean": both[0], "median": both[1]} for name, both in self.cost.items()},
            "meaning_of_seconds": MEANING_OF_SECONDS,
        }
        if self.certified:
            values["certificates"] = len(self.outcomes)
            values["average_certified_radius"] = self.average_radius
            values["abstentions"] = self.abstentions.to_dict()
            values["meaning_of_alpha"] = self.meaning_of_alpha
        return values

    def _accuracy(self) -> dict:
        clean = {"clean_accuracy": self.at(0).to_dict()}
        at_radii = [{"radius": radius, **self.at(radius).to_dict()} for radius in self.radii]
        return {**clean, "certified_accuracy": at_radii} if self.certified else clean

    def to_markdown(self) -> str:
        """All of it for people."""
        shown = ("model", "dataset", "split", "method", "sigma", "n0", "n", "alpha", "seed")
        settings = ", ".join(f"{name} {self.run[name]}" for name in shown if self.run.get(name) is not None)
        images = "have a certificate" if self.certified else "were classified"
        lines = [f"## {self.name}", "", f"{settings}.", ""]
        if self.missing:
            lines += [f"**Not all of it: {self.missing:,} of {self.run['images']:,} images have no record here.**", ""]
        lines += [f"| of the images that {images} | share | | 95% interval |", "| --- | --- | --- | --- |"]
        lines += [f"| {what} | {share_cells(share)} |" for what, share in self.shares.items()]
        if self.certified:
            average = f"{self.average_radius:.3f}"
            lines += ["", f"Average certified radius, wrong or abstained counting as 0: {average}.", ""]
            lines += [self.meaning_of_alpha]
        lines += ["", "| for each image | mean | median |", "| --- | --- | --- |"]
        for name, both in self.cost.items():
            cells = [f"{value:,.2f}" for value in both] if both else ["-", "-"]
            lines.append(" | ".join([f"| {name}", *cells]) + " |")
        lines += ["", f"{MEANING_OF_SECONDS}.", ""]
        heads = [f"radius {radius:g}" for radius in self.radii] if self.certified else ["right"]
        lines += [" | ".join(["| class", "images", *heads]) + " |", "| --- " * (2 + len(heads)) + "|"]
        for only in self.classes.values():
            values = [f"{only.at(radius).value:.1%}" for radius in self.radii]
            lines.append(" | ".join([f"| {only.name}", f"{len(only.outcomes):,}", *values]) + " |")
        for title, reasons in (("Failed images", self.failed), ("Records that do not verify", self.rejected)):
            lines += ["", f"{title}, in none of these figures: {len(reasons)}"]
            lines += [f"- image {index}: {' '.join(reason.split())}" for index, reason in reasons.items()]
        return "\n".join(lines) + "\n"


def _outcome(record: dict, run: dict) -> Outcome:
    """The outcome of a record, or a `ValueError` with what is wrong with it."""
    if record.get("run") != run.get("id"):
        raise ValueError(f"it is of the run {record.get('run')}; this one is {run.get('id')}.")
    if type(record.get("label")) is not int:
        raise ValueError(f"the true label is {record.get('label')!r}; accepted is a class index.")
    seconds = record.get("seconds")
    if seconds is not None and not _is_number(seconds):
        raise ValueError(f"seconds is {seconds!r}; accepted is a number or null.")
    if run["alpha"] is None:
        found = {name: record.get(name) for name in ("predicted", "evaluations")}
        if any(type(value) is not int or not 0 <= value <= EXACT for value in found.values()):
            raise ValueError(f"{found}; accepted are a class index and a number of network evaluations.")
        return Outcome(record["label"], radius=0.0, seconds=seconds, **found)
    certificate = Certificate.from_dict(record.get("certificate", {}))
    if not certificate.verify():
        raise ValueError("label and radius do not follow from the votes.")
    if (certificate.sigma, certificate.alpha) != (run["sigma"], run["alpha"]):
        raise ValueError(
            f"sigma {certificate.sigma} and alpha {certificate.alpha}; those of the run are {run['sigma']} and "
            f"{run['alpha']}."
        )
    if record.get("image_hash") != certificate.image_hash:
        raise ValueError("the certificate is that of another image.")
    return Outcome(record["label"], certificate.label, certificate.radius, certificate.evaluations, seconds)


def share_cells(share: Share) -> str:
    """Share, counts and 95% interval as three cells of a Markdown table."""
    low, high = share.interval
    return f"{share.value:.1%} | {share.count:,} of {share.total:,} | {low:.1%} to {high:.1%}"


def plot(reports: Sequence[Report], path: str | Path) -> None:
    """Certified accuracy against radius with 95% bands, all runs in one picture.

    The curve of a run that stopped early shows what it set out to prove and no more. A run without certificates is a
    point with its 95% interval at radius 0. Runs on CIFAR-10 get the published figures as a reference.

    Args:
        reports: The runs.
        path: PNG file.
    """
    cifar10 = any(
        re.search(r"cifar[-_]?10(?!\d)", str(report.run.get("dataset")), re.IGNORECASE) for report in reports
    )
    proved = [outcome.proved for report in reports for outcome in report.outcomes]
    end = 1.05 * max([0.1, *proved, *(PUBLISHED if cifar10 else ())])
    figure = Figure(dpi=150, layout="constrained")
    axis = figure.add_subplot()
    handles: list = []  # lines, and a container for each bar
    for number, report in enumerate(reports):
        colour, (line, marker) = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        if report.certified:
            handles.append(_curve(axis, report, end, colour, line))
            continue
        share = report.at(0)
        low, high = share.interval
        name = f"{report.name}: clean images, nothing certified, {share.total:,} images"
        spread = [[share.value - low], [high - share.value]]
        handles.append(axis.errorbar(0, share.value, spread, fmt=marker, capsize=4, color=colour, label=name))
    if cifar10:
        handles += axis.plot(*zip(*PUBLISHED.items(), strict=True), "k*", markersize=10, label=PUBLISHED_NAME)
    axis.set(xlim=(-0.02 * end, end), ylim=(0, 1.02))
    axis.set_xlabel("l2 radius (pixel units, images in [0, 1])")
    axis.set_ylabel("certified accuracy (share of images)\nband or bar: 95% interval")
    axis.grid(alpha=0.3)
    labels = [textwrap.fill(handle.get_label(), 90) for handle in handles]
    figure.legend(handles, labels, loc="outside upper center", fontsize="small")
    rows = sum(label.count("\n") + 1 for label in labels)
    figure.set_size_inches(8, 4.7 + 0.18 * rows)  # the axes keep their height, however long the legend
    figure.savefig(path)


def _curve(axis: Axes, report: Report, end: float, colour: str, style: str) -> Line2D:
    radii = sorted(outcome.proved for outcome in report.outcomes)
    # the share at a radius holds back to the next smaller one; beyond the largest nothing is certified
    x = [*sorted({0.0, *(radius for radius in radii if radius > 0)}), end]
    shares = [Share(len(radii) - bisect_left(radii, radius), len(radii)) for radius in x]
    low, high = zip(*(share.interval for share in shares), strict=True)
    name = f"{report.name}: sigma = {report.run['sigma']:g}, n = {report.run['n']:,}, {len(radii):,} images"
    if report.run.get("stop_early"):
        name += f", no radius sought beyond {report.radii[-1]:g}"
    axis.fill_between(x, low, high, step="pre", color=colour, alpha=0.15, linewidth=0)
    return axis.step(x, [share.value for share in shares], style, where="pre", color=colour, label=name)[0]


def write_report(folders: Iterable[str | Path], output: str | Path) -> tuple[str, list[Report]]:
    """Write `report.json`, `report.md` and `certified_accuracy.png` of one or several runs.

    Args:
        folders: Folders of the runs.
        output: Folder to write to; it is made where it is missing.

    Returns:
        The text of `report.md`, and the reports.

    Raises:
        FileNotFoundError: A folder, or `run.json` in it, does not exist.
        ValueError: A `run.json` lacks a setting, or a folder holds no records.
    """
    paths = [Path(folder).resolve() for folder in folders]
    above = os.path.commonpath([path.parent for path in paths])
    reports = [Report.from_folder(path, path.relative_to(above).as_posix()) for path in paths]
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    text = "# Accuracy, clean and certified\n\n![Certified accuracy against l2 radius](certified_accuracy.png)\n\n"
    text += "Radii and sigma are in pixel units (images in [0, 1]); intervals are Clopper-Pearson's.\n\n"
    text += "\n".join(report.to_markdown() for report in reports)
    (output / "report.md").write_text(text, encoding="utf-8")
    runs = {"runs": [report.to_dict() for report in reports]}
    (output / "report.json").write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    plot(reports, output / "certified_accuracy.png")
    return text, reports


def main():
    parser = argparse.ArgumentParser(
        prog="python -m diffusers_ndc.evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run")
    parser.add_argument(
        "--output", type=Path, help="folder for the report (default: the run's; of several runs: the current folder)"
    )
    args = parser.parse_args()
    output = args.output or (args.folders[0] if len(args.folders) == 1 else Path())
    try:
        text, reports = write_report(args.folders, output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(text, end="")
    rejected = [f"{report.name}: {sorted(report.rejected)}" for report in reports if report.rejected]
    if rejected:
        sys.exit(f"error: records of these images do not verify: {'; '.join(rejected)}")


if __name__ == "__main__":
    main()
