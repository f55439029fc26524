"""The table that compares the runs of a recipe with the published figures."""

from pathlib import Path

from recipe import Recipe

from diffusers_ndc.common.markdown import table
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.share import Share


NOTHING = "**Dry run with tiny stand-ins for networks and images: these figures mean nothing.**"


def compare(recipe: Recipe, folders: dict[float, Path], dry_run: bool) -> str:
    """Certified accuracy by radius and sigma, from the records, beside the published figures.

    Args:
        recipe: The recipe.
        folders: Folders of its finished runs, by sigma (pixel units).
        dry_run: Whether the networks were stand-ins.

    Returns:
        Markdown, with a newline at its end.
    """
    reports = {sigma: Report.from_folder(folder) for sigma, folder in folders.items()}
    radii = sorted({radius for report in reports.values() for radius in report.radii} | set(recipe.published))
    heads = ["l2 radius", *(f"sigma {sigma:g}" for sigma in reports), "best", "published"]
    rows: list[list[str]] = []
    for radius in radii:
        shares = [report.at(radius) for report in reports.values()]
        best = max(share.value for share in shares)
        rows.append([f"{radius:g}", *map(cell, shares), f"{best:.1%}", recipe.published.get(radius, "-")])
    images = [f"{len(report.outcomes):,}" for report in reports.values()]
    evaluations = [mean(report, "network evaluations") for report in reports.values()]
    rows += [["images", *images, "", ""], ["evaluations an image, mean", *evaluations, "", ""]]
    parts = [
        f"# {recipe.name}",
        NOTHING if dry_run else "",
        "Certified accuracy, with its 95% interval. Radius 0: clean accuracy of the smoothed classifier.",
        table(heads, rows),
        recipe.source,
        *map(what_was_run, reports.values()),
        "best: the sigma with the highest accuracy at this radius, chosen after the fact, which is optimistic by a "
        "little. A radius beyond what n noisy copies can prove counts as not certified.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def what_was_run(report: Report) -> str:
    run, left_out = report.run, len(report.failed) + len(report.rejected) + report.missing
    dataset = run["dataset"] if not run["dataset"].startswith((".", "/")) else f"a copy in {Path(run['dataset']).name}"
    classifier = f", classifier {run['classifier']}" if run["classifier"] else ""
    return (
        f"Sigma {run['sigma']:g}: {len(report.outcomes):,} images of {dataset}, {run['split']} ({left_out:,} "
        f"more failed, do not verify or are missing){classifier}, n0 {run['n0']:,}, n {run['n']:,}, alpha "
        f"{run['alpha']:g}."
    )


def cell(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.1%} ({low:.1%} to {high:.1%})"


def mean(report: Report, quantity: str) -> str:
    both = report.cost[quantity]
    return "-" if both is None else f"{both[0]:,.0f}"
