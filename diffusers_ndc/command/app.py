"""Start the app: a page in the browser that certifies pictures, attacks the certificates, and shows runs.

    diffusers-ndc app --model MODEL

Visitors draw or upload a picture, or choose one of --samples. The page is at http://127.0.0.1:7860, for this machine
alone; --host 0.0.0.0 opens it to the network, and --share to everybody with the link that is printed. It needs the
extra `space`.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..common.extras import require
from .arguments import check_exist, check_folder, make_parser


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("app", __doc__)
    add = parser.add_argument
    add("--model", default=os.environ.get("NDC_MODEL"), help="folder or Hub id (default: the variable NDC_MODEL)")
    add("--samples", type=Path, metavar="FOLDER", help="pictures (PNG, JPEG) to choose from; the page opens on one")
    add("--opening", metavar="NAME", help="the sample on which it opens, without its ending (default: the first)")
    add("--runs", type=Path, nargs="+", metavar="FOLDER", help="evaluations to show (default: those in the model)")
    add("--device", help="default: the accelerator, if there is one")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--share", action="store_true", help="make a public link, through a server of gradio")
    add("--no-links", action="store_true", help="load no other model from the Hub for a link with ?model=ID")
    args = parser.parse_args(words)
    if args.model is None:
        parser.error("`--model` must be a folder or Hub id, got none.")
    check_folder(parser, "--model", args.model)
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f"`--port` must be from 1 to 65535, got {args.port}.")
    if args.samples is not None and not args.samples.is_dir():
        parser.error(f"`--samples` must be a folder, got {args.samples}.")
    if args.opening is not None and args.opening not in [path.stem for path in (args.samples or Path()).glob("*")]:
        parser.error(f"`--opening` must be the name of a picture of `--samples`, got {args.opening}.")
    check_exist(parser, "--runs", [folder / "run.json" for folder in args.runs or []])
    return args


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    require("app", "space")

    from ..app import Site, launch

    site = Site(args.model, args.samples, args.opening, runs=args.runs, device=args.device, links=not args.no_links)
    launch(site, server_name=args.host, server_port=args.port, share=args.share)
    return 0
