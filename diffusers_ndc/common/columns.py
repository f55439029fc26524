"""The image column and the label column of a data set."""

from datasets import ClassLabel, Features, Image, Value


def find_columns(
    features: Features, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str]:
    """Find the image column and the label column of a data set.

    Args:
        features: Columns of the data set.
        image_column: Name of the column with the images. Default: the first that holds images.
        label_column: Name of the column with the classes. Default: the first that holds class labels, else integers.

    Returns:
        Their names.

    Raises:
        ValueError: There is no such column.
    """
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    integers = [name for name, feature in features.items() if isinstance(feature, Value) and "int" in feature.dtype]
    return (
        _choose_column(features, image_column, "--image-column", images),
        _choose_column(features, label_column, "--label-column", classes + integers),
    )


def _choose_column(features: Features, wanted: str | None, option: str, candidates: list[str]) -> str:
    """The column that is wanted, or the first candidate."""
    if wanted is None:
        if not candidates:
            raise ValueError(
                f"`{option}` must be given if no column is one by its type, got the columns {dict(features)}."
            )
        return candidates[0]
    if wanted not in features:
        raise ValueError(f"`{option}` must be one of the columns {list(features)}, got {wanted!r}.")
    if wanted not in candidates:
        raise ValueError(
            f"`{option}` must be one of the columns {candidates}, got {wanted!r}, which is {features[wanted]}."
        )
    return wanted
