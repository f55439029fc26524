"""The command `diffusers-ndc`: its first word says what to do, and only the code for that is imported."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..common.threads import share_cores
from .arguments import COMMON


COMMANDS = {
    "certify": "certify images, and record the certificates",
    "evaluate": "certify a labelled data set, with one process or many, and report the results",
    "plan": "tell what an evaluation would prove and cost, from a short trial",
    "verify": "recompute recorded certificates from their votes (needs only numpy and scipy)",
    "replay": "cast the votes of recorded certificates again, with their model and images",
    "report": "write the report of one or several evaluations from their records",
    "train": "train a class-conditional diffusion model on labelled images",
    "calibrate": "fit a class sifter and choose noise levels for a model",
    "convert": "make a model of a checkpoint of EDM or OpenAI",
    "app": "start the app: certify pictures in the browser, and try to break the certificates",
    "push": "upload a model, or evaluations with their records, to the Hub",
}
"""What there is to do. Each has a module with a function `main`, which takes its words and returns an exit code."""

QUIET = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""Environment variables that turn progress bars off if they are set before the libraries are imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its words. Default: those of this process.

    Returns:
        0, or 1 for a check that failed or an error, which is then one line on stderr.

    Raises:
        SystemExit: With code 2 for wrong arguments, with 0 after `--help`.
        Exception: With `--debug`, any error.

    Example:
        >>> main(["verify", "record.jsonl"])  # doctest: +SKIP
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug, quiet = "--debug" in words, "--quiet" in words
    words = [word for word in words if word not in ("--debug", "--quiet")]
    command = _parser().parse_args(words[:1]).command
    share_cores()
    if quiet:
        os.environ.update(dict.fromkeys(QUIET, "1"))
    try:
        return import_module(f".{command}", __package__).main(words[1:])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except Exception as error:
        if debug:
            raise
        expected = (FloatingPointError, OSError, RuntimeError, TypeError, ValueError)
        kind = "" if isinstance(error, expected) else f"{type(error).__name__}: "
        print(f"error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    """A parser of the first word."""
    listed = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="diffusers-ndc",
        description=f"Certifiably robust classifiers out of diffusion models.\n\ncommands:\n{listed}",
        epilog=f"`diffusers-ndc COMMAND --help` lists the options of a command. {COMMON}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="diffusers-ndc [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do")
    return parser
