"""Tables of the runs of one evaluation task, across models and methods, which claim no more than was checked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..common.markdown import fill, table
from .decision import what_decides_briefly, what_was_run
from .figures import Report
from .task import Task


class _Image(NamedTuple):
    """An image of a run: its hash, its true class, and the name of that class, if classes have names."""

    image_hash: str
    label: int
    name: object

    def differs(self, other: "_Image") -> bool:
        """Whether the images or their true classes differ. Models may number the classes differently."""
        if self.image_hash != other.image_hash:
            return True
        if (self.name is None) != (other.name is None):  # cannot be told
            return False
        return self.label != other.label and (self.name is None or self.name != other.name)


@dataclass(frozen=True)
class Comparison:
    """Runs of the same task, of the same version and with the same definition.

    Args:
        task: The task.
        reports: The runs.
    """

    task: Task
    reports: list[Report]

    @property
    def other_images(self) -> list[tuple[int, list[int]]]:
        """Whether the runs took the same images, by the hashes and true classes in their records.

        Returns:
            For each run, how many of its images a run before it has too, and the indices of those with another hash
            or another true class.
        """
        known: dict[int, _Image] = {}
        found = []
        for report in self.reports:
            images = images_of(report)
            shared = [index for index in images if index in known]
            found.append((len(shared), [index for index in shared if images[index].differs(known[index])]))
            known = {**images, **known}
        return found

    def to_markdown(self) -> str:
        """The table as a section of Markdown, with what must be known about it."""
        task = self.task
        heads = [
            "run",
            "model",
            "data set",
            "method",
            "sigma",
            "correct",
            *(f"certified at {radius:g}" for radius in self._radii),
        ]
        heads += ["average radius", "abstained", "evaluations an image", "images", "same images"]
        rows = [
            [*self._subject(report), *self._figures(report), same]
            for report, same in zip(self.reports, self._same_images(), strict=True)
        ]
        certificates = f"n0 {task.n0:,}, n {task.n:,}, alpha {task.alpha:g}"
        return fill(
            __package__,
            "comparison",
            title=task.title,
            images=f"{task.images:,} images of {task.dataset}, {task.split}, or of a copy of it",
            certificates=certificates + (", stopping early" if task.stop_early else ""),
            other_images=self._warning(),
            table=table(heads, rows),
            unfinished=self._unfinished(),
        )

    def to_dict(self) -> dict:
        """Convert to plain values, for JSON. The figures of each run are in its own report."""
        rows = []
        for report, (shared, differing) in zip(self.reports, self.other_images, strict=True):
            rows.append(
                {
                    "run": report.name,
                    "method": what_decides_briefly(report.run),
                    "done": len(report.outcomes),
                    "images_shared_with_runs_before": shared,
                    "other_images": differing,
                }
            )
        return {"name": self.task.name, "version": self.task.version, "images": self.task.images, "runs": rows}

    @property
    def _radii(self) -> list[float]:
        return [radius for radius in self.task.radii if radius > 0]

    def _subject(self, report: Report) -> list[str]:
        """What was evaluated in a run, as cells."""
        sigma = f"{report.run['sigma']:g}" if report.certified else "-"
        data = f"{report.run['dataset']}, {report.run['split']}"
        cells = [report.name, what_was_run(report.run), data, what_decides_briefly(report.run), sigma]
        return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]

    def _figures(self, report: Report) -> list[str]:
        """The figures of a run, as cells."""
        cells = [f"{report.at(0).value:.1%}"]
        if report.certified:
            cells += [f"{report.at(radius).value:.1%}" for radius in self._radii]
            cells += [f"{report.average_radius:.3f}", f"{report.abstentions.value:.1%}"]
        else:
            cells += ["-"] * (len(self._radii) + 2)
        evaluations = report.cost["network evaluations"]
        cells.append("-" if evaluations is None else f"{evaluations[0]:,.0f}")
        cells.append(f"{len(report.outcomes):,} of {self.task.images:,}")
        return cells

    def _same_images(self) -> list[str]:
        cells = []
        for shared, differing in self.other_images:
            if differing:
                cells.append(f"**no: {len(differing):,} of {shared:,} differ**")
            else:
                cells.append(f"yes, {shared:,} compared" if shared else "nothing to compare")
        if cells:
            cells[0] = "first"
        return cells

    def _warning(self) -> str:
        """A paragraph on runs that took other images, empty if there are none."""
        sentences = []
        for report, (shared, differing) in zip(self.reports, self.other_images, strict=True):
            if differing:
                some = ", ".join(str(index) for index in differing[:5])
                sentences.append(
                    f"{report.name} has other image hashes or true classes than the runs above it for "
                    f"{len(differing):,} of {shared:,} images ({some}{', ...' if len(differing) > 5 else ''})."
                )
        if not sentences:
            return ""
        return (
            "**Not the same images: these results cannot be compared.** " + " ".join(sentences) + " The copies of the "
            "data set differ or are in another order, or the networks take images of another size."
        )

    def _unfinished(self) -> str:
        """A paragraph on runs that lack images, empty if there are none."""
        names = [report.name for report in self.reports if len(report.outcomes) < self.task.images]
        if not names:
            return ""
        return (
            f"Without some of the images: {', '.join(names)}. Their figures are those of the images that are done. "
            "Easy images finish first, so figures of a run that is not finished may be too high."
        )


def images_of(report: Report) -> dict[int, _Image]:
    """The images of a run by index, as far as their hashes are known."""
    names = report.run.get("id2label") or {}
    images = {}
    for outcome in report.outcomes:
        if outcome.image_index is not None and outcome.image_hash is not None:
            images[outcome.image_index] = _Image(outcome.image_hash, outcome.label, names.get(str(outcome.label)))
    return images


def compare(reports: Sequence[Report]) -> list[Comparison]:
    """Sort runs by their tasks. Runs without a task are left out.

    Args:
        reports: The runs.

    Returns:
        A comparison for each task, in the order of the runs. Tasks with one name are apart if their versions or
        anything else in their definitions differ.
    """
    tasks: dict[Task, list[Report]] = {}
    for report in reports:
        if report.task is not None:
            tasks.setdefault(report.task, []).append(report)
    return [Comparison(task, of_task) for task, of_task in tasks.items()]


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """The tables of all tasks as Markdown, empty without tasks."""
    parts = [comparison.to_markdown() for comparison in comparisons]
    for title, count in Counter(comparison.task.title for comparison in comparisons).items():
        if count > 1:
            parts.append(
                f"**{count} tasks above are called {title}, but their definitions differ: their results cannot be "
                "compared.**"
            )
    return "\n\n".join(parts)
