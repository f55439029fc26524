"""Labelled images to train on, and their augmentation."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, load_dataset
from PIL import ImageOps

from ..common.columns import find_columns
from .settings import TrainingSettings


@dataclass(frozen=True)
class TrainingImages:
    """A data set to train on.

    Args:
        rows: Its rows: `images`, shape `(C, H, W)`, in [0, 1], and `labels`.
        class_names: Names of the classes, in order.
        size: Pixels: height and width.
        channels: 1 for grey images, 3 for others.
    """

    rows: Dataset
    class_names: list[str]
    size: tuple[int, int]
    channels: int


@dataclass(frozen=True)
class Decode:
    """Rows of a data set to images of one size and their labels. A class, so that worker processes can get it."""

    image_column: str
    label_column: str
    mode: str
    size: tuple[int, int]

    def __call__(self, rows: dict) -> dict:
        height, width = self.size
        images = []
        for picture in rows[self.image_column]:
            picture = ImageOps.fit(picture.convert(self.mode), (width, height))
            pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, -1) / 255
            images.append(torch.from_numpy(pixels).permute(2, 0, 1))
        return {"images": images, "labels": rows[self.label_column]}


def load_images(settings: TrainingSettings) -> TrainingImages:
    """Load the data set of a training.

    Raises:
        ValueError: There is no such data set, split or column, or its classes are not numbered 0, 1, 2, ...
    """
    try:
        dataset = load_dataset(settings.dataset, split=settings.split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`--dataset` must be a data set that can be loaded, got {settings.dataset} with --split "
            f"{settings.split}: {error}"
        ) from error
    image_column, label_column = find_columns(dataset.features, settings.image_column, settings.label_column)
    if len(dataset) == 0:
        raise ValueError(f"`--split` must be a split with images, got {settings.split} of {settings.dataset}.")
    first = dataset[0][image_column]
    mode = "L" if first.mode in ("1", "L") else "RGB"
    sides = settings.resolution or [min(first.size)]
    size = (sides[0], sides[-1])
    rows = dataset.with_transform(Decode(image_column, label_column, mode, size))
    return TrainingImages(rows, _class_names(dataset, label_column), size, len(mode))


def _class_names(dataset: Dataset, label_column: str) -> list[str]:
    """Names of the classes; numbers, if they have none."""
    labels = dataset.features[label_column]
    found = set(dataset.unique(label_column))
    names = labels.names if isinstance(labels, ClassLabel) else [str(number) for number in range(len(found))]
    wrong = found - set(range(len(names)))  # -1 or nothing stands for "not known"
    if wrong:
        raise ValueError(
            f"The classes of `--label-column` {label_column} must be 0, 1, 2, ... for each image, got "
            f"{sorted(wrong, key=str)}."
        )
    return names


def augment(images: torch.Tensor, settings: TrainingSettings) -> torch.Tensor:
    """Random rotation, zoom, shift and mirroring; pixels from outside the image repeat its border.

    Args:
        images: Shape `(N, C, H, W)`.
        settings: The largest angle, zoom and shift.
    """
    n, _, height, width = images.shape
    uniform = torch.rand(5, n, device=images.device) * 2 - 1
    angle, zoom = math.radians(settings.rotate) * uniform[0], (1 + settings.zoom) ** uniform[1]
    mirror = uniform[4].sign() if settings.flip else 1
    shift_x, shift_y = 2 * settings.shift / width * uniform[2], 2 * settings.shift / height * uniform[3]
    row_x = torch.stack([mirror * zoom * angle.cos(), -zoom * angle.sin(), shift_x], dim=1)
    row_y = torch.stack([mirror * zoom * angle.sin(), zoom * angle.cos(), shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
