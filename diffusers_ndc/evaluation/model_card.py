"""A model card that says what runs have certified, and the push of card and records to a Hub repository.

    python -m diffusers_ndc.evaluation.model_card runs/sigma-0.25 runs/sigma-0.5 --card MODEL/README.md
    python -m diffusers_ndc.evaluation.model_card runs/sigma-0.25 --push-to-hub NAMESPACE/NAME

A card that exists is filled, not overwritten: its own metadata and text stay, and what stands between two comments is
made anew. The push uploads the records too, under `evaluation/`; the card there tells of all runs in the repository.
"""

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HTTPError  # the HTTP library's own, whichever that is: a lost connection is one too

from ..diffusion.noise_levels import NoiseLevels
from ..pipelines.model_card import (
    GUARANTEE,
    LIBRARY,
    add_metadata,
    certifying,
    markers,
    model_section,
    read_card,
    table,
    with_section,
    write_card,
)
from .records import RUN_FILE
from .report import Report, plot, share_cells, write_report


PICTURE = "certified_accuracy.png"


def fill_card(reports: Sequence[Report], path: str | Path, model: str | None = None) -> None:
    """Make a model card from runs, or fill one that exists; filling it twice changes nothing.

    Of an existing card, metadata and text stay as they are, but for what an earlier call wrote: the section of the
    results, and the results in `model-index`. How to use the model is told where the card does not do so yet. Beside
    the card the picture of the certified runs, `certified_accuracy.png`, is written.

    Args:
        reports: The runs, of different names, all of one model.
        path: The card, a Markdown file.
        model: Folder or Hub id for the usage lines. Default: the model as the first run has it.

    Raises:
        ValueError: A run has no result or lacks a setting, two have one name, or the card is damaged.
    """
    _check(reports)
    path = Path(path)
    model = model or str(reports[0].run["model"])
    title = Path(model).resolve().name
    certified = [report for report in reports if report.certified]
    # dds of an outside classifier has no noise levels: that classifier is not part of this model
    of_model = [(report, levels) for report in reports if (levels := _levels(report.run))]
    metadata, text = read_card(path, title)
    if markers("model")[0] not in text and (usable := [report for report, _ in of_model if report.certified]):
        run = usable[0].run
        # a radius that takes seconds, and that any sigma can prove
        radius = min((radius for radius in run["radii"] if 0 < radius <= run["sigma"]), default=run["sigma"])
        rows = [(report.run["sigma"], report.run["method"], levels) for report, levels in of_model]
        call = certifying(run["sigma"], radius, run["method"])
        text = with_section(text, "model", model_section(model, call, rows, run["method"] == "dds"))
    _add_results(metadata, reports, title)
    section = _section(reports)
    if certified and markers("model")[0] not in text:
        section += GUARANTEE
    write_card(path, metadata, with_section(text, "results", section))
    if certified:
        plot(certified, path.parent / PICTURE)


def _levels(run: dict) -> NoiseLevels | None:
    """The noise levels of a run's diffusion classifier, which may stand behind a denoiser; `None` for another one."""
    base = run["base_classifier"]
    if isinstance(base.get("classifier"), dict):
        base = base["classifier"]
    return NoiseLevels.from_dict(base["levels"]) if "levels" in base else None


def _check(reports: Sequence[Report]) -> None:
    names = [report.name for report in reports]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The runs have the names {names}; accepted are one or more, all different.")
    for report in reports:
        if lacking := {"model", "dataset", "method", "n0", "base_classifier"} - set(report.run):
            raise ValueError(f"The run {report.name} lacks the settings {sorted(lacking)}.")
        if not report.outcomes:
            raise ValueError(f"The run {report.name} has no result; accepted are runs with images that count.")


