"""Upload a model, or evaluations with their records, to a model repository of the Hub.

    diffusers-ndc push NAMESPACE/NAME MODEL runs/a runs/b

A folder with model_index.json is a model, one with run.json an evaluation. The card of the repository gets the results
of all evaluations in it. A token comes from `hf auth login` or the variable HF_TOKEN.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from ..common.extras import require
from .arguments import check_exist, make_parser


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("push", __doc__)
    add = parser.add_argument
    add("repository", metavar="NAMESPACE/NAME", help="the repository, which is created if necessary")
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="a model, or evaluations, or both")
    args = parser.parse_args(words)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", args.repository):
        parser.error(f"`NAMESPACE/NAME` must be a Hub id, got {args.repository}.")
    check_exist(parser, "FOLDER", args.folders)
    args.models = [folder for folder in args.folders if (folder / "model_index.json").is_file()]
    args.runs = [folder for folder in args.folders if (folder / "run.json").is_file()]
    others = set(args.folders) - {*args.models, *args.runs}
    if others or len(args.models) > 1:
        parser.error(
            "`FOLDER` must be evaluations (with run.json) and at most one model (with model_index.json), got "
            f"{', '.join(map(str, args.folders))}."
        )
    return args


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    if args.runs:
        require("push", "eval")
    for folder in args.models:
        from .models import load_model

        load_model(str(folder), "cpu").push_to_hub(args.repository)
        print(f"pushed {folder} to {args.repository}")
    if args.runs:
        from ..evaluation.model_card import push_to_hub

        print(push_to_hub(args.runs, args.repository))
    return 0
