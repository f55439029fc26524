"""Settings of a training from a command line, and from a YAML file with the same keys. Free of torch."""

import sys
from collections.abc import Sequence

from ..common.options_parser import OptionsParser, read_config, read_words
from .settings import TrainingSettings


def parse(
    argv: Sequence[str] | None = None, description: str | None = None, prog: str | None = None
) -> TrainingSettings:
    """Read settings from a command line. `--config FILE` names a YAML file with the same keys; the command line wins.

    Args:
        argv: Words of the command line. Default: those of this process.
        description: Text at the beginning of `--help`.
        prog: Name of the program, for its messages. Default: the name of its file.

    Raises:
        SystemExit: An option is unknown, a value has the wrong type, or the file is invalid.

    Example:
        >>> parse(["--dataset", "digits", "--output-dir", "model", "--resolution", "28"]).resolution
        [28]
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = OptionsParser(TrainingSettings, description, prog)
    config = read_words(words, "--config").config
    try:
        given = {} if config is None else read_config(config, TrainingSettings)
    except ValueError as error:
        parser.error(str(error))
    values = parser.read(words, given)
    parser.require(parser.missing(values))
    return TrainingSettings(**values)
