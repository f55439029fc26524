"""Write the report of one or several runs, from their records alone: Markdown, JSON, pictures, and a page.

    python -m diffusers_ndc.evaluation.report runs/sigma-0.25 runs/sigma-0.5 --output compared
    python -m diffusers_ndc.evaluation.report runs/sigma-0.25 --board

Every certificate is recomputed from its votes. One that does not follow from them is listed, and counts nowhere. Runs
of one evaluation task share a table, across models and methods. Several runs stand side by side in one table, and runs
with one sigma are compared in pairs, on the images that both have. `report.html` is a page for the browser, with
curves, a table of the images, and two runs side by side; with --images it shows the images, from the data sets of the
runs.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.markdown import fill, table
from . import comparison
from .board import print_board
from .decision import what_decides
from .figures import MEANING_OF_SECONDS, SETTINGS_SHOWN, Report
from .page import PAGE, write_page
from .plot import LOWER_BOUND_PICTURE, PICTURE, plot, plot_lower_bound
from .share import Share
from .side_by_side import SideBySide


def write_report(folders: Iterable[str | Path], output: str | Path, images: bool = False) -> tuple[str, list[Report]]:
    """Write `report.json`, `report.md`, `report.html` and the pictures of one or several runs.

    The pictures are `certified_accuracy.png` and, unless no run has certificates, `lower_bound.png`.

    Args:
        folders: Folders of the runs.
        output: Folder to write to; it is created if necessary.
        images: Whether to load the data sets of the runs, and to show small images in `report.html`.

    Returns:
        The text of `report.md`, and the reports.

    Raises:
        FileNotFoundError: A folder, or `run.json` in it, does not exist; nothing is written.
        ValueError: A folder holds no records, its `run.json` has no valid settings, or with `images` its data set
            cannot be loaded or is not the one of the run; likewise.
        OSError: The output cannot be written.
    """
    paths = [Path(folder).resolve() for folder in folders]
    # Folders of one name are told apart by those above them.
    above = os.path.commonpath([path.parent for path in paths])
    reports = [Report.from_folder(path, path.relative_to(above).as_posix()) for path in paths]
    thumbnails = []
    if images:
        from .thumbnails import load_thumbnails  # slow: it brings datasets and transformers

        thumbnails = [load_thumbnails(report) for report in reports]
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    runs = "\n\n".join(to_markdown(report) for report in reports)
    certified = [report for report in reports if report.certified]
    lower_bound = ""
    if certified:
        plot_lower_bound(certified, output / LOWER_BOUND_PICTURE)
        lower_bound = f"![Share of images with at least this p_lower]({LOWER_BOUND_PICTURE})"
    comparisons = comparison.compare(reports) if len(reports) > 1 else []
    tasks = comparison.to_markdown(comparisons)
    side_by_side = SideBySide(reports)
    beside = side_by_side.to_markdown() if len(reports) > 1 else ""
    values = {"picture": PICTURE, "lower_bound": lower_bound, "side_by_side": beside, "tasks": tasks, "runs": runs}
    text = fill(__package__, "report", **values) + "\n"
    # a model or data set may have a name that is not valid Unicode
    (output / "report.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    plain: dict[str, Any] = {"runs": [report.to_dict() for report in reports]}
    if len(reports) > 1:
        plain["side_by_side"] = side_by_side.to_dict()
    if comparisons:
        plain["tasks"] = [one.to_dict() for one in comparisons]
    (output / "report.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    plot(reports, output / PICTURE)
    write_page(reports, output / PAGE, thumbnails)
    return text, reports


def to_markdown(report: Report) -> str:
    """The figures of one run as a section of Markdown, without a newline at its end."""
    run = report.run
    settings = [f"{name} {run[name]}" for name in SETTINGS_SHOWN if run.get(name) is not None]
    if report.task is not None:
        settings.insert(0, f"task {report.task.title}")
    unfinished = average_radius = half = lower_bound = quantiles = meaning_of_p_lower = meaning_of_alpha = ""
    if report.missing:
        unfinished = f"**Not finished: {report.missing:,} of {run['images']:,} images have no record here.**"
    if report.certified:
        average_radius = (
            f"Average certified radius, with 0 for incorrect labels and abstentions: {report.average_radius:.3f}."
        )
        half = _half(report)
        lower_bound = _lower_bound(report)
        quantiles = _quantiles(report)
        meaning_of_p_lower = report.meaning_of_p_lower
        meaning_of_alpha = report.meaning_of_alpha
    return fill(
        __package__,
        "run",
        name=report.name,
        settings=", ".join(settings),
        decides=what_decides(run) or "",
        unfinished=unfinished,
        shares=_shares(report),
        average_radius=average_radius,
        half=half,
        lower_bound=lower_bound,
        quantiles=quantiles,
        meaning_of_p_lower=meaning_of_p_lower,
        meaning_of_alpha=meaning_of_alpha,
        cost=_cost(report),
        meaning_of_seconds=MEANING_OF_SECONDS,
        classes=_classes(report),
        failed=_listed(report.failed),
        rejected=_listed(report.rejected),
    )


def share_cells(share: Share) -> list[str]:
    """Share, counts and 95% interval as three cells of a table."""
    low, high = share.interval
    return [f"{share.value:.1%}", f"{share.count:,} of {share.total:,}", f"{low:.1%} to {high:.1%}"]


def _shares(report: Report) -> str:
    if report.certified:
        images = "have a certificate"
        rows = [["correct at radius 0 (clean accuracy)", *share_cells(report.at(0))]]
        for radius in report.radii:
            if radius > 0:
                rows.append([f"correct, and certified at radius {radius:g}", *share_cells(report.at(radius))])
        rows.append(["abstained", *share_cells(report.abstentions)])
    else:
        images = "were classified"
        rows = [["correct (clean accuracy)", *share_cells(report.at(0))]]
    return table([f"of the images that {images}", "share", "", "95% interval"], rows)


def _half(report: Report) -> str:
    """How few images the average radius rests on, empty if no radius is above 0."""
    half = report.images_for_half
    if half is None:
        return ""
    return (
        f"Half of the total radius comes from {half.value:.1%} of the images ({half.count:,} of {half.total:,}). "
        "It would be half of the images if all had the same radius."
    )


def _lower_bound(report: Report) -> str:
    rows = []
    for low, high, share in report.p_lower_bins:
        if low == 0:
            interval = f"below {high:g} (incorrect, or not certified)"
        elif high == 1:
            interval = f"{low:g} to 1"
        else:
            interval = f"{low:g} to below {high:g}"
        rows.append([interval, *share_cells(share)])
    return table(["p_lower", "share of the images", "", "95% interval"], rows)


def _quantiles(report: Report) -> str:
    """Quantiles of `p_lower`, rounded down: a lower bound stays one."""
    quantiles = report.p_lower_quantiles
    if not quantiles:
        return ""
    cells = [f"{math.floor(value * 1e5) / 1e5:.5f}" for value in quantiles.values()]
    heads = [f"{percent}%" for percent in quantiles]
    return table(["of the images", *heads], [["have at most this p_lower", *cells]])


def _cost(report: Report) -> str:
    rows = []
    for quantity, both in report.cost.items():
        cells = ["-", "-"] if both is None else [f"{value:,.2f}" for value in both]
        rows.append([quantity, *cells])
    cost = table(["per image", "mean", "median"], rows)
    share = report.at_budget
    if share is None:
        return cost
    budget = report.run["max_evaluations"]
    return f"{cost}\n\n{share.count:,} of {share.total:,} images spent their budget of {budget:,} network evaluations."


def _classes(report: Report) -> str:
    heads = [f"radius {radius:g}" for radius in report.radii] if report.certified else ["correct"]
    rows = []
    for only in report.classes.values():
        values = [f"{only.at(radius).value:.1%}" for radius in report.radii]
        rows.append([only.name, f"{len(only.outcomes):,}", *values])
    return table(["class", "images", *heads], rows)


def _listed(reasons: dict[int, str]) -> str:
    """The number of reasons, and a list of them."""
    lines = [f"- image {index}: {' '.join(reason.split())}" for index, reason in reasons.items()]
    return "\n".join([str(len(reasons)), *lines])


def main(argv: list[str] | None = None, prog: str = "python -m diffusers_ndc.evaluation.report") -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the report (default: the folder of the run; for several runs: the current folder)",
    )
    parser.add_argument(
        "--images", action="store_true", help="show small images in report.html, from the data sets of the runs"
    )
    parser.add_argument("--board", action="store_true", help="print entries for the board of certified robustness")
    args = parser.parse_args(argv)
    if args.board:
        sys.exit(print_board(args.folders))
    if args.output is not None:
        output = args.output
    elif len(args.folders) == 1:
        output = args.folders[0]
    else:
        output = Path()
    try:
        text, reports = write_report(args.folders, output, args.images)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(text, end="")
    rejected = [f"{report.name}: {sorted(report.rejected)}" for report in reports if report.rejected]
    if rejected:
        sys.exit(f"error: records of these images do not verify: {'; '.join(rejected)}")


if __name__ == "__main__":
    main()
