"""What the parsers of the commands share."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from ..common.places import check_place


COMMON = "Every command takes --debug (an error comes with its traceback) and --quiet (no progress bars)."


def make_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for the options of a command."""
    return argparse.ArgumentParser(
        prog=f"diffusers-ndc {command}",
        description=description,
        epilog=COMMON,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def check_folder(parser: argparse.ArgumentParser, name: str, place: str | None) -> None:
    """End with a message unless a model or data set is `None`, a folder, or may be a Hub id.

    Args:
        parser: The parser of the command.
        name: Name of the argument, for the message.
        place: The folder or Hub id.
    """
    if place is None:
        return
    try:
        check_place(name, place)
    except ValueError as error:
        parser.error(str(error))


def check_exist(parser: argparse.ArgumentParser, name: str, paths: Iterable[Path]) -> None:
    """End with a message unless all files or folders exist.

    Args:
        parser: The parser of the command.
        name: Name of the argument, for the message.
        paths: The paths.
    """
    for path in paths:
        if not path.exists():
            parser.error(f"`{name}` must exist, got {path}, which does not.")
