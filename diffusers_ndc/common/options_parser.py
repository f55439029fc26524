"""Values of a dataclass of settings from a command line, and from a YAML file with the same keys. Free of torch."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from itertools import islice
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from .yaml_file import read_yaml


LARGEST = 10_000
"""Pieces of JSON, such as a key or a comma, that one setting may have."""


class OptionsParser(ArgumentParser):
    """A parser with an option for each field of a dataclass. Its errors are one line after the usage.

    What is required may come from a file: `missing` and `require` check it.

    Args:
        kind: The dataclass.
        description: Text at the beginning of `--help`.
        prog: Name of the program, for its messages. Default: the name of its file.
    """

    def __init__(self, kind: type, description: str | None = None, prog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=True,
            default_env=False,
        )
        self.kind = kind
        hints = get_type_hints(kind)
        for f in fields(kind):
            names = list(dict.fromkeys([f"--{f.name.replace('_', '-')}", f"--{f.name}"]))
            self.add_argument(*names, default=_default(f), help=f.metadata["help"], **_how_to_read(hints[f.name]))
        self.add_argument("--config", metavar="FILE", help="YAML file with the same keys; the command line wins.")

    def error(self, message: str, ex: Exception | None = None) -> Any:
        self.exit(2, f"{self.format_usage()}{self.prog}: error: {' '.join(str(message).split())}\n")

    def read(self, words: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
        """Read the values of all fields. The command line wins over the values of a file.

        Args:
            words: Words of the command line.
            given: Values of the file.

        Raises:
            SystemExit: An option is unknown, or a value has the wrong type.
        """
        values = vars(self.parse_args(list(words), namespace=self.parse_object(given)))
        del values["config"]
        return values

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """The options without a default that got no value."""
        return [f"--{f.name.replace('_', '-')}" for f in fields(self.kind) if _is_missing(f, values)]

    def require(self, missing: Sequence[str]) -> None:
        """End with a message if required options are missing."""
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")


def read_words(words: Sequence[str], *options: str) -> argparse.Namespace:
    """The values of a few options that others come from; everything else is left for later."""
    first = argparse.ArgumentParser(add_help=False)
    for option in options:
        first.add_argument(option)
    return first.parse_known_args(words)[0]


def read_config(path: str, kind: type) -> dict[str, Any]:
    """Read a YAML file of settings. Empty values are left out.

    Args:
        path: The file.
        kind: The dataclass of the settings.

    Raises:
        ValueError: The file cannot be read, or has other keys or kinds of values.
    """
    hints = get_type_hints(kind)
    settings: dict[str, Any] = {}
    for key, value in read_yaml(path, "--config").items():
        name = str(key).replace("-", "_")
        if name in settings:
            raise ValueError(f"`--config` must have each key once, got {name} twice in {path}.")
        if name not in hints:
            raise ValueError(f"`--config` must have keys among {list(hints)}, got {key!r} in {path}.")
        if isinstance(value, dict) and _is(dict, hints[name]):
            value = _json(key, value, path)
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (list, dict, set)) for item in items):
            raise ValueError(f"`{key}` in --config {path} must be a value or a list of values, got nested ones.")
        several = _is(list, hints[name])
        if not several and len(items) != 1:
            raise ValueError(f"`{key}` in --config {path} must be one value, got {len(items)}.")
        if value is not None:
            settings[name] = items if several else items[0]
    return settings


def _json(key: object, value: dict, path: str) -> str:
    """Keys and values of a file as JSON, which stands for them on a command line."""
    try:
        pieces = list(islice(json.JSONEncoder(allow_nan=False).iterencode(value), LARGEST + 1))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`{key}` in --config {path} must be keys and values of JSON, got others: {error}") from None
    if len(pieces) > LARGEST:  # a few lines of YAML can stand for billions of values
        raise ValueError(f"`{key}` in --config {path} must be at most some thousand keys and values, got more.")
    return "".join(pieces)


def _is_missing(f: Field, values: Mapping[str, Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING and values[f.name] is None


def _default(f: Field) -> Any:
    """The default of a setting, `None` if it is required."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def _is(origin: type, hint: Any) -> bool:
    """Whether a type is, or may be, a list or dictionary."""
    return any(get_origin(kind) is origin for kind in (hint, *get_args(hint)))


def _how_to_read(hint: Any) -> dict[str, Any]:
    """How an option reads values of a type: a `Literal`, a list of numbers, or one value that may be `None`."""
    converters: Mapping[Any, Callable] = {int: integer, float: number}
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Literal:
        return {"choices": list(get_args(hint))}
    if get_origin(hint) is list:
        return {"type": converters[kinds[0]], "nargs": "+"}
    if kinds:  # or None
        return _how_to_read(kinds[0])
    if hint is bool:
        return {"type": truth, "nargs": "?", "const": True}
    return {"type": converters.get(hint, text)}


# A value of a file is read as if it stood on the command line, so that both give one run.


def integer(value: object) -> int:
    """A whole number."""
    return int(str(value))


def number(value: object) -> float:
    """A number; inf and nan are some."""
    return float(str(value))


def text(value: object) -> str:
    """A text."""
    return str(value)


def truth(value: object) -> bool:
    """True or false."""
    word = str(value).lower()
    if word not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise ValueError(f"must be true or false, got {value}")
    return word in ("yes", "true", "t", "y", "1")
