"""The report of runs: `evaluation.report`, under the name of this command."""

from collections.abc import Sequence

from ..evaluation import report


def main(words: Sequence[str]) -> int:
    report.main(list(words), "diffusers-ndc report")
    return 0
