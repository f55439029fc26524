"""Fields of a dataclass of settings that are options of a command line too. Free of torch."""

from dataclasses import field
from typing import Any


def required(help: str) -> Any:
    """A field without a default."""
    return field(metadata={"help": help})


def option(default: Any, help: str) -> Any:
    """A field with a default, which its help shows unless it is `None` or `False`."""
    if isinstance(default, list):
        shown = " ".join(str(item) for item in default)
        return field(default_factory=lambda: list(default), metadata={"help": f"{help} Default: {shown}."})
    if default is not None and default is not False:
        help = f"{help} Default: {default}."
    return field(default=default, metadata={"help": help})
