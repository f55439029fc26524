"""Cast the votes of recorded certificates again, and compare them with the records.

    diffusers-ndc replay record.jsonl          the records of `diffusers-ndc certify`
    diffusers-ndc replay runs/a --count 20     twenty certificates of an evaluation, chosen at random

A certificate passes if all votes are as recorded, or differ only where two classes tie to within round-off.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import json as strict_json
from ..common.extras import require
from ..common.places import check_place
from .arguments import check_exist, check_folder, make_parser
from .hub import check_on_hub


if TYPE_CHECKING:
    from ..pipelines.loading import Pipeline


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("replay", __doc__)
    add = parser.add_argument
    add("paths", type=Path, nargs="+", metavar="PATH", help="folder of a run, or file of `diffusers-ndc certify`")
    add("--count", type=int, help="certificates of each path to replay, chosen at random (default: all)")
    add("--model", help="folder or Hub id of the model, if it has moved since")
    add("--dataset", help="folder or Hub id of a run's images, if they have moved since")
    add("--images", type=Path, metavar="FOLDER", help="folder of the images of a file, if they have moved since")
    add("--device", help="for files (default: the accelerator, if there is one)")
    args = parser.parse_args(words)
    check_exist(parser, "PATH", args.paths)
    check_exist(parser, "--images", [args.images or Path()])
    check_folder(parser, "--model", args.model)
    if args.count is not None and args.count < 1:
        parser.error(f"`--count` must be 1 or more, got {args.count}.")
    check_folder(parser, "--dataset", args.dataset)
    return args


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    if any(path.is_dir() for path in args.paths):
        require("replay", "eval")

    from ..evaluation.verify import replay_folder

    exit_codes = []
    for path in args.paths:
        if path.is_dir():
            exit_codes.append(replay_folder(path, args.count, args.model, args.dataset))
        else:
            exit_codes.append(_replay_file(path, args))
    return 1 if any(exit_codes) else 0


def _replay_file(path: Path, args: argparse.Namespace) -> int:
    """Replay the records of a file, print a verdict on each and return the exit code."""
    from ..evaluation.verify import replay_verdict
    from ..pipelines.inputs import FAULTS

    exit_code = 0
    pipes: dict[str, Pipeline] = {}
    for place, record in _choose(path, args.count):
        try:
            recorded, again = _replay(record, pipes, args)
        except (*FAULTS, FloatingPointError) as error:
            print(f"FLAWED  {place}: {' '.join(str(error).split())}", flush=True)
            exit_code = 1
            continue
        print("\n        ".join(replay_verdict(place, recorded, again)), flush=True)
        if not recorded.agrees(again):
            exit_code = 1
    return exit_code


def _choose(path: Path, count: int | None) -> Iterator[tuple[str, Any]]:
    """The records of a file, or `count` of them by the operating system's entropy, with their places."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not entries:
        raise ValueError(f"`PATH` must hold records, got {path}, which holds none.")
    if count is not None:
        if count > len(entries):
            raise ValueError(f"`--count` must be at most {len(entries)}, the records in {path}, got {count}.")
        entries = random.SystemRandom().sample(entries, count)
    for place, line in entries:
        try:
            yield place, strict_json.loads(line)
        except ValueError:
            yield place, None


def _replay(record: Any, pipes: dict[str, "Pipeline"], args: argparse.Namespace) -> tuple[Any, Any]:
    """A recorded certificate, and the one that its noisy copies give now.

    Raises one of `FAULTS` or a `FloatingPointError` if there is no such certificate, or it cannot be replayed.
    """
    import PIL.Image

    from ..certification.certificate import Certificate
    from .models import load_model

    kinds = {"image": str, "model": str, "certificate": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kinds[name]) for name in kinds):
        raise ValueError("a record must have `image`, `model` and `certificate`, as `diffusers-ndc certify` writes.")
    certificate = Certificate.from_dict(record["certificate"])
    model = args.model or record["model"]
    if model not in pipes:
        check_place("--model", model)
        check_on_hub("--model", model)
        pipes[model] = load_model(model, args.device)
    image = Path(record["image"])
    if args.images is not None:
        image = args.images / image.name
    with PIL.Image.open(image) as opened:
        return certificate, pipes[model].replay(opened, certificate)
