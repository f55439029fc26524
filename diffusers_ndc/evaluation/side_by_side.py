"""Runs side by side, across methods and sigmas: their figures in one table, and pairs of runs on the same images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Any

from ..certification.bound_names import default_bound
from ..certification.stopping import largest_provable
from ..common.markdown import fill, table
from .decision import what_decides_briefly
from .figures import Report
from .outcomes import Outcome
from .paired import Paired
from .share import Share


QUARTILES = (25, 50, 75)

LISTED = 5
"""Largest number of pairs without images in common that are named."""

EVIDENCE = ("n0", "n", "alpha", "stop_early", "max_copies_per_radius", "max_evaluations", "grid", "seed")
"""Settings of a run that say how strong its evidence may be, and what it may cost."""


@dataclass(frozen=True)
class SideBySide:
    """Two runs or more, of any models and methods.

    Runs with the same sigma are compared in pairs over the images that both have, by hashes and true classes, so a run
    over fewer images is compared fairly with one over more.

    Args:
        reports: The runs.
    """

    reports: Sequence[Report]

    @property
    def radii(self) -> list[float]:
        """The radii of all runs with certificates in ascending order, pixel units; 0 is always among them."""
        return sorted({0.0, *(radius for report in self.reports if report.certified for radius in report.radii)})

    @property
    def rows(self) -> list[Report]:
        """The runs by sigma, those without certificates first."""
        return sorted(self.reports, key=lambda report: report.run["sigma"] if report.certified else -1)

    @property
    def pairs(self) -> list[Paired]:
        """Pairs of runs with certificates of one sigma that have images in common."""
        found = []
        for paired in self._combinations:
            first, second = paired.first, paired.second
            both_certify = first.certified and second.certified
            if both_certify and first.run["sigma"] == second.run["sigma"] and paired.shared:
                found.append(paired)
        return found

    @cached_property
    def _combinations(self) -> list[Paired]:
        """Each two runs."""
        return [Paired(first, second) for first, second in combinations(self.rows, 2)]

    def to_markdown(self) -> str:
        """The tables as a section of Markdown, with what must be known about them."""
        accuracies = ["run", "method", "sigma", "n", "images", *map(_at_radius, self.radii), "average radius"]
        costs = ["run", "method", "sigma", *(f"p_lower, {percent}%" for percent in QUARTILES)]
        costs += ["evaluations, mean", "evaluations, median", "seconds, mean", "seconds, median"]
        pairs = self.pairs
        return fill(
            __package__,
            "side_by_side",
            accuracies=table(accuracies, [self._accuracies(report) for report in self.rows]),
            costs=table(costs, [_subject(report) + _costs(report) for report in self.rows]),
            out_of_reach=self._out_of_reach(),
            evidence=self._evidence(),
            other_images=self._other_images(),
            unfinished=self._unfinished(),
            pairs=self._pairs(pairs) if pairs else "",
            meaning_of_pairs=_MEANING_OF_PAIRS if pairs else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON. The figures of each run are in its own report."""
        return {"pairs": [self._pair_values(paired) for paired in self.pairs]}

    def _accuracies(self, report: Report) -> list[str]:
        run = report.run
        n = f"{run['n']:,}" if report.certified else "-"
        shares = [_share(report.at(radius)) if report.answers(radius) else "-" for radius in self.radii]
        average = f"{report.average_radius:.3f}" if report.certified else "-"
        return [*_subject(report), n, f"{len(report.outcomes):,}", *shares, average]

    def _out_of_reach(self) -> str:
        """A sentence on runs that have not enough copies for some radius, empty if there are none."""
        short = []
        for report in self.rows:
            if not report.certified:
                continue
            run = report.run
            bound = default_bound(bool(run.get("stop_early")))
            largest = max(largest_provable(run["sigma"], run["alpha"], bound, run["n"]), 0.0)
            if any(radius > largest and report.answers(radius) for radius in self.radii):
                short.append(f"{report.name} ({largest:.3f})")
        if not short:
            return ""
        return (
            "With its n copies a run can prove no radius beyond the one in brackets, whatever the classifier: "
            f"{', '.join(short)}."
        )

    def _evidence(self) -> str:
        """A sentence on settings in which the certificates of the runs differ, empty if there are none."""
        runs = [report.run for report in self.reports if report.certified]
        differing = []
        for name in EVIDENCE:
            values = sorted({str(run.get(name)) for run in runs})
            if len(values) > 1:
                differing.append(f"{name} ({', '.join(values)})")
        if not differing:
            return ""
        return f"The certificates of these runs do not rest on the same settings: {'; '.join(differing)}."

    def _other_images(self) -> str:
        """A paragraph on runs that have no image in common, empty if there are none."""
        apart = []
        for paired in self._combinations:
            if paired.first.outcomes and paired.second.outcomes and not paired.shared:
                apart.append(f"{paired.first.name} and {paired.second.name}")
        if not apart:
            return ""
        names = ", ".join(apart[:LISTED])
        if len(apart) > LISTED:
            names += f", and {len(apart) - LISTED:,} pairs more"
        return (
            f"**Not on the same images: {names}.** No image of the one is known to be one of the other, with the same "
            "pixels, size and true class: shares, radii and costs of such runs are not comparable."
        )

    def _unfinished(self) -> str:
        """A paragraph on runs that lack images, empty if there are none."""
        lacking = []
        for report in self.reports:
            lost = len(report.failed) + len(report.rejected) + report.missing
            if lost:
                lacking.append(f"{report.name} ({lost:,})")
        if not lacking:
            return ""
        return (
            f"**Without some of their images: {', '.join(lacking)}.** Easy images finish first, so figures of a run "
            "that is not finished may be too high."
        )

    def _pairs(self, pairs: Sequence[Paired]) -> str:
        heads = ["first", "second", "sigma", "images of both", *map(_at_radius, self.radii), "average radius"]
        heads += ["evaluations, mean", "seconds, mean"]
        rows = []
        for paired in pairs:
            values = self._pair_values(paired)
            images = f"{values['images']:,}"
            if values["differing"]:
                images += f" (**{values['differing']:,} more differ**)"
            cells = {radius: "-" for radius in self.radii}
            for at in values["radii"]:
                cells[at["radius"]] = (
                    f"{100 * at['difference']:+.1f} ({at['only_first']:,} : {at['only_second']:,}; p = "
                    f"{at['p_value']:.2g})"
                )
            means = [_two(values[name], digits) for name, digits in (("evaluations", 0), ("seconds", 2))]
            radii = values["average_radius"]
            average = "-" if radii is None else f"{radii[0] - radii[1]:+.3f}"
            names = [_cell(values["first"]), _cell(values["second"]), f"{values['sigma']:g}"]
            rows.append([*names, images, *cells.values(), average, *means])
        return table(heads, rows)

    def _pair_values(self, paired: Paired) -> dict[str, Any]:
        """The comparison of two runs over the images that both have."""
        runs = (paired.first, paired.second)
        shared = set(paired.shared)
        outcomes = [[one for one in report.outcomes if one.image_index in shared] for report in runs]
        average = [_mean(some, lambda one: max(one.proved, 0.0)) for some in outcomes]
        radii = []
        for radius in self.radii:
            if not all(report.answers(radius) for report in runs):
                continue
            counts = paired.at(radius)
            radii.append(
                {
                    "radius": radius,
                    "both": counts.both,
                    "only_first": counts.only_first,
                    "only_second": counts.only_second,
                    "neither": counts.neither,
                    "difference": (counts.only_first - counts.only_second) / len(shared),
                    "p_value": counts.p_value,
                }
            )
        return {
            "first": runs[0].name,
            "second": runs[1].name,
            "sigma": runs[0].run["sigma"],
            "images": len(shared),
            "differing": paired.differing,
            "radii": radii,
            "average_radius": average if _reach_as_far(*runs) else None,
            "evaluations": [_mean(some, lambda one: one.evaluations) for some in outcomes],
            "seconds": [_mean(some, lambda one: one.seconds) for some in outcomes],
        }


