"""Write the results of runs into a model card, and push card and records to a Hub repository.

    python -m diffusers_ndc.evaluation.model_card runs/sigma-0.25 runs/sigma-0.5 --card MODEL/README.md
    python -m diffusers_ndc.evaluation.model_card runs/sigma-0.25 --push-to-hub NAMESPACE/NAME

An existing card is filled, not overwritten: its own metadata and text stay, and only the sections between two comments
are written anew. The push also uploads the records, under `evaluation/`; the card there covers all runs in the
repository.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HTTPError  # the HTTP library's own, whichever that is: also a lost connection

from ..common.markdown import fill, table
from ..diffusion.noise_levels import NoiseLevels
from ..pipelines.model_card import (
    LIBRARY,
    add_metadata,
    certifying,
    guarantee,
    markers,
    model_section,
    read_card,
    with_section,
    write_card,
)
from .decision import what_decides, what_was_run
from .eval_results import FILE, dataset_name, described_settings, main_settings, write_eval_results
from .figures import Report
from .plot import PICTURE, plot
from .records import RUN_FILE
from .report import share_cells, write_report


def fill_card(reports: Sequence[Report], path: str | Path, model: str | None = None) -> None:
    """Write the results of runs into a model card, new or existing. Doing it twice changes nothing.

    Metadata and text of an existing card stay as they are, except for what an earlier call wrote: the section of the
    results, and the results in `model-index`. A section on how to use the model is added unless the card has it. The
    picture of the certified runs, `certified_accuracy.png`, is written beside the card, and so is
    `.eval_results/diffusers-ndc.yaml` with the results on data sets of the Hub.

    Args:
        reports: The runs, of different names, all of one model.
        path: The card, a Markdown file.
        model: Folder or Hub id for the usage lines. Default: the model of the first run.

    Raises:
        ValueError: A run has no result or lacks a setting, two have one name, or the card is damaged.
    """
    _check(reports)
    path = Path(path)
    model = model or what_was_run(reports[0].run)
    title = Path(model).resolve().name
    metadata, text = read_card(path, title)
    if not _has_model_section(text):
        text = _add_model_section(text, reports, model)
    _add_results(metadata, reports, title)
    results = _results_section(reports, explain=not _has_model_section(text))
    write_card(path, metadata, with_section(text, "results", results))
    certified = [report for report in reports if report.certified]
    if certified:
        plot(certified, path.parent / PICTURE)
    write_eval_results(reports, path.parent)


def _check(reports: Sequence[Report]) -> None:
    """Raise a `ValueError` unless a card can be made of these runs."""
    names = [report.name for report in reports]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`reports` must be one or more runs of different names, got the names {names}.")
    for report in reports:
        missing = {"model", "dataset", "method", "n0", "base_classifier"} - set(report.run)
        if missing:
            raise ValueError(f"`run.json` of {report.name} must have the settings {sorted(missing)}, got none.")
        if not report.outcomes:
            raise ValueError(f"`reports` must be runs with results, got {report.name}, which has no result.")


def _has_model_section(text: str) -> bool:
    begin, _ = markers("model")
    return begin in text


def _add_model_section(text: str, reports: Sequence[Report], model: str) -> str:
    """Add how to use the model to a card's text, if a run has certified it."""
    rows = []
    runs = []
    for report in reports:
        levels = _levels(report.run)
        if levels is None:  # an outside classifier, which is not part of this model
            continue
        rows.append((report.run["sigma"], report.run["method"], levels, what_decides(report.run) is not None))
        if report.certified:
            runs.append(report.run)
    if not runs:
        return text
    run = runs[0]
    # a radius that takes seconds, and that any sigma can prove
    radius = min((radius for radius in run["radii"] if 0 < radius <= run["sigma"]), default=run["sigma"])
    call = certifying(run["sigma"], radius, run["method"])
    return with_section(text, "model", model_section(model, call, rows, latent=run["method"] == "dds"))


