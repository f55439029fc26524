"""Settings of an evaluation run from a command line, and from a YAML file with the same keys. Free of torch."""

import sys
from collections.abc import Sequence
from typing import Any

from ..common.options_parser import OptionsParser, read_config, read_words
from .settings import Settings
from .task import Task, load_task


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
    parser = OptionsParser(Settings, description, prog)
    try:
        task, defaults, given = _sources(words)
    except ValueError as error:
        parser.error(str(error))
    parser.set_defaults(defaults)
    values = parser.read(words, given)
    missing = parser.missing(values)
    if values["method"] == "gaussian" and "--model" in missing:
        missing.remove("--model")
    parser.require(missing)
    return Settings(**{**values, "task": task})


def _sources(words: Sequence[str]) -> tuple[Task | None, dict[str, Any], dict[str, Any]]:
    """The task that the words or their file name, its settings, and the settings of the file."""
    named = read_words(words, "--config", "--task", "--dataset")
    given = {} if named.config is None else read_config(named.config, Settings)
    name, dataset = (
        getattr(named, key) if getattr(named, key) is not None else given.get(key) for key in ("task", "dataset")
    )
    if name is None:
        return None, {}, given
    task = load_task(str(name))
    return task, task.settings(elsewhere=dataset not in (None, task.dataset)), given
