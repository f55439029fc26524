"""Verification of records: `evaluation.verify`, under the name of this command."""

from collections.abc import Sequence

from ..common.extras import require
from ..evaluation import verify


def main(words: Sequence[str]) -> int:
    args = verify.parse_args(list(words), "diffusers-ndc verify")
    if args.replay:
        require("verify --replay", "eval")
    return verify.run(args)
