"""A model card that says what runs have certified, and the push of card and records to a Hub repository.

    python -m diffusers_ndc.evaluation.model_card runs/sigma-0.25 runs/sigma-0.5 --card MODEL/README.md
    python -m diffusers_ndc.evaluation.model_card runs/sigma-0.25 --push-to-hub NAMESPACE/NAME

A card that exists is filled, not overwritten: its own metadata and text stay, and what stands between two comments is
made anew. The push uploads the records too, under `evaluation/`; the card there tells of all runs in the repository.
"""

import argparse
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, metadata_load
from huggingface_hub.errors import HTTPError  # the HTTP library's own, whichever that is: a lost connection is one too
from huggingface_hub.utils import yaml_dump

from ..noise_levels import NoiseLevels
from .records import RUN_FILE
from .report import Report, plot, share_cells, write_report


BEGIN = "<!-- diffusers-ndc: begin. Made from the records of the runs; what is written in here gets lost. -->"
END = "<!-- diffusers-ndc: end -->"

LIBRARY = "diffusers-ndc"
PICTURE = "certified_accuracy.png"

GUARANTEE = """### What a certificate says, and what it does not

- With probability at least 1 - alpha over its noisy copies, the *smoothed* classifier (the class that wins most often
  under Gaussian noise sigma) has the certified label at every image within the radius. Alpha is for each certificate:
  of m certificates about alpha * m may be wrong (at most, in expectation).
- The radius is one of the l2 norm, in pixel units (images in [0, 1]), of the image as the network sees it: an image of
  another size is resized first.
- It holds for one and the same function: these weights, noise levels, method and precision. With others it is another
  classifier, which needs its own certificates.
- It does not say that the label is right. The shares above count an image only where it is; an abstention counts as
  wrong.
- It does not speak of shifts, rotations, blur, or any other change that leaves the l2 ball.
- The proof is one of real numbers; rounding in floating point is covered only where the noise was drawn on a grid.
- The average certified radius is one of proved radii, wrong or abstained counting as 0. More copies, or a run without
  early stopping, may prove more.
"""


def fill_card(reports: Sequence[Report], path: str | Path, model: str | None = None) -> None:
    """Make a model card from runs, or fill one that exists; filling it twice changes nothing.

    Of an existing card, metadata and text stay as they are, but for what an earlier call wrote: the section between
    `BEGIN` and `END` (appended where there is none), and the results in `model-index`. Beside the card the picture of
    the certified runs, `certified_accuracy.png`, is written.

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
    metadata, text = {}, f"\n# {title}\n"
    if path.exists():
        metadata, text = metadata_load(path) or {}, ModelCard.load(path).text
    section = f"{BEGIN}\n{_section(reports, model)}{END}"
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not begin and END not in text:
        text = f"{text.rstrip()}\n\n{section}\n"
    elif begin and end and BEGIN not in inside + after and END not in after:
        text = before + section + after
    else:
        raise ValueError(f"{path} has half a section; accepted is one {BEGIN!r} and one {END!r} after it, or neither.")
    _merge(metadata, _metadata(reports, title))
    path.parent.mkdir(parents=True, exist_ok=True)
    if certified := [report for report in reports if report.certified]:
        plot(certified, path.parent / PICTURE)
    path.write_text(f"---\n{yaml_dump(metadata, sort_keys=False)}---\n{text}", encoding="utf-8", newline="")


def _check(reports: Sequence[Report]) -> None:
    names = [report.name for report in reports]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The runs have the names {names}; accepted are one or more, all different.")
    for report in reports:
        if lacking := {"model", "dataset", "method", "n0", "base_classifier"} - set(report.run):
            raise ValueError(f"The run {report.name} lacks the settings {sorted(lacking)}.")
        if not report.outcomes:
            raise ValueError(f"The run {report.name} has no result; accepted are runs with images that count.")


def _metadata(reports: Sequence[Report], title: str) -> dict:
    """The card's metadata as far as they are ours, with a result for each radius and average of each run."""
    results = []
    for report in reports:
        settings = {name: report.run.get(name) for name in ("method", "sigma", "n0", "n", "alpha", "seed")}
        told = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
        metrics = []
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
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-classification",
        tags=[LIBRARY, "certified-robustness", "randomized-smoothing"],
        datasets=sorted({_dataset(report.run) for report in reports if "/" in _dataset(report.run)}) or None,
        model_name=title,
        eval_results=results,
    ).to_dict()


def _dataset(run: dict) -> str:
    """The data set's Hub id, which has a slash; of a folder, or a name that could be one, the last part."""
    dataset = str(run["dataset"])
    on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", dataset) and not Path(dataset).exists()
    return dataset if on_hub else Path(dataset).name


def _merge(metadata: dict, ours: dict) -> None:
    """Add our metadata to a card's own, in place; of two single values the card's own stays.

    This is done on plain values since `ModelCardData` keeps only one model and one source of its results.
    """
    index = metadata.get("model-index") or [{"name": ours["model-index"][0]["name"], "results": []}]
    for entry in index:
        for result in entry["results"]:
            result["metrics"] = [m for m in result["metrics"] if (m.get("args") or {}).get("library") != LIBRARY]
        entry["results"] = [result for result in entry["results"] if result["metrics"]]
    index[0]["results"] += ours["model-index"][0]["results"]
    for key, value in ours.items():
        own = metadata.get(key)
        if isinstance(value, list) and own is not None:
            own = own if isinstance(own, list) else [own]
            metadata[key] = [*own, *(item for item in value if item not in own)]
        elif own is None:
            metadata[key] = value
    metadata["model-index"] = index


