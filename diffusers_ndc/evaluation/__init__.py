"""Certification of whole data sets: a run, its records, and the report that is made from the records alone.

Names are imported when they are first asked for, so records can be verified without torch.
"""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports


if TYPE_CHECKING:
    from .data import LabelledImages as LabelledImages
    from .data import find_columns as find_columns
    from .data import load_labelled_images as load_labelled_images
    from .figures import Report as Report
    from .model_card import fill_card as fill_card
    from .model_card import push_to_hub as push_to_hub
    from .outcomes import Outcome as Outcome
    from .plan import RunPlan as RunPlan
    from .plan import plan_run as plan_run
    from .records import RecordWriter as RecordWriter
    from .records import read_records as read_records
    from .records import read_run as read_run
    from .report import to_markdown as to_markdown
    from .report import write_report as write_report
    from .run import evaluate as evaluate
    from .settings import Settings as Settings
    from .settings_parser import parse as parse
    from .share import Share as Share
    from .subject import weight_hash as weight_hash
    from .task import Task as Task
    from .task import load_task as load_task
else:
    __getattr__, __all__ = lazy_exports(
        __name__,
        {
            "data": ["LabelledImages", "find_columns", "load_labelled_images"],
            "figures": ["Report"],
            "model_card": ["fill_card", "push_to_hub"],
            "outcomes": ["Outcome"],
            "plan": ["RunPlan", "plan_run"],
            "records": ["RecordWriter", "read_records", "read_run"],
            "report": ["to_markdown", "write_report"],
            "run": ["evaluate"],
            "settings": ["Settings"],
            "settings_parser": ["parse"],
            "share": ["Share"],
            "subject": ["weight_hash"],
            "task": ["Task", "load_task"],
        },
        "eval",
    )
