"""Fit a class sifter and choose a few noise levels for a model on labelled images; save them in the model's folder.

    diffusers-ndc calibrate --model model --dataset digits --split train --limit 1000 --sigma 0 0.25 0.5

Do not calibrate on the images that you test the model on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.extras import require
from .arguments import check_folder, make_parser


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("calibrate", __doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="pipeline folder; its model_index.json and sifter are overwritten")
    add("--dataset", required=True, help="Hub id or local folder with one image and one label column")
    add("--split", default="train")
    add("--limit", type=int, default=1000, help="number of images, from the first (default: 1000)")
    add("--sigma", type=float, nargs="+", default=[0.25], help="smoothing noise, pixel units; 0 for clean images")
    add("--method", choices=("dc", "epndc", "apndc", "apndc-clean"), help="default: dc for sigma 0, else apndc")
    add("--num-levels", type=int, default=12, help="number of levels to keep at most (default: 12)")
    add("--candidates", type=float, nargs=3, metavar=("LOW", "HIGH", "COUNT"), help="log-spaced, model units")
    add("--quantile", type=float, default=0.9995, help="share of right copies whose class survives each level")
    add("--sift", choices=("features", "losses", "none"), default="features", help="what chooses a copy's classes")
    add("--sift-quantile", type=float, default=0.998, help="share of right copies whose class is a candidate")
    add("--scores-quantile", type=float, default=0.995, help="the same, for scores that count in the loss")
    add("--num-copies", type=int, default=4, help="noisy copies of each image, with --sift features (default: 4)")
    add(
        "--cells", type=int, nargs=2, default=[1, 1], metavar=("ROWS", "COLUMNS"), help="grid of cells of the features"
    )
    add("--batch-size", type=int, default=64)
    add("--device", default="cpu")
    args = parser.parse_args(words)
    if not args.model.is_dir():
        parser.error(f"`--model` must be the folder of a saved pipeline, got {args.model}.")
    for name in ("limit", "num_levels", "num_copies", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"`--{name.replace('_', '-')}` must be 1 or more, got {getattr(args, name)}.")
    check_folder(parser, "--dataset", args.dataset)
    return args


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    require("calibrate", "eval")

    from datasets import load_dataset

    from ..common.columns import find_columns
    from ..diffusion.noise_levels import NoiseLevels
    from .models import load_model

    dataset = load_dataset(args.dataset, split=f"{args.split}[:{args.limit}]")
    image_column, label_column = find_columns(dataset.features)
    images, labels = dataset[image_column], list(dataset[label_column])  # images are decoded when they are read
    pipe = load_model(str(args.model), args.device)
    candidates = None
    if args.candidates:
        low, high, count = args.candidates
        candidates = NoiseLevels.log_grid(low, high, int(count))
    sift = None if args.sift == "none" else args.sift
    for sigma in args.sigma:
        levels = pipe.calibrate(
            images,
            labels,
            sigma,
            num_levels=args.num_levels,
            method=args.method,
            candidates=candidates,
            quantile=args.quantile,
            batch_size=args.batch_size,
            sift=sift,
            sift_quantile=args.sift_quantile,
            num_copies=args.num_copies,
            cells=tuple(args.cells),
            scores_quantile=args.scores_quantile,
        )
        pipe.save_calibration(args.model)
        pairs = ", ".join(
            f"{level:.3g} ({weight:.3g})" for level, weight in zip(levels.sigmas, levels.weights, strict=True)
        )
        print(f"sigma {sigma:g}: level (weight) {pairs}")
        fitted = pipe.sifter and pipe.sifter.find(sigma, levels.method)
        if fitted:
            print(f"sigma {sigma:g}: {fitted.expected_classes:.2f} candidate classes within {fitted.gap:.3g} nats")
    return 0