def _section(reports: Sequence[Report], model: str) -> str:
    certified = [report for report in reports if report.certified]
    # dds has no noise levels: its classifier is not part of this model
    with_levels = [report for report in reports if "levels" in report.run["base_classifier"]]
    lines = ["## Accuracy", ""]
    if certified:
        lines = ["## Certified robustness", ""]
        lines += [f"With {LIBRARY} (`pip install {LIBRARY}`) an answer of this model comes with an l2 radius within"]
        lines += ["which no perturbation changes it, proved up to an error probability alpha.", ""]
    if usable := [report for report in with_levels if report.certified]:
        lines += [*_usage(usable[0].run, model), ""]
    if certified:
        lines += [f"![Certified accuracy against l2 radius]({PICTURE})", ""]
    lines += [*_results(reports), ""]
    if with_levels:
        lines += [*_levels(with_levels), ""]
    return "\n".join([*lines, ""]) + (GUARANTEE if certified else "")


def _usage(run: dict, model: str) -> list[str]:
    """Lines that certify an image at the run's smallest radius: a matter of seconds, and provable with any sigma."""
    radius = min((radius for radius in run["radii"] if 0 < radius <= run["sigma"]), default=run["sigma"])
    method = "" if run["method"] == "apndc" else f', method="{run["method"]}"'
    return [
        "```python",
        "from diffusers_ndc import NoisedDiffusionClassifierPipeline",
        "",
        f"pipe = NoisedDiffusionClassifierPipeline.from_pretrained({json.dumps(model)})",
        "# image: a PIL image, or an array or tensor with values in [0, 1]",
        f"certificate = pipe.certify(image, sigma={run['sigma']}, radii=({radius},){method})",
        "print(certificate.label, certificate.radius)",
        "```",
    ]


def _results(reports: Sequence[Report]) -> list[str]:
    heads = ["run", "data set", "method", "sigma", "n0", "n", "alpha", "average certified radius", "weights"]
    lines = ["### Results", "", "Sigma and radii are in pixel units (images in [0, 1]).", "", *_table_head(heads)]
    for report in reports:
        run, drawn = report.run, ["-"] * 5
        if report.certified:
            drawn = [f"{run['sigma']:g}", f"{run['n0']:,}", f"{run['n']:,}", f"{run['alpha']:g}"]
            drawn += [f"{report.average_radius:.3f}"]
        dataset = ", ".join(filter(None, [_dataset(run), run.get("split")]))
        lines += [_row([report.name, dataset, run["method"], *drawn, str(run.get("weight_hash") or "-")[:12]])]
    lines += ["", *_table_head(["run", "of its images", "share", "", "95% interval"])]
    for report in reports:
        for radius in report.radii:
            what = f"right, and certified at l2 radius {radius:g}" if report.certified else "right, no certificate"
            lines += [_row([report.name, what, share_cells(report.at(radius))])]
    for report in reports:
        if report.failed or report.rejected:
            lines += ["", f"In no figure of {report.name}: {len(report.failed)} images that failed, and"]
            lines += [f"{len(report.rejected)} records that do not verify."]
    return [*lines, "", "Intervals are Clopper-Pearson's, for the share among all images that could have been drawn."]


def _levels(reports: Sequence[Report]) -> list[str]:
    lines = ["### Noise levels", ""]
    lines += ["Where the losses of the classes are compared, in the model's units (images in [-1, 1]: twice the pixel"]
    lines += ["units), in order; weights in brackets.", ""]
    lines += _table_head(["run", "sigma (pixel units)", "method", "levels (model units)"])
    for report in reports:
        levels = NoiseLevels.from_dict(report.run["base_classifier"]["levels"])
        told = ", ".join(f"{s:.3g} ({w:.2g})" for s, w in zip(levels.sigmas, levels.weights, strict=True))
        if len(levels) > 16:
            told = f"{len(levels)} from {min(levels.sigmas):.3g} to {max(levels.sigmas):.3g}"
        told += "" if levels.thresholds is None else "; hopeless classes are dropped after each one"
        lines += [_row([report.name, f"{report.run['sigma']:g}", report.run["method"], told])]
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table_head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


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
    folders = [Path(folder) for folder in folders]
    _check([Report.from_folder(folder) for folder in folders])
    api = HfApi()
    with TemporaryDirectory() as staging:
        staged = Path(staging, "repository")  # not there yet: an old folder would be taken for a download
        try:
            api.create_repo(repo_id, exist_ok=True)
            before = api.model_info(repo_id).sha
            wanted = ["README.md", f"evaluation/*/{RUN_FILE}", "evaluation/*/*.jsonl"]
            api.snapshot_download(repo_id, revision=before, local_dir=staged, allow_patterns=wanted)
            targets = [staged / "evaluation" / folder.resolve().name for folder in folders]
            for folder, target in zip(folders, targets, strict=True):
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir(parents=True)
                for file in [folder / RUN_FILE, *folder.glob("*.jsonl")]:
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
            options = ["--card", str(card or folders[0] / "README.md"), "--push-to-hub", repo_id]
            again = shlex.join(["python", "-m", "diffusers_ndc.evaluation.model_card", *map(str, folders), *options])
            raise OSError(
                f"The push to {repo_id} failed: {error}\nEverything is still in {', '.join(map(str, folders))}. To "
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
