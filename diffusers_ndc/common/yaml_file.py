"""YAML files of keys and values, which may come from anybody: no file runs code, and a bad one is a clear error."""

from pathlib import Path
from typing import Any

import yaml


FAULTS = (
    *(OSError, RecursionError, yaml.YAMLError, ValueError),
    *(ArithmeticError, AttributeError, LookupError, TypeError),
)
"""What reading a bad file raises: a tag on the wrong kind of value, such as !!int on nothing, raises all kinds."""


def read_yaml(path: str | Path, option: str) -> dict[Any, Any]:
    """Read a YAML file of keys and values.

    Args:
        path: The file.
        option: Option that names the file, for the messages.

    Raises:
        ValueError: The file cannot be read, or it is not one of keys and values.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FAULTS as error:
        raise ValueError(f"`{option}` must be a YAML file, got {path}, which cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"`{option}` must be a YAML file of keys and values, got {path}, a {type(values).__name__}.")
    return values
