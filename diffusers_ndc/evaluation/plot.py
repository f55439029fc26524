"""The pictures of one or several runs: certified accuracy against l2 radius, and the distribution of `p_lower`."""

import math
import re
import sys
import textwrap
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figures import Report
from .share import Share


PICTURE = "certified_accuracy.png"
"""Name of the file beside reports and cards."""

LOWER_BOUND_PICTURE = "lower_bound.png"
"""Name of the file beside reports."""

PUBLISHED = {0.25: 0.80, 0.5: 0.707}
"""Certified accuracy of APNDC on CIFAR-10 at l2 radii in pixel units (Chen et al., arXiv:2402.02316)."""

PUBLISHED_NAME = "published for CIFAR-10, APNDC (arXiv:2402.02316): over 80% at 0.25, 70.7% at 0.5"

# Okabe and Ito's colours, which colour-blind readers can distinguish; line and point styles for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"))

MAX_LEGEND_WIDTH = 90
"""Characters in a line of the legend."""


def plot(reports: Sequence[Report], path: str | Path) -> None:
    """Plot certified accuracy against radius with 95% bands, all runs in one picture.

    The curve of a run that stopped early shows what the run tried to prove and no more. A run without certificates is
    a point with its 95% interval at radius 0. Runs on CIFAR-10 get the published figures as a reference.

    Args:
        reports: The runs.
        path: PNG file to write.
    """
    on_cifar10 = any(_is_cifar10(report.run.get("dataset")) for report in reports)
    radii = [0.1, *(outcome.proved for report in reports for outcome in report.outcomes)]
    if on_cifar10:
        radii += PUBLISHED
    end = 1.05 * max(radii)
    figure = Figure(dpi=150, layout="constrained")
    axis = figure.add_subplot()
    handles: list = []  # lines, and a container for each bar
    for number, report in enumerate(reports):
        colour = COLOURS[number % len(COLOURS)]
        line, marker = STYLES[number % len(STYLES)]
        if report.certified:
            handles.append(_curve(axis, report, end, colour, line))
        else:
            handles.append(_point(axis, report, colour, marker))
    if on_cifar10:
        handles += axis.plot(list(PUBLISHED), list(PUBLISHED.values()), "k*", markersize=10, label=PUBLISHED_NAME)
    axis.set(xlim=(-0.02 * end, end), ylim=(0, 1.02))
    axis.set_xlabel("l2 radius (pixel units, images in [0, 1])")
    axis.set_ylabel("certified accuracy (share of images)\nband or bar: 95% interval")
    _save(figure, axis, handles, path)


def plot_lower_bound(reports: Sequence[Report], path: str | Path) -> None:
    """Plot the share of images that have at least a given `p_lower` with 95% bands, all runs in one picture.

    Incorrect and abstained images have none, so a curve starts at clean accuracy. The axis is logarithmic in
    `1 - p_lower`, since a radius depends on how close `p_lower` is to 1.

    Args:
        reports: The runs, with certificates.
        path: PNG file to write.
    """
    doubts = [_doubt(outcome.p_lower) for report in reports for outcome in report.outcomes if outcome.p_lower > 0]
    end = 0.5 * min([0.01, *doubts])
    figure = Figure(dpi=150, layout="constrained")
    axis = figure.add_subplot()
    handles: list = []
    for number, report in enumerate(reports):
        colour = COLOURS[number % len(COLOURS)]
        line, _ = STYLES[number % len(STYLES)]
        p_lower = sorted(outcome.p_lower for outcome in report.outcomes)
        levels = sorted({0.5, *(value for value in p_lower if value > 0)})
        shares = [Share(len(p_lower) - bisect_left(p_lower, level), len(p_lower)) for level in levels]
        x = [*(_doubt(level) for level in levels), end]
        handles.append(_steps(axis, x, [*shares, Share(0, len(p_lower))], _name(report), colour, line))
    decades = [10.0**-power for power in range(1, 1 - math.floor(math.log10(end))) if 10.0**-power >= end]
    axis.set_xscale("log")
    axis.set_xticks([0.5, *decades], ["0.5", *(f"0.{'9' * power}" for power in range(1, len(decades) + 1))])
    axis.xaxis.set_minor_formatter("")
    axis.set(xlim=(0.5, end), ylim=(0, 1.02))
    axis.set_xlabel("p_lower, which gives the radius: sigma * Phi^-1(p_lower)")
    axis.set_ylabel("share of images that are correct\nand have at least this p_lower, with 95% interval")
    _save(figure, axis, handles, path)


def _doubt(p_lower: float) -> float:
    """`1 - p_lower`, above 0 also if the bound was rounded up to 1."""
    return max(1 - p_lower, sys.float_info.epsilon / 2)


def _save(figure: Figure, axis: Axes, handles: list, path: str | Path) -> None:
    """Add grid and legend, and write the picture."""
    axis.grid(alpha=0.3)
    # a dollar in a name would begin a formula
    labels = [textwrap.fill(handle.get_label(), MAX_LEGEND_WIDTH).replace("$", r"\$") for handle in handles]
    figure.legend(handles, labels, loc="outside upper center", fontsize="small")
    rows = sum(label.count("\n") + 1 for label in labels)
    figure.set_size_inches(8, 4.7 + 0.18 * rows)  # the axes keep their height, however long the legend
    figure.savefig(path)


def _is_cifar10(dataset: object) -> bool:
    return re.search(r"cifar[-_]?10(?!\d)", str(dataset), re.IGNORECASE) is not None


def _curve(axis: Axes, report: Report, end: float, colour: str, style: str) -> Line2D:
    """Plot certified accuracy from radius 0 to `end`."""
    proved = sorted(outcome.proved for outcome in report.outcomes)
    # The share at a radius holds back to the next smaller one; beyond the largest nothing is certified.
    x = [*sorted({0.0, *(radius for radius in proved if radius > 0)}), end]
    shares = [Share(len(proved) - bisect_left(proved, radius), len(proved)) for radius in x]
    return _steps(axis, x, shares, _name(report), colour, style)


def _steps(axis: Axes, x: list[float], shares: list[Share], name: str, colour: str, style: str) -> Line2D:
    """Plot shares with their 95% bands. A share holds from the position before its own."""
    low = [share.interval[0] for share in shares]
    high = [share.interval[1] for share in shares]
    axis.fill_between(x, low, high, step="pre", color=colour, alpha=0.15, linewidth=0)
    return axis.step(x, [share.value for share in shares], style, where="pre", color=colour, label=name)[0]


def _name(report: Report) -> str:
    """The name of a run with certificates in the legend."""
    run = report.run
    name = f"{report.name}: sigma = {run['sigma']:g}, n = {run['n']:,}, {len(report.outcomes):,} images"
    if run.get("stop_early"):
        name += f", no radius sought beyond {report.radii[-1]:g}"
    return name


def _point(axis: Axes, report: Report, colour: str, marker: str) -> ErrorbarContainer:
    """Plot the clean accuracy of a run without certificates."""
    share = report.at(0)
    low, high = share.interval
    name = f"{report.name}: clean images, nothing certified, {share.total:,} images"
    spread = [[share.value - low], [high - share.value]]
    return axis.errorbar(0, share.value, spread, fmt=marker, capsize=4, color=colour, label=name)
