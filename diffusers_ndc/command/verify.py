"""Verification of records: `evaluation.verify`, under the name of this command."""

from collections.abc import Sequence

from ..evaluation import verify


def main(words: Sequence[str]) -> int:
    return verify.run(verify.parse_args(list(words), "diffusers-ndc verify"))