def _levels(run: dict) -> NoiseLevels | None:
    """The noise levels of a run's diffusion classifier, or `None` if its classifier is another one.

    The diffusion classifier may be behind a denoiser.
    """
    base = run["base_classifier"]
    if isinstance(base.get("classifier"), dict):
        base = base["classifier"]
    if "levels" not in base:
        return None
    return NoiseLevels.from_dict(base["levels"])


def _add_results(metadata: dict, reports: Sequence[Report], title: str) -> None:
    """Replace our results in a card's metadata: one for each radius of each run, and one for its average radius.

    The results of others stay. This works on plain values because `ModelCardData` keeps only one model and one source.
    """
    results = [result for report in reports for result in _eval_results(report)]
    ours = ModelCardData(model_name=title, eval_results=results).to_dict()["model-index"]
    index = metadata.pop("model-index", None) or [{"name": title, "results": []}]
    for entry in index:
        for result in entry["results"]:
            result["metrics"] = [metric for metric in result["metrics"] if not _is_ours(metric)]
        entry["results"] = [result for result in entry["results"] if result["metrics"]]
    index[0]["results"] += ours[0]["results"]
    more = {"model-index": index}
    names = {dataset_name(report.run) for report in reports}
    on_hub = sorted(name for name in names if "/" in name)
    if on_hub:
        more = {"datasets": on_hub, **more}
    add_metadata(metadata, **more)


def _is_ours(metric: dict) -> bool:
    return (metric.get("args") or {}).get("library") == LIBRARY


def _eval_results(report: Report) -> list[EvalResult]:
    """The results of a run: accuracy at each radius, and the average certified radius."""
    run = report.run

    def result(kind: str, name: str, value: float, **args: float) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            dataset_type=dataset_name(run),
            dataset_name=dataset_name(run),
            dataset_split=run.get("split"),
            metric_type=kind,
            metric_value=value,
            metric_name=f"{name} ({report.name}: {described_settings(report)})",
            metric_args={"library": LIBRARY, "run": report.name, **main_settings(report), **args},
        )

    results = []
    if report.certified:
        results.append(result("average_certified_radius", "average certified l2 radius", report.average_radius))
    for radius in report.radii:
        if report.certified:
            kind, name = "certified_accuracy", f"certified accuracy at l2 radius {radius:g}"
        else:
            kind, name = "accuracy", "accuracy, no certificate"
        share = report.at(radius)
        results.append(result(kind, name, share.value, radius=radius, count=share.count, total=share.total))
    return results


def _results_section(reports: Sequence[Report], explain: bool) -> str:
    """The section with the results of runs, and what a certificate says unless the card explains that elsewhere."""
    certified = explained = ""
    if any(report.certified for report in reports):
        certified = fill(__package__, "certified", picture=PICTURE)
        if explain:
            explained = guarantee()
    return fill(
        __package__,
        "results",
        certified=certified,
        runs=_runs_table(reports),
        shares=_shares_table(reports),
        notes="\n\n".join(note for report in reports for note in _notes(report)),
        guarantee=explained,
    )


def _runs_table(reports: Sequence[Report]) -> str:
    heads = ["run", "data set", "method", "sigma", "n0", "n", "alpha", "average certified radius", "weights"]
    rows = []
    for report in reports:
        run = report.run
        if report.certified:
            certification = [f"{run['sigma']:g}", f"{run['n0']:,}", f"{run['n']:,}", f"{run['alpha']:g}"]
            certification.append(f"{report.average_radius:.3f}")
        else:
            certification = ["-"] * 5
        dataset = dataset_name(run)
        if run.get("split"):
            dataset += f", {run['split']}"
        weights = str(run.get("weight_hash") or "-")[:12]
        rows.append([report.name, dataset, run["method"], *certification, weights])
    return table(heads, rows)


def _shares_table(reports: Sequence[Report]) -> str:
    rows = []
    for report in reports:
        for radius in report.radii:
            if report.certified:
                images = f"correct, and certified at l2 radius {radius:g}"
            else:
                images = "correct, no certificate"
            rows.append([report.name, images, *share_cells(report.at(radius))])
    return table(["run", "images that are", "share", "", "95% interval"], rows)


