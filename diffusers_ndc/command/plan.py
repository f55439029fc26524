"""The plan of an evaluation, with the options of `evaluate`."""

from collections.abc import Sequence

from . import evaluate


def main(words: Sequence[str]) -> int:
    # a plan writes nothing, so that no --output has to be given
    return evaluate.main(["--output", ".", *words, "--plan"], "plan")
