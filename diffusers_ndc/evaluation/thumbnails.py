"""Small pictures of the images of a run, from its data set: the records hold none."""

import base64
import io

import PIL.Image

from .data import FAULTS, load_labelled_images
from .figures import Report
from .settings import Settings


SIDE = 32
"""Pixels of the longer side of a thumbnail, at most."""

COLOURS = 64
"""Colours of a thumbnail. With so few, five hundred of them take less than a megabyte."""

FIELDS = (
    "dataset",
    "dataset_config_name",
    "split",
    "image_column",
    "label_column",
    "streaming",
    "indices_file",
    "skip",
    "limit",
)
"""Settings of a run that say which images it took."""


def load_thumbnails(report: Report) -> dict[int, str]:
    """Load the data set of a run and make its images small.

    Args:
        report: The run.

    Returns:
        A PNG file in base64 by image index; images that cannot be read are left out.

    Raises:
        ValueError: The data set cannot be loaded, or it is not the one that the run took, by its hash.
        OSError: The run took the images that a file of indices lists, and that cannot be read.
    """
    run = report.run
    if not all(isinstance(run.get(name), str) and run[name] for name in ("dataset", "split")):
        raise ValueError(
            f"`--images` must be left out for {report.name}, whose run.json names no data set and split, got it."
        )
    try:
        settings = Settings(model="", output="", **{name: run[name] for name in FIELDS if name in run})
        images = load_labelled_images(settings)
    except TypeError as error:
        raise ValueError(
            f"run.json of {report.name} must say which images it took, got other types: {error}"
        ) from None
    if run.get("data_hash") != images.content_hash():
        raise ValueError(
            f"`--images` must be left out for {report.name}, which took other images than {settings.dataset} has, got "
            "it."
        )
    thumbnails = {}
    for number, index in enumerate(images.indices):
        try:
            thumbnails[index] = _thumbnail(images.image(number))
        except FAULTS:
            continue
    return thumbnails


def _thumbnail(image: PIL.Image.Image) -> str:
    """A small PNG file of an image, in base64."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.quantize(COLOURS).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
