"""Settings of an evaluation run from a command line, and from a YAML file with the same keys. Free of torch."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from .settings import Settings
from .task import Task, load_task
from .yaml_file import read_yaml


class _Parser(ArgumentParser):
    """A parser whose errors are one line after the usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        self.exit(2, f"{self.format_usage()}{self.prog}: error: {' '.join(str(message).split())}\n")


def parse(argv: Sequence[str] | None = None, description: str | None = None, prog: str | None = None) -> Settings:
    """Read settings from a command line. `--config FILE` names a YAML file with the same keys; the command line wins.

    Args:
        argv: Words of the command line. Default: those of this process.
        description: Text at the beginning of `--help`.
        prog: Name of the program, for its messages. Default: the name of its file.

    Raises:
        SystemExit: An option is unknown, a value has the wrong type, or the file is invalid.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _make_parser(description, prog)
    try:
        task, defaults, given = _sources(words)
    except ValueError as error:
        parser.error(str(error))
    parser.set_defaults(defaults)
    values = vars(parser.parse_args(words, namespace=parser.parse_object(given)))
    missing = [f"--{f.name}" for f in fields(Settings) if _is_required(f) and values[f.name] is None]
    if values["method"] == "gaussian" and "--model" in missing:
        missing.remove("--model")
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    del values["config"]
    return Settings(**{**values, "task": task})


def _make_parser(description: str | None, prog: str | None) -> _Parser:
    """A parser with an option for each setting. What is required may come from a file, and is checked later."""
    parser = _Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=True,
        default_env=False,
    )
    hints = get_type_hints(Settings)
    for f in fields(Settings):
        names = list(dict.fromkeys([f"--{f.name.replace('_', '-')}", f"--{f.name}"]))
        parser.add_argument(*names, default=_default(f), help=f.metadata["help"], **_how_to_read(hints[f.name]))
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys; the command line wins.")
    return parser


def _sources(words: Sequence[str]) -> tuple[Task | None, dict[str, Any], dict[str, Any]]:
    """The task that the words or their file name, its settings, and the settings of the file."""
    first = argparse.ArgumentParser(add_help=False)  # options that other settings come from
    for option in ("--config", "--task", "--dataset"):
        first.add_argument(option)
    named = first.parse_known_args(words)[0]
    given = {} if named.config is None else _read_config(named.config)
    name, dataset = (
        getattr(named, key) if getattr(named, key) is not None else given.get(key) for key in ("task", "dataset")
    )
    if name is None:
        return None, {}, given
    task = load_task(str(name))
    return task, task.settings(elsewhere=dataset not in (None, task.dataset)), given


def _is_required(f: Field) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _default(f: Field) -> Any:
    """The default of a setting, `None` if it is required."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def _how_to_read(hint: Any) -> dict[str, Any]:
    """How an option reads values of a type: a `Literal`, a list of numbers, or one value that may be `None`."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Literal:
        return {"choices": list(get_args(hint))}
    if get_origin(hint) is list:
        return {"type": number, "nargs": "+"}
    if kinds:  # or None
        return _how_to_read(kinds[0])
    if hint is bool:
        return {"type": truth, "nargs": "?", "const": True}
    converters: Mapping[Any, Callable] = {int: integer, float: number}
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


def _read_config(path: str) -> dict[str, Any]:
    """Read a YAML file of settings. Empty values are left out."""
    hints = get_type_hints(Settings)
    settings = {}
    for key, value in read_yaml(path, "--config").items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise ValueError(f"`--config` must have keys among {list(hints)}, got {key!r} in {path}.")
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (list, dict, set)) for item in items):
            raise ValueError(f"`{key}` in --config {path} must be a value or a list of values, got nested ones.")
        several = get_origin(hints[name]) is list
        if not several and len(items) != 1:
            raise ValueError(f"`{key}` in --config {path} must be one value, got {len(items)}.")
        if value is not None:
            settings[name] = items if several else items[0]
    return settings
