"""Certification of whole data sets: a run, its records, and the report that is made from the records alone."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .data import LabelledImages, find_columns, load_labelled_images
    from .figures import Outcome, Report, Share
    from .model_card import fill_card, push_to_hub
    from .plot import plot
    from .records import read_records, read_run
    from .report import to_markdown, write_report
    from .run import evaluate
    from .settings import Settings, parse
    from .subject import weight_hash

__all__ = [
    "LabelledImages",
    "Outcome",
    "Report",
    "Settings",
    "Share",
    "evaluate",
    "fill_card",
    "find_columns",
    "load_labelled_images",
    "parse",
    "plot",
    "push_to_hub",
    "read_records",
    "read_run",
    "to_markdown",
    "weight_hash",
    "write_report",
]
