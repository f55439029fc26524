"""The results of runs in the Hub's `.eval_results/*.yaml` form, beside the `model-index` of the model card.

Each result names a data set of the Hub and a task in its `eval.yaml`. No data set has such a file with tasks of
certified robustness yet, so the Hub shows these results on no leaderboard: they are for programs that read the files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResultEntry, constants, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ..pipelines.model_card import LIBRARY
from .figures import Report


FILE = f".eval_results/{LIBRARY}.yaml"
"""The file in a model's folder or repository."""


def write_eval_results(reports: Sequence[Report], folder: str | Path, repo_id: str | None = None) -> None:
    """Write the results of runs on data sets of the Hub to `.eval_results/diffusers-ndc.yaml` in a folder.

    The tasks are `accuracy`, `average_certified_radius` (pixel units) and `certified_accuracy_l2_<radius>` (radius in
    pixel units); accuracies are shares, from 0 to 1. Without a run on a data set of the Hub there is no file.

    Args:
        reports: The runs.
        folder: The model's folder.
        repo_id: The repository that has the records of the runs, under `evaluation/`: the source of the results.
    """
    entries = [entry for report in reports for entry in _entries(report, repo_id)]
    path = Path(folder, FILE)
    if not entries:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")


def _entries(report: Report, repo_id: str | None) -> list[EvalResultEntry]:
    """The results of a run, none if its data set is not on the Hub."""
    dataset = dataset_name(report.run)
    if "/" not in dataset:
        return []
    source = None
    if repo_id is not None:
        source = f"{constants.ENDPOINT}/{repo_id}/tree/main/evaluation/{report.name}"

    def entry(task: str, value: float, images: str) -> EvalResultEntry:
        return EvalResultEntry(
            dataset_id=dataset,
            task_id=task,
            value=value,
            source_url=source,
            source_name=None if source is None else "Records of the run",
            notes=f"{report.name}: {described_settings(report)}; {images}",
        )

    entries = []
    left_out = len(report.failed) + len(report.rejected) + report.missing
    suffix = f", {left_out:,} left out" if left_out else ""
    if report.certified:
        total = f"{len(report.outcomes):,} images{suffix}"
        entries.append(entry("average_certified_radius", report.average_radius, total))
    for radius in report.radii:
        share = report.at(radius)
        task = f"certified_accuracy_l2_{radius:g}" if report.certified else "accuracy"
        entries.append(entry(task, share.value, f"{share.count:,} of {share.total:,} images{suffix}"))
    return entries


def dataset_name(run: dict) -> str:
    """The Hub id of a run's data set, which has a slash, or the last part of the name of a folder."""
    dataset = str(run["dataset"])
    return dataset if is_hub_id(dataset) else Path(dataset).name


def is_hub_id(name: str) -> bool:
    """Whether a model or data set is on the Hub: its name can be a Hub id, and no folder has it."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def main_settings(report: Report) -> dict:
    """The task and the settings of a run that a result names, `None` for settings that it does not have."""
    settings = {name: report.run.get(name) for name in ("method", "sigma", "n0", "n", "alpha", "seed")}
    return settings if report.task is None else {"task": report.task.title, **settings}


def described_settings(report: Report) -> str:
    """These settings in a line."""
    return ", ".join(f"{name} {value}" for name, value in main_settings(report).items() if value is not None)
