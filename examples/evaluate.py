"""Accuracy of a model on a labelled image data set: clean, smoothed, or certified.

    python examples/evaluate.py --model examples/mnist --dataset examples/mnist/data --task classify
    python examples/evaluate.py --model examples/mnist --dataset examples/mnist/data --task certify --limit 50

Under `accelerate launch` (or torchrun) the images are shared between the processes. With `--output FILE` each finished
image is one JSON line there, in a file for each process.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from labelled_images import load_labelled_images
from tqdm.auto import tqdm

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.certificate import plurality
from diffusers_ndc.stopping import largest_provable


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="pipeline folder or Hub id")
    add("--dataset", required=True, help="Hub id or local folder with one image and one label column")
    add("--split", default="test")
    add("--limit", type=int, help="only the first so many images")
    add("--task", choices=("classify", "predict", "certify"), default="certify")
    add("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (predict, certify)")
    add("--method", choices=("dc", "epndc", "apndc", "apndc-clean"), help="default: dc for classify, else apndc")
    add("--n0", type=int, default=100, help="selection draws (certify)")
    add("--n", type=int, default=10_000, help="draws (predict, certify)")
    add("--alpha", type=float, default=0.001, help="error probability of one image's result (predict, certify)")
    add("--radii", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0], help="pixel units (certify)")
    add("--stop-early", action="store_true", help="stop each image once its --radii are proved or given up (certify)")
    add("--batch-size", type=int, default=64, help="network batch of one process")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="JSON lines, one per image")
    return parser.parse_args()


def evaluate_image(pipe, image, label: int, args) -> dict:
    """The record of one image; `correct` is what accuracy counts."""
    settings = {"method": args.method, "batch_size": args.batch_size, "seed": args.seed}
    if args.task == "classify":
        predicted = pipe([image], **settings).labels[0]
        return {"label": label, "predicted": predicted, "correct": predicted == label}
    settings |= {"sigma": args.sigma, "n": args.n, "alpha": args.alpha}
    if args.task == "predict":
        prediction = pipe.predict(image, **settings)
        return {
            "label": label,
            "predicted": prediction.label,
            "correct": prediction.label == label,
            "majority_correct": plurality(prediction.counts) == label,
            "counts": prediction.counts,
        }
    provable = largest_provable(args.sigma, args.alpha, "mixture", args.n)  # others are reported, not pursued
    radii = [radius for radius in sorted(set(args.radii)) if radius <= provable] if args.stop_early else None
    certificate = pipe.certify(image, n0=args.n0, radii=radii, **settings)
    return {"label": label, "correct": certificate.label == label, "certificate": certificate.to_dict()}


def report(records: list[dict], args) -> None:
    """Accuracy over all images, an abstention counting as wrong; certified accuracy at each radius."""

    def share(right):
        return f"{sum(right) / len(records):.1%} of {len(records)}"

    print(f"accuracy {share([record['correct'] for record in records])}")
    if args.task == "predict":
        print(f"accuracy of the plain majority {share([record['majority_correct'] for record in records])}")
    if args.task == "certify":
        radii = [record["certificate"]["radius"] if record["correct"] else -1.0 for record in records]
        for radius in args.radii:
            print(f"certified accuracy at radius {radius:g}: {share([found >= radius for found in radii])}")
        print(f"average certified radius {sum(max(radius, 0) for radius in radii) / len(radii):.3f}")
        evaluations = [record["certificate"]["evaluations"] for record in records]
        print(f"network evaluations per image {sum(evaluations) / len(evaluations):,.0f}")


def main():
    args = parse_args()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    dataset, image_column, label_column = load_labelled_images(args.dataset, args.split)
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(args.model).to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)

    indices = range(len(dataset))[: args.limit][accelerator.process_index :: accelerator.num_processes]
    # "x": records that are there already are never written over
    file = open(f"{args.output}.{accelerator.process_index}", "x") if args.output else open(os.devnull, "w")
    records = []
    with file:
        for index in tqdm(indices, disable=not accelerator.is_main_process):
            record = evaluate_image(pipe, dataset[index][image_column], dataset[index][label_column], args)
            records.append({"index": index, **record})
            print(json.dumps(records[-1]), file=file, flush=True)
    records = gather_object(records)
    if accelerator.is_main_process:
        report(records, args)
    accelerator.end_training()


if __name__ == "__main__":
    main()