def _notes(report: Report) -> list[str]:
    """The task of a run, what decides in it, and what its figures leave out."""
    notes = [] if report.task is None else [f"{report.name} is a run of the evaluation task {report.task.title}."]
    if report.task is not None and report.run["dataset"] != report.task.dataset:
        notes.append(f"It took the images of {report.run['dataset']}, said to be a copy of {report.task.dataset}.")
    decides = what_decides(report.run)
    if decides is not None:
        notes.append(f"{report.name}: {decides}")
    if report.failed or report.rejected:
        notes.append(
            f"The figures of {report.name} leave out images that failed ({len(report.failed)}) and records that do "
            f"not verify ({len(report.rejected)})."
        )
    if report.missing:
        notes.append(
            f"{report.name} is not finished: {report.missing:,} of its images have no record yet. "
            "Easy images finish first, so its figures may be too high."
        )
    return notes


def push_to_hub(folders: Iterable[str | Path], repo_id: str, card: str | Path | None = None) -> str:
    """Upload runs with their reports to a model repository, and fill its card with all runs it then holds.

    A run goes to `evaluation/<name of its folder>/` and replaces a run of that name. The repository is created if
    necessary; its other files stay. Everything is one commit. The local folders are only read.

    Args:
        folders: Folders of the runs.
        repo_id: The repository, `namespace/name`.
        card: Card to start from if the repository has none. Default: an empty one.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: A folder, or `run.json` in it, does not exist.
        ValueError: A run has no result or lacks a setting, or two have one name.
        OSError: The push failed. Nothing was changed, except that an empty repository may have been created.
    """
    paths = [Path(folder) for folder in folders]
    _check([Report.from_folder(path) for path in paths])
    try:
        with TemporaryDirectory() as staging:
            # not there yet: a download would take an existing folder for an earlier one
            return _push(paths, repo_id, card, Path(staging, "repository"))
    except (OSError, HTTPError, ValueError) as error:
        options = ["--card", str(card or paths[0] / "README.md"), "--push-to-hub", repo_id]
        again = shlex.join(["python", "-m", "diffusers_ndc.evaluation.model_card", *map(str, paths), *options])
        raise OSError(
            f"The push to {repo_id} failed: {error}\nEverything is still in {', '.join(map(str, paths))}. To push it "
            f"again (a token comes from `hf auth login` or the variable HF_TOKEN):\n    {again}"
        ) from error


def _push(paths: Sequence[Path], repo_id: str, card: str | Path | None, staged: Path) -> str:
    """Download the repository's runs to `staged`, add ours, and upload the result as one commit."""
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    before = api.model_info(repo_id).sha
    known = ["README.md", f"evaluation/*/{RUN_FILE}", "evaluation/*/*.jsonl"]
    api.snapshot_download(repo_id, revision=before, local_dir=staged, allow_patterns=known)
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        target = staged / "evaluation" / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in [path / RUN_FILE, *path.glob("*.jsonl")]:
            shutil.copy(file, target)
        write_report([target], target)
    if card and not (staged / "README.md").exists():
        shutil.copy(card, staged / "README.md")
    reports = [Report.from_folder(path.parent) for path in sorted(staged.glob(f"evaluation/*/{RUN_FILE}"))]
    fill_card(reports, staged / "README.md", repo_id)
    write_eval_results(reports, staged, repo_id)
    replaced = [f"evaluation/{name}/*" for name in names]
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=staged,
        commit_message=f"Evaluation by {LIBRARY}: {', '.join(names)}",
        allow_patterns=["README.md", PICTURE, FILE, *replaced],
        delete_patterns=[FILE, *replaced],
        parent_commit=before,  # two pushes at once would else lose one's part of the card
    )
    return commit.commit_url


def main():
    parser = argparse.ArgumentParser(
        prog="python -m diffusers_ndc.evaluation.model_card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run")
    parser.add_argument("--card", type=Path, metavar="FILE", help="card to fill (default for one run: DIR/README.md)")
    parser.add_argument("--push-to-hub", metavar="ID", help="also upload runs and card to this model repository")
    args = parser.parse_args()
    if args.card is None and len(args.folders) > 1:
        parser.error("several runs need --card FILE")
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