_MEANING_OF_PAIRS = (
    "The differences are first minus second, in percentage points of the images that both runs have, with the numbers "
    "of images that only one of them certifies (first : second). p is the two-sided p-value of McNemar's exact test "
    "for one comparison; with many comparisons some are small by chance."
)


def _reach_as_far(first: Report, second: Report) -> bool:
    """Whether neither run stopped an image at a radius beyond which the other one goes on."""
    if first.run.get("stop_early") and second.run.get("stop_early"):
        return first.radii == second.radii
    return not first.run.get("stop_early") and not second.run.get("stop_early")


def _subject(report: Report) -> list[str]:
    """What a run is, as cells."""
    sigma = f"{report.run['sigma']:g}" if report.certified else "-"
    return [_cell(report.name), _cell(what_decides_briefly(report.run)), sigma]


def _costs(report: Report) -> list[str]:
    """Quartiles of `p_lower`, rounded down, and what an image cost, as cells."""
    quantiles = report.p_lower_quantiles if report.certified else {}
    cells = [f"{math.floor(quantiles[percent] * 1e4) / 1e4:.4f}" if quantiles else "-" for percent in QUARTILES]
    for both, digits in zip(report.cost.values(), (0, 2), strict=True):
        cells += ["-", "-"] if both is None else [f"{value:,.{digits}f}" for value in both]
    return cells


def _mean(outcomes: Sequence[Outcome], of: Callable[[Outcome], float | None]) -> float | None:
    """The mean of what is known, `None` if nothing is."""
    values = [value for value in map(of, outcomes) if value is not None]
    return fmean(values) if values else None


def _two(values: Sequence[float | None], digits: int) -> str:
    return " : ".join("-" if value is None else f"{value:,.{digits}f}" for value in values)


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _at_radius(radius: float) -> str:
    return "correct" if radius == 0 else f"at {radius:g}"


def _cell(text: str) -> str:
    """A name for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
