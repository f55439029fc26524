"""The labelled images of a run: any image data set that `datasets` loads, its classes those of the model."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset

from .settings import Settings


FAULTS = (OSError, ValueError, TypeError, SyntaxError, PIL.Image.DecompressionBombError)
"""What reading an image raises when its own data are at fault: PIL has no common class for that."""


@dataclass(frozen=True)
class LabelledImages:
    """The chosen rows of a data set, the images still encoded.

    Args:
        indices: Index of each row in the split.
        rows: The rows, as many, with the columns `image` (encoded) and `label`.
        label_names: Names of the data set's classes, or `None` where its labels are plain numbers.
    """

    indices: list[int]
    rows: Dataset
    label_names: list[str] | None

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, number: int) -> PIL.Image.Image:
        """An image, decoded; raises one of `FAULTS` where that cannot be done."""
        return Image().decode_example(self.rows[number]["image"])

    def content_hash(self) -> str:
        """Hash of the chosen rows: indices, labels, and the bytes of the images; the same wherever they lie."""
        digest = hashlib.sha256(repr((self.indices, self.label_names)).encode())
        for row in self.rows:
            digest.update(repr(row["label"]).encode())
            digest.update(hashlib.sha256(_encoded(row["image"])).digest())
        return digest.hexdigest()[:32]

    def labels(self, num_classes: int, id2label: Mapping[int, str] | None) -> list[int | None]:
        """The class of each row as the model numbers it, `None` where it has none.

        Classes are matched by name where both sides have names, else by number.

        Args:
            num_classes: Number of classes of the model.
            id2label: Their names, if it has any.

        Raises:
            ValueError: The data set has classes that the model has not, or no row has a label.
        """
        given = [None if label in (None, -1) else label for label in self.rows["label"]]
        if given and not any(label is not None for label in given):
            raise ValueError("no row of the split has a label; accepted is a split with labels.")
        if self.label_names is not None and id2label is not None:
            numbers = {name: number for number, name in id2label.items()}
            if not set(self.label_names) <= set(numbers):
                raise ValueError(
                    f"the data set's classes are {self.label_names}, the model's {list(numbers)}; accepted are data "
                    "whose classes the model has, by name."
                )
            return [None if label is None else numbers[self.label_names[label]] for label in given]
        beyond = sorted({label for label in given if label is not None and not 0 <= label < num_classes})
        if beyond or (self.label_names is not None and len(self.label_names) > num_classes):
            classes = beyond if self.label_names is None else self.label_names
            model = f"numbers 0 to {num_classes - 1}" if id2label is None else f"{list(id2label.values())}"
            raise ValueError(f"the data set has the classes {classes}, the model {model}; accepted are its classes.")
        return given


def load_labelled_images(settings: Settings) -> LabelledImages:
    """The rows that the settings choose.

    Raises:
        ValueError: There is no such data set, split or column, or there are fewer images than asked for.
        OSError: The indices file cannot be read.
    """
    wanted = None if settings.indices_file is None else _indices(settings.indices_file)
    loaded = _load(settings)
    if loaded.features is None:
        raise ValueError(f"--streaming: the columns of {settings.dataset} are not known in a stream; leave it out.")
    image_column, label_column = find_columns(loaded.features, settings.image_column, settings.label_column)
    feature = loaded.features[label_column]
    # two columns under fixed names, so that no other one is ever read
    loaded = loaded.select_columns([image_column, label_column])
    loaded = loaded.rename_columns({image_column: "image", label_column: "label"})
    loaded = loaded.cast_column("image", Image(decode=False))
    indices, rows = (_streamed if settings.streaming else _selected)(loaded, wanted, settings.skip, settings.limit)
    if settings.limit is not None and len(indices) < settings.limit:
        raise ValueError(f"--limit is {settings.limit}, but there are {len(indices)} images to take.")
    if not indices:
        raise ValueError(f"--split {settings.split} of {settings.dataset} has no images to take.")
    return LabelledImages(indices, rows, feature.names if isinstance(feature, ClassLabel) else None)


def _load(settings: Settings) -> Dataset | IterableDataset:
    name = settings.dataset
    # a mistyped folder would be looked for on the Hub, again and again
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"--dataset is {name}, which is no folder; accepted is a folder or a Hub id.")
    try:
        return load_dataset(name, settings.dataset_config_name, split=settings.split, streaming=settings.streaming)
    except (OSError, ValueError) as error:
        raise ValueError(f"--dataset {name} with --split {settings.split} cannot be loaded: {error}") from error


def find_columns(
    features: Features, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str]:
    """Names of the image and the label column of a data set.

    Args:
        features: Its columns.
        image_column: The one with the images. Default: the first that holds images.
        label_column: The one with the classes. Default: the first that holds class labels, else whole numbers.

    Raises:
        ValueError: There is no such column.
    """
    return (
        _column(features, image_column, "--image-column", lambda feature: isinstance(feature, Image)),
        _column(features, label_column, "--label-column", _holds_classes),
    )


def _column(features: Features, wanted: str | None, option: str, accepted: Callable[[object], bool]) -> str:
    if wanted is not None and wanted not in features:
        raise ValueError(f"{option} is {wanted!r}; the data set has the columns {list(features)}.")
    found = [name for name, feature in features.items() if accepted(feature)]
    if wanted is None and not found:
        raise ValueError(f"{option} is not given, and none of the columns {dict(features)} is one by its type.")
    if wanted is not None and wanted not in found:
        raise ValueError(f"{option} is {wanted!r}, which is {features[wanted]}; accepted are the columns {found}.")
    return wanted or min(found, key=lambda name: not isinstance(features[name], ClassLabel))


def _holds_classes(feature: object) -> bool:
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype)


def _indices(path: str) -> list[int]:
    lines = Path(path).read_text(encoding="utf-8").split()
    if not lines or not all(line.isdecimal() for line in lines):
        raise ValueError(f"--indices-file {path} holds {lines[:5]}...; accepted is one whole number a line.")
    indices = [int(line) for line in lines]
    if len(set(indices)) < len(indices):
        raise ValueError(f"--indices-file {path} names some images more than once; accepted are different indices.")
    return indices


def _selected(loaded: Dataset, wanted: list[int] | None, skip: int, limit: int | None) -> tuple[list[int], Dataset]:
    indices = list(range(len(loaded)) if wanted is None else wanted)[::skip][:limit]
    beyond = [index for index in indices if index >= len(loaded)]
    if beyond:
        raise ValueError(f"--indices-file names {beyond[:5]}; accepted are indices below {len(loaded)}.")
    return indices, loaded.select(indices)


def _streamed(
    loaded: IterableDataset, wanted: list[int] | None, skip: int, limit: int | None
) -> tuple[list[int], Dataset]:
    """The same, in one pass over the stream that ends with the last row that is wanted."""
    chosen = None if wanted is None else wanted[::skip][:limit]
    rows, last = {}, None if chosen is None else max(chosen)
    for index, row in enumerate(loaded):
        if index in chosen if chosen is not None else index % skip == 0:
            rows[index] = row
        if index == last or (chosen is None and len(rows) == limit):
            break
    indices = list(rows) if chosen is None else chosen
    missing = [index for index in indices if index not in rows]
    if missing:
        raise ValueError(f"--indices-file names {missing[:5]}, beyond the end of the split.")
    return indices, Dataset.from_list([rows[index] for index in indices], features=loaded.features)


def _encoded(image: dict | None) -> bytes:
    """The bytes of an image; none where its file is missing, which is found out again, and recorded, on its turn."""
    if image is None or image["bytes"] is not None:
        return b"" if image is None else image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except OSError:
        return b""
