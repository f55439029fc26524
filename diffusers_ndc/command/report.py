"""The report of runs: `evaluation.report`, under the name of this command."""

from collections.abc import Sequence

from ..common.extras import require


def main(words: Sequence[str]) -> int:
    require("report", "eval")

    from ..evaluation import report

    report.main(list(words), "diffusers-ndc report")
    return 0
