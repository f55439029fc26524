"""Certify images: print the class of each and the l2 radius that is proved for it, and record the certificates.

    diffusers-ndc certify photo.png --model MODEL --radii 0.25 0.5

Each certificate is one line that is added to --output. `diffusers-ndc verify` recomputes it from its votes, and
`diffusers-ndc replay` casts the votes again. Images of another size than the model's are resized first.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..certification.bounds import check_alpha
from ..certification.certificate import Certificate
from ..certification.grid_noise import check_grid
from ..common.checks import check_seed, check_sigma, checked_batch_size
from .arguments import check_exist, check_folder, make_parser
from .hub import check_on_hub


if TYPE_CHECKING:
    import PIL.Image


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("certify", __doc__)
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGE", help="image file")
    add("--model", required=True, help="folder or Hub id of the diffusion model")
    add("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (images in [0, 1]; default: 0.25)")
    add("--radii", type=float, nargs="+", help="stop as soon as each of these l2 radii is proved or given up")
    add(
        "--n0",
        type=int,
        help="noisy copies that choose the class (default: 100, or 10 if it may stop early)",
    )
    add("--n", type=int, default=10_000, help="noisy copies that bound its probability, or at most (default: 10000)")
    add("--alpha", type=float, default=0.001, help="error probability of each certificate (default: 0.001)")
    add("--max-evaluations", type=int, help="network evaluations for an image, then stop with what is proved")
    add("--method", help="apndc, epndc, apndc-clean, dds or features (default: apndc; dds for a latent model)")
    add("--sift", choices=("candidates", "scores", "none"), help="what the model's sifter does")
    add("--grid", type=int, help="for 8-bit images: noise on a grid of this many steps, 16 is good (default: none)")
    add("--seed", type=int, help="seed of the noise, which is recorded (default: by the operating system)")
    add("--batch-size", default="64", help="network evaluations per batch, or auto, the fastest (default: 64)")
    add("--device", help="default: the accelerator, if there is one")
    add("--output", type=Path, default=Path("record.jsonl"), help="file to add records to (default: record.jsonl)")
    args = parser.parse_args(words)
    check_exist(parser, "IMAGE", args.images)
    check_exist(parser, "--output", [args.output.parent])
    check_folder(parser, "--model", args.model)
    try:
        _check(args)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise if an option is out of its range."""
    check_sigma(args.sigma)
    if args.sigma == 0:
        raise ValueError("`--sigma` must be a noise level above 0 (pixel units), got 0.")
    check_alpha(args.alpha)
    check_seed(args.seed)
    if args.grid is not None:
        check_grid(args.grid, args.sigma)
    for name, least in {"n0": 0, "n": 1, "max_evaluations": 1}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"`--{name.replace('_', '-')}` must be {least} or more, got {value}.")
    args.batch_size = checked_batch_size(
        int(args.batch_size) if args.batch_size.isdecimal() else args.batch_size, "--batch-size"
    )
    if args.radii is not None:
        if not all(0 <= radius < math.inf for radius in args.radii):
            raise ValueError(f"`--radii` must be finite radii of at least 0 (pixel units), got {args.radii}.")
        args.radii = sorted(set(args.radii))


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    images = [_read(path) for path in args.images]
    check_on_hub("--model", args.model)

    from .models import load_model

    names = ("sigma", "n0", "n", "alpha", "method", "grid", "seed", "radii", "max_evaluations", "batch_size")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.sift is not None:
        options["sift"] = False if args.sift == "none" else args.sift
    with open(args.output, "a", encoding="utf-8") as file:
        pipe = load_model(args.model, args.device)
        for path, image in zip(args.images, images, strict=True):
            certificate = pipe.certify(image, **options)
            assert isinstance(certificate, Certificate)  # one image has one
            record = {"image": str(path), "model": args.model, "certificate": certificate.to_dict()}
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{path}: {_verdict(certificate, pipe.config.id2label)}", flush=True)
    print(f"recorded in {args.output}")
    return 0


def _read(path: Path) -> "PIL.Image.Image":
    """An image file, read completely. Raises a `ValueError` if it is none."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            image.load()
            return image.copy()
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"`IMAGE` must be an image file, got {path}: {error}") from error


def _verdict(certificate: Certificate, id2label: dict[int, str] | None) -> str:
    """Class and radius of a certificate, and what they rest on, in one line."""
    basis = f"sigma {certificate.sigma:g}, alpha {certificate.alpha:g}, {certificate.n:,} noisy copies"
    label = certificate.label
    if label is None:
        return f"abstained ({basis})"
    name = None if id2label is None else id2label.get(label)
    named = "" if name is None or name == str(label) else f" ({name})"
    radius = math.floor(certificate.radius * 1e4) / 1e4  # rounded down: what is printed is proved
    return f"class {label}{named}, l2 radius {radius:.4f} ({basis})"