def _add_results(metadata: dict, reports: Sequence[Report], title: str) -> None:
    """Put a result for each radius and average of each run into a card's metadata, in place of earlier ones of ours.

    Those of others stay; this is done on plain values since `ModelCardData` keeps only one model and one source.
    """
    results = []
    for report in reports:
        settings = {name: report.run.get(name) for name in ("method", "sigma", "n0", "n", "alpha", "seed")}
        told = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
        metrics: list[tuple[str, str, float, dict]] = []
        if report.certified:
            metrics = [("average_certified_radius", "average certified l2 radius", report.average_radius, {})]
        for radius in report.radii:
            kind, name = "certified_accuracy", f"certified accuracy at l2 radius {radius:g}"
            if not report.certified:
                kind, name = "accuracy", "accuracy, no certificate"
            share = report.at(radius)
            args = {"radius": radius, "count": share.count, "total": share.total}
            metrics.append((kind, name, share.value, args))
        for kind, name, value, args in metrics:
            results.append(
                EvalResult(
                    task_type="image-classification",
                    dataset_type=_dataset(report.run),
                    dataset_name=_dataset(report.run),
                    dataset_split=report.run.get("split"),
                    metric_type=kind,
                    metric_value=value,
                    metric_name=f"{name} ({report.name}: {told})",
                    metric_args={"library": LIBRARY, "run": report.name, **settings, **args},
                )
            )
    ours = ModelCardData(model_name=title, eval_results=results).to_dict()["model-index"]
    index = metadata.pop("model-index", None) or [{"name": title, "results": []}]
    for entry in index:
        for result in entry["results"]:
            result["metrics"] = [m for m in result["metrics"] if (m.get("args") or {}).get("library") != LIBRARY]
        entry["results"] = [result for result in entry["results"] if result["metrics"]]
    index[0]["results"] += ours[0]["results"]
    datasets = sorted({_dataset(report.run) for report in reports if "/" in _dataset(report.run)})
    add_metadata(metadata, **({"datasets": datasets} if datasets else {}), **{"model-index": index})


def _dataset(run: dict) -> str:
    """The data set's Hub id, which has a slash; of a folder, or a name that could be one, the last part."""
    dataset = str(run["dataset"])
    on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", dataset) and not Path(dataset).exists()
    return dataset if on_hub else Path(dataset).name


def _section(reports: Sequence[Report]) -> str:
    lines = ["## Results", ""]
    if any(report.certified for report in reports):
        lines += [f"![Certified accuracy against l2 radius]({PICTURE})", ""]
        lines += ["Of certified images one counts only where the label is right; an abstention counts as wrong. The"]
        lines += [
            "average certified radius is one of proved radii, wrong or abstained counting as 0: more copies, or a"
        ]
        lines += ["run without early stopping, may prove more.", ""]
    return "\n".join([*lines, *_results(reports), ""])


def _results(reports: Sequence[Report]) -> list[str]:
    heads = ["run", "data set", "method", "sigma", "n0", "n", "alpha", "average certified radius", "weights"]
    rows, shares = [], []
    for report in reports:
        run, drawn = report.run, ["-"] * 5
        if report.certified:
            drawn = [f"{run['sigma']:g}", f"{run['n0']:,}", f"{run['n']:,}", f"{run['alpha']:g}"]
            drawn += [f"{report.average_radius:.3f}"]
        dataset = ", ".join(filter(None, [_dataset(run), run.get("split")]))
        rows.append([report.name, dataset, run["method"], *drawn, str(run.get("weight_hash") or "-")[:12]])
        for radius in report.radii:
            what = f"right, and certified at l2 radius {radius:g}" if report.certified else "right, no certificate"
            shares.append([report.name, what, share_cells(report.at(radius))])
    lines = ["Sigma and radii are in pixel units (images in [0, 1]).", "", *table(heads, rows), ""]
    lines += table(["run", "of its images", "share", "", "95% interval"], shares)
    for report in reports:
        if report.failed or report.rejected:
            lines += ["", f"In no figure of {report.name}: {len(report.failed)} images that failed, and"]
            lines += [f"{len(report.rejected)} records that do not verify."]
        if report.missing:
            lines += ["", f"{report.name} is not finished: {report.missing:,} of its images have no record yet."]
            lines += ["Easy images are done first: its figures may be too high."]
    return [*lines, "", "Intervals are Clopper-Pearson's, for the share among all images that could have been drawn."]


