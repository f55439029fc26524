"""Whole runs on the page: their own page in a frame, and a certificate among their radii."""

import logging
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from ..evaluation.figures import Report
from ..evaluation.page import PAGE, write_page


READING = threading.Lock()


@lru_cache(maxsize=4)
def _reports(folders: tuple[Path, ...]) -> list[Report]:
    return [Report.from_folder(folder, folder.name) for folder in folders]


def read_reports(folders: Sequence[Path]) -> list[Report]:
    """The reports of runs, read once; an empty list if there is none, or if one of them cannot be read."""
    with READING:  # each certificate is recomputed, which takes a while: visitors who come meanwhile wait for it
        try:
            return _reports(tuple(folders))
        except (OSError, ValueError):
            logging.exception("The runs %s cannot be read", [str(folder) for folder in folders])
            return []


@lru_cache(maxsize=4)
def _page(folders: tuple[Path, ...]) -> str:
    reports = read_reports(folders)
    with tempfile.TemporaryDirectory() as folder:
        write_page(reports, Path(folder, PAGE))
        return Path(folder, PAGE).read_text(encoding="utf-8")


def runs_frame(folders: Sequence[Path]) -> str:
    """The page of runs in a frame that may run its scripts, and nothing else."""
    if not read_reports(folders):
        return "<p>This app has no runs to show.</p>"
    page = escape(_page(tuple(folders)))
    return f'<iframe class="runs" title="Results of whole runs" sandbox="allow-scripts" srcdoc="{page}"></iframe>'


def certified_runs(folders: Sequence[Path]) -> list[dict]:
    """The runs with certificates as in `report.json`."""
    return [report.to_dict() for report in read_reports(folders) if report.certified]
