"""The image and the label column of any data set that `datasets` loads, for the programs beside this file."""

from datasets import ClassLabel, Dataset, Image, load_dataset


def load_labelled_images(
    dataset: str, split: str, image_column: str | None = None, label_column: str | None = None
) -> tuple[Dataset, str, str]:
    """A data set and the names of its image and label columns; by default the first column of each kind."""
    loaded = load_dataset(dataset, split=split)
    image_column = _column(loaded.features, image_column, Image, "--image-column")
    return loaded, image_column, _column(loaded.features, label_column, ClassLabel, "--label-column")


def _column(features, wanted: str | None, kind: type, option: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if wanted is None and found:
        return found[0]
    if wanted in found:
        return wanted
    raise ValueError(f"{option} is {wanted!r}; the data set has these {kind.__name__} columns: {found}.")
