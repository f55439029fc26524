"""The labelled images of a run: any image data set that `datasets` loads, with the classes of the model."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import PIL.Image
from datasets import ClassLabel, Dataset, Image, IterableDataset, load_dataset

from ..common.columns import find_columns as find_columns
from ..common.places import check_place
from ..pipelines.inputs import FAULTS as FAULTS
from .settings import Settings


@dataclass(frozen=True)
class LabelledImages:
    """The chosen rows of a data set, with the images still encoded.

    Args:
        indices: Index of each row in the split.
        rows: The rows, in the order of `indices`, with the columns `image` (encoded) and `label`.
        label_names: Names of the data set's classes, or `None` if its labels are plain numbers.
    """

    indices: list[int]
    rows: Dataset
    label_names: list[str] | None

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, number: int) -> PIL.Image.Image:
        """Decode an image. Raises one of `FAULTS` if the image is damaged."""
        return Image().decode_example(self.rows[number]["image"])

    def content_hash(self) -> str:
        """Hash of the chosen rows: indices, labels, and the bytes of the images, independent of their place."""
        digest = hashlib.sha256(repr((self.indices, self.label_names)).encode())
        for row in self.rows:
            digest.update(repr(row["label"]).encode())
            digest.update(hashlib.sha256(_encoded(row["image"])).digest())
        return digest.hexdigest()[:32]

    def labels(self, num_classes: int, id2label: Mapping[int, str] | None) -> list[int | None]:
        """The class of each row in the model's numbering, `None` for a row without a label.

        Classes are matched by name if both sides have names, else by number.

        Args:
            num_classes: Number of classes of the model.
            id2label: Names of the model's classes, or `None`.

        Raises:
            ValueError: The data set has classes that the model does not have, or no row has a label.
        """
        labels = [None if label in (None, -1) else label for label in self.rows["label"]]
        if labels and all(label is None for label in labels):
            raise ValueError("`--split` must be a split with labels, got one in which no row has a label.")
        if self.label_names is not None and id2label is not None:
            numbers = {name: number for number, name in id2label.items()}
            if not set(self.label_names) <= set(numbers):
                raise ValueError(
                    f"`--dataset` must have classes among the model's, {list(numbers)}, got {self.label_names}."
                )
            return [None if label is None else numbers[self.label_names[label]] for label in labels]
        self._check_numbers(labels, num_classes, id2label)
        return labels

    def _check_numbers(self, labels: list[int | None], num_classes: int, id2label: Mapping[int, str] | None) -> None:
        """Raise a `ValueError` unless all labels are numbers of the model's classes."""
        model_classes = f"0 to {num_classes - 1}" if id2label is None else f"{list(id2label.values())}"
        message = f"`--dataset` must have classes among the model's, {model_classes}, got"
        if self.label_names is not None and len(self.label_names) > num_classes:
            raise ValueError(f"{message} {self.label_names}.")
        unknown = sorted({label for label in labels if label is not None and not 0 <= label < num_classes})
        if unknown:
            raise ValueError(f"{message} {unknown if self.label_names is None else self.label_names}.")


def load_labelled_images(settings: Settings) -> LabelledImages:
    """Load the rows that the settings choose.

    Raises:
        ValueError: There is no such data set, split or column, or there are fewer images than requested.
        OSError: The indices file cannot be read.
    """
    wanted = None if settings.indices_file is None else _read_indices(settings.indices_file)
    loaded = _load(settings)
    if loaded.features is None:
        raise ValueError(
            f"`--streaming` must be left out for {settings.dataset}: the columns of its stream are not known, got it."
        )
    image_column, label_column = find_columns(loaded.features, settings.image_column, settings.label_column)
    label_feature = loaded.features[label_column]
    # two columns under fixed names, so that no other one is ever read
    loaded = loaded.select_columns([image_column, label_column])
    names = {image_column: "image", label_column: "label"}
    # a stream has no column of a name for a moment when it is renamed to itself
    loaded = loaded.rename_columns({old: new for old, new in names.items() if old != new})
    loaded = loaded.cast_column("image", Image(decode=False))
    if settings.streaming:
        indices, rows = _select_from_stream(loaded, wanted, settings.skip, settings.limit)
    else:
        indices, rows = _select(loaded, wanted, settings.skip, settings.limit)
    if not indices:
        raise ValueError(f"`--split` must be a split with images, got {settings.split} of {settings.dataset}.")
    if settings.limit is not None and len(indices) < settings.limit:
        if settings.task is not None:
            raise ValueError(
                f"`--dataset` must have the {settings.limit} images of --task {settings.task.name}, got "
                f"{len(indices)} of them in {settings.dataset}, --split {settings.split}."
            )
        raise ValueError(f"`--limit` must be at most {len(indices)}, the number of images, got {settings.limit}.")
    label_names = label_feature.names if isinstance(label_feature, ClassLabel) else None
    return LabelledImages(indices, rows, label_names)


def _load(settings: Settings) -> Dataset | IterableDataset:
    name = settings.dataset
    check_place("--dataset", name)
    try:
        return load_dataset(name, settings.dataset_config_name, split=settings.split, streaming=settings.streaming)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`--dataset` must be a data set that can be loaded, got {name} with --split {settings.split}: {error}"
        ) from error


def _read_indices(path: str) -> list[int]:
    words = Path(path).read_text(encoding="utf-8").split()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"`--indices-file` must have one whole number per line, got {path} with {words[:5]}...")
    indices = [int(word) for word in words]
    if len(set(indices)) < len(indices):
        raise ValueError(f"`--indices-file` must name different images, got {path}, which names some more than once.")
    return indices


def _select(dataset: Dataset, wanted: list[int] | None, skip: int, limit: int | None) -> tuple[list[int], Dataset]:
    """Indices and rows: the wanted ones (default: all), then every `skip`-th of them, then the first `limit`."""
    indices = list(range(len(dataset))) if wanted is None else wanted
    indices = indices[::skip][:limit]
    unknown = [index for index in indices if index >= len(dataset)]
    if unknown:
        raise ValueError(f"`--indices-file` must have indices below {len(dataset)}, got {unknown[:5]}.")
    return indices, dataset.select(indices)


def _select_from_stream(
    stream: IterableDataset, wanted: list[int] | None, skip: int, limit: int | None
) -> tuple[list[int], Dataset]:
    """The same as `_select`, in one pass over the stream that ends with the last row needed."""
    if wanted is None:
        rows = dict(islice(islice(enumerate(stream), 0, None, skip), limit))
        indices = list(rows)
    else:
        indices = wanted[::skip][:limit]
        rows = dict(_rows_at(stream, indices))
        missing = [index for index in indices if index not in rows]
        if missing:
            raise ValueError(f"`--indices-file` must have indices within the split, got {missing[:5]}.")
    return indices, Dataset.from_list([rows[index] for index in indices], features=stream.features)


def _rows_at(stream: IterableDataset, indices: list[int]) -> Iterator[tuple[int, dict]]:
    """Indices and rows of a stream, which is read no further than the largest index."""
    wanted = set(indices)
    for index, row in islice(enumerate(stream), max(indices) + 1):
        if index in wanted:
            yield index, row


def _encoded(image: dict | None) -> bytes:
    """The bytes of an image file, or none if the file is missing.

    Reading the image later finds a missing file again, and records it.
    """
    if image is None:
        return b""
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except OSError:
        return b""
