"""Load a data set of labelled images with `datasets`, for the programs in this folder."""

from datasets import Dataset, load_dataset

from diffusers_ndc.evaluation.data import find_columns


def load_labelled_images(
    dataset: str, split: str, image_column: str | None = None, label_column: str | None = None
) -> tuple[Dataset, str, str]:
    """A data set and the names of its image and label columns; default: the first column of each kind."""
    loaded = load_dataset(dataset, split=split)
    return loaded, *find_columns(loaded.features, image_column, label_column)
