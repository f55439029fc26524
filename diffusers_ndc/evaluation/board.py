"""Entries for the public board of certified robustness, https://sokcertifiedrobustness.github.io/leaderboard.

The board is a file, `_data/board.yml`, to which anyone may propose a change. It lists certified accuracies by data set
and radius, and takes probabilistic certificates of a confidence of at least 99.9%.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.utils import yaml_dump

from .decision import what_decides, what_was_run
from .eval_results import dataset_name, is_hub_id
from .figures import Report
from .share import Share


MAX_ALPHA = 0.001
"""The largest error probability of a certificate that the board takes."""

HEADER = (
    "# For _data/board.yml of https://github.com/sokcertifiedrobustness/sokcertifiedrobustness.github.io\n"
    "# Give the title, link and venue of your paper; without a venue the board lists a preprint.\n"
)


def board_entries(folders: Iterable[str | Path]) -> tuple[str, dict[str, str]]:
    """The entries of runs, as YAML, and why each of the other runs has none.

    A run qualifies if all its images have certificates that verify, with an `alpha` of at most 0.001. Its entries are
    its certified accuracies at radii above 0 (l2, pixel units), rounded down to 0.01%. Of several runs for one data
    set and radius, the best comes first.

    Args:
        folders: Folders of the runs.

    Returns:
        The YAML, empty if no run qualifies, and the reasons by folder.

    Raises:
        FileNotFoundError: A folder, or `run.json` in it, does not exist.
        ValueError: A folder holds no records, or its `run.json` has no valid settings.
    """
    records: dict[str, list[tuple[Share, dict]]] = {}
    reasons = {}
    for folder in folders:
        report = Report.from_folder(folder)
        reason = _disqualification(report)
        if reason is not None:
            reasons[str(folder)] = reason
            continue
        for radius in report.radii:
            if radius > 0:
                share = report.at(radius)
                setting = rf"{dataset_name(report.run)},&nbsp; \(\ell_2\), &nbsp; \(\epsilon={radius:g}\)"
                records.setdefault(setting, []).append((share, _record(report, share)))
    if not records:
        return "", reasons
    groups = []
    for setting, found in records.items():
        found.sort(key=lambda one: one[0].value, reverse=True)
        groups.append({"setting": setting, "records": [record for _, record in found]})
    return HEADER + yaml_dump(groups, sort_keys=False), reasons


def _disqualification(report: Report) -> str | None:
    """Why the board does not take a run, `None` if it does."""
    left_out = {"failed": len(report.failed), "do not verify": len(report.rejected), "have no record": report.missing}
    if not report.certified:
        return "it has no certificates"
    if report.run["alpha"] > MAX_ALPHA:
        return f"`alpha` must be at most {MAX_ALPHA}, got {report.run['alpha']:g}"
    if any(left_out.values()):
        counts = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        return f"all its images must have certificates that verify, got others: {counts}"
    if report.radii[-1] == 0:
        return "`radii` must have one above 0, got none"
    return None


def _record(report: Report, share: Share) -> dict:
    """What the board says of a run at one radius."""
    run = report.run
    model = what_was_run(run)
    settings = {name: run.get(name) for name in ("method", "sigma", "n", "alpha")}
    comment = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    comment += f"; {share.count:,} of {share.total:,} images"
    decides = what_decides(run)
    if decides is not None:
        comment += f". {decides}"
    hundredths = 10_000 * share.count // share.total
    return {
        "score": f"{hundredths // 100}.{hundredths % 100:02}%",
        "title": f"{model} (diffusers-ndc)",
        "link": f"https://huggingface.co/{model}" if is_hub_id(model) else None,
        "venue": None,
        "prob": True,
        "comment": comment,
    }


def print_board(folders: Iterable[str | Path]) -> str | None:
    """Print the entries of runs, and on stderr why others have none.

    Returns:
        The message of an error: a run cannot be read, or none qualifies.
    """
    try:
        text, reasons = board_entries(folders)
    except (OSError, ValueError) as error:
        return f"error: {error}"
    print(text, end="")
    for folder, reason in reasons.items():
        print(f"not for the board: {folder}: {reason}", file=sys.stderr)
    return None if text else "error: no run qualifies for the board"
