"""Handlers for what visitors upload or choose: pictures, certificates, and reports of runs."""

from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from ..certification.certificate import Certificate
from .drawing import SERIES, comparison_figure, picture_figure
from .files import compare_with_run, read_certificate, read_runs, verdict
from .handlers import prepare
from .models import MODELS
from .pictures import read_picture
from .refusals import visitor_error
from .runs import certified_runs


def preview(key: str, image: PIL.Image.Image) -> tuple[PIL.Image.Image, str]:
    """A picture, and how the model will see it."""
    try:
        return image, picture_figure(prepare(MODELS.find(key), image))
    except ValueError as error:
        raise visitor_error(str(error)) from None


def upload(key: str, path: str | None) -> tuple[PIL.Image.Image | None, str]:
    """An uploaded picture, and how the model will see it."""
    if path is None:
        return None, ""
    try:
        image = read_picture(path)
    except ValueError as error:
        raise visitor_error(str(error)) from None
    return preview(key, image)


def verify(path: str | None) -> tuple[str, dict | None]:
    """The verdict on an uploaded certificate, and the certificate if it is valid."""
    if path is None:
        return "", None
    try:
        certificate = read_certificate(path)
    except ValueError as error:
        return f"**Not valid.** {error}", None
    return verdict(certificate), certificate.to_dict() if certificate.verify() else None


def compare(folders: Sequence[Path], path: str | None, record: dict | None) -> tuple[str, str]:
    """Tables and a figure of a run's report with the visitor's certificate among them.

    Args:
        folders: Folders of the runs that are compared by default.
        path: An uploaded `report.json`, or `None`.
        record: The visitor's certificate, or `None`.
    """
    certificate = Certificate.from_dict(record) if record else None
    try:
        runs = (certified_runs(folders) if path is None else read_runs(path))[: len(SERIES)]
    except ValueError as error:
        return str(error), ""
    if not runs:
        return "There is no run to compare with: upload the report.json of one.", ""
    text = "\n\n".join(compare_with_run(run, certificate) for run in runs)
    if certificate is None:
        text += "\n\nYou have no certificate yet: make one in the first tab, or verify one in the second."
    return text, comparison_figure(runs, None if certificate is None else certificate.radius)
