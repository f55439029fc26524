"""Verify recorded certificates: recompute bound and radius from the votes and, on request, cast the votes again.

    python -m diffusers_ndc.evaluation.verify FILE... [--replay]

Without `--replay` this runs on numpy and scipy alone: no torch, no model, no images.
"""

import argparse
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from ..certification.bound_names import ANYTIME
from ..certification.certificate import Certificate
from ..certification.lipschitz import LipschitzCertificate
from ..common import json as strict_json


PROGRAM = "python -m diffusers_ndc.evaluation.verify"

LISTED = 20
"""Largest number of moved votes that are listed for one certificate."""


def check_file(path: Path) -> Iterator[tuple[str, Certificate | LipschitzCertificate | None, str | None]]:
    """Check all certificates of a file.

    Args:
        path: A JSON file with one certificate of either kind, or JSON lines with one each. A line may also be the
            record of an image from a run, with its certificate under `certificate`. Records without one (clean images,
            images that failed) are skipped.

    Yields:
        For each certificate: its place (`path` or `path:line`), the certificate or `None` if it cannot be read, and
        its flaw or `None` if it is sound.

    Raises:
        OSError: The file cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        strict_json.loads(text)
        entries = {str(path): text}
    except ValueError:
        entries = {f"{path}:{number}": line for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    for place, entry in entries.items():
        try:
            data = strict_json.loads(entry)
            if isinstance(data, dict) and "index" in data and "certificate" not in data:
                continue
            certificate, flaw = _check(data)
        except (TypeError, ValueError) as error:
            certificate, flaw = None, str(error)
        yield place, certificate, flaw


def _check(data: object) -> tuple[Certificate | LipschitzCertificate, str | None]:
    """The certificate in an entry of a file, and its flaw or `None`."""
    if isinstance(data, dict) and "certificate" in data:
        data = data["certificate"]
    if not isinstance(data, dict):
        raise ValueError(f"`certificate` must be a dictionary, got {type(data).__name__}.")
    kind = LipschitzCertificate if "score_sums" in data else Certificate
    certificate = kind.from_dict(data)
    if "digest" not in data:
        return certificate, "there is no digest"
    return certificate, certificate.flaw


def parse_args(argv: list[str] | None = None, prog: str = PROGRAM) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Recompute bound and radius of certificates from their votes, without torch, model or images.",
        epilog="Exit code: 0 if all certificates are sound (or there are none), 1 if one is not, 2 if a file cannot "
        "be read.",
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="certificates as JSON, or the records of a run")
    add("--replay", action="store_true", help="also cast the votes of the runs again; needs torch, model and images")
    add("--count", type=int, help="number of certificates of each run to replay, chosen at random (default: all)")
    add("--model", help="folder or Hub id of the model (or classifier), if it has moved since the run")
    add("--dataset", help="folder or Hub id of the images, if they have moved since the run")
    args = parser.parse_args(argv)
    if not args.replay and (args.count, args.model, args.dataset) != (None, None, None):
        parser.error("`--count`, `--model` and `--dataset` must be used together with `--replay`.")
    return args


def main():
    sys.exit(run(parse_args()))


def run(args: argparse.Namespace) -> int:
    """Check the files that a command line names, print what is found, and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # characters of a file or its name that the terminal cannot print must not end the check
        sys.stdout.reconfigure(errors="backslashreplace")
    exit_codes = [_verify_file(path) for path in args.files]
    if args.replay:
        folders = sorted({path.parent for path in args.files})
        exit_codes += [replay_folder(folder, args.count, args.model, args.dataset) for folder in folders]
    return max(exit_codes)


def _verify_file(path: Path) -> int:
    """Print a verdict on each certificate of a file and return the exit code."""
    exit_code = certificates = 0
    try:
        for place, certificate, flaw in check_file(path):
            certificates += 1
            if certificate is None or flaw is not None:
                print(f"FLAWED  {place}: {flaw}")
                exit_code = 1
            else:
                print(f"sound   {place}: {_summary(certificate)}, n = {certificate.n:,}")
    except OSError as error:
        print(f"UNREAD  {path}: {error}")
        return 2
    if certificates == 0:
        print(f"none    {path}: there are no certificates")
    return exit_code


def replay_folder(folder: Path, count: int | None, model: str | None, dataset: str | None) -> int:
    """Cast the votes of a run again, print a verdict on each certificate and return the exit code."""
    from .replay import replay  # imports torch, which a check without replay does not need

    exit_code = 0
    try:
        for replayed in replay(folder, count, model, dataset):
            place, recorded, again = f"{folder}, image {replayed.index}", replayed.certificate, replayed.again
            if recorded is None or again is None:
                print(f"FLAWED  {place}: {replayed.problem}", flush=True)
                exit_code = 1
            else:
                print("\n        ".join(replay_verdict(place, recorded, again)), flush=True)
                if not recorded.agrees(again):
                    exit_code = 1
    except (OSError, TypeError, ValueError) as error:
        print(f"UNREAD  {folder}: {error}")
        exit_code = 2
    return exit_code


def replay_verdict(place: str, recorded: Certificate, again: Certificate) -> Iterator[str]:
    """What is to be said of a replay, line by line."""
    comparison, agrees = recorded.compare(again), recorded.agrees(again)
    word = "again " if agrees else "MOVED "
    if comparison.moved == 0 and agrees:
        yield f"{word}  {place}: {_summary(again)}, {recorded.votes:,} votes as recorded"
        return
    yield (
        f"{word}  {place}: {comparison.moved:,} of {recorded.votes:,} votes, {comparison.unexplained:,} of them not "
        f"explained by near-ties ({len(again.near_ties):,} copies are); it is {_summary(again)} now"
    )
    if recorded.vote_sequence is None and recorded.bound not in ANYTIME:
        yield f"a record with the bound {recorded.bound} must have a `vote_sequence`, got None"
    if recorded.vote_sequence is None and recorded.device not in (None, "cpu"):
        yield f"version 0.1.0 drew noise on the device ({recorded.device}): its votes cannot be cast again elsewhere"
    for vote in comparison.votes[:LISTED]:
        why = "no near-tie" if vote.gap is None else f"a near-tie, relative gap {vote.gap:.1e}"
        yield f"draw {vote.number} ({vote.stage}): class {vote.recorded} there, {vote.replayed} here, {why}"
    if not comparison.draw_by_draw:
        yield f"votes there: {recorded.selection_counts}, then {recorded.counts}"
        yield f"votes here:  {again.selection_counts}, then {again.counts}"
        for tie in again.near_ties[:LISTED]:
            classes = f"{tie.label} and {tie.other}"
            yield f"draw {tie.number} ({tie.stage}): {classes} nearly tie, relative gap {tie.gap:.1e}"


def _summary(certificate: Certificate | LipschitzCertificate) -> str:
    label = "abstained" if certificate.abstained else f"label {certificate.label}"
    radius = math.floor(certificate.radius * 1e4) / 1e4  # rounded down: what is printed is proved
    return f"{label}, radius {radius:.4f}"


if __name__ == "__main__":
    main()