def push_to_hub(folders: Iterable[str | Path], repo_id: str, card: str | Path | None = None) -> str:
    """Upload runs with their reports to a model repository, and fill its card with all the runs that it then holds.

    A run goes to `evaluation/<name of its folder>/` and replaces one of that name. The repository is made where it is
    missing; its other files stay. All is one commit. The local folders are read only.

    Args:
        folders: Folders of the runs.
        repo_id: The repository, `namespace/name`.
        card: Card that a repository without one starts from. Default: an empty one.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: A folder, or `run.json` in it, does not exist.
        ValueError: A run has no result or lacks a setting, or two have one name.
        OSError: The push failed; nothing was changed but perhaps an empty repository made.
    """
    paths = [Path(folder) for folder in folders]
    _check([Report.from_folder(path) for path in paths])
    api = HfApi()
    with TemporaryDirectory() as staging:
        staged = Path(staging, "repository")  # not there yet: an old folder would be taken for a download
        try:
            api.create_repo(repo_id, exist_ok=True)
            before = api.model_info(repo_id).sha
            wanted = ["README.md", f"evaluation/*/{RUN_FILE}", "evaluation/*/*.jsonl"]
            api.snapshot_download(repo_id, revision=before, local_dir=staged, allow_patterns=wanted)
            targets = [staged / "evaluation" / path.resolve().name for path in paths]
            for path, target in zip(paths, targets, strict=True):
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir(parents=True)
                for file in [path / RUN_FILE, *path.glob("*.jsonl")]:
                    shutil.copy(file, target)
                write_report([target], target)
            if card and not (staged / "README.md").exists():
                shutil.copy(card, staged / "README.md")
            reports = [Report.from_folder(path.parent) for path in sorted(staged.glob(f"evaluation/*/{RUN_FILE}"))]
            fill_card(reports, staged / "README.md", repo_id)
            renewed = [f"evaluation/{target.name}/*" for target in targets]
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=staged,
                commit_message=f"Evaluation by {LIBRARY}: {', '.join(target.name for target in targets)}",
                allow_patterns=["README.md", PICTURE, *renewed],
                delete_patterns=renewed,
                parent_commit=before,  # else two pushes at once would lose one's part of the card
            ).commit_url
        except (OSError, HTTPError, ValueError) as error:
            options = ["--card", str(card or paths[0] / "README.md"), "--push-to-hub", repo_id]
            again = shlex.join(["python", "-m", "diffusers_ndc.evaluation.model_card", *map(str, paths), *options])
            raise OSError(
                f"The push to {repo_id} failed: {error}\nEverything is still in {', '.join(map(str, paths))}. To "
                f"push it again (a token comes from `hf auth login` or the variable HF_TOKEN):\n    {again}"
            ) from error


def main():
    parser = argparse.ArgumentParser(
        prog="python -m diffusers_ndc.evaluation.model_card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run")
    parser.add_argument("--card", type=Path, metavar="FILE", help="card to fill (default, of one run: DIR/README.md)")
    parser.add_argument("--push-to-hub", metavar="ID", help="also upload runs and card to this model repository")
    args = parser.parse_args()
    if args.card is None and len(args.folders) > 1:
        parser.error("several runs need --card FILE.")
    card = args.card or args.folders[0] / "README.md"
    try:
        fill_card([Report.from_folder(folder) for folder in args.folders], card)
        print(card)
        if args.push_to_hub:
            print(push_to_hub(args.folders, args.push_to_hub, card))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
