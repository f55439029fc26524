"""Accuracy of a model on a labelled image data set: clean, smoothed, or certified.

    python examples/evaluate.py --model examples/mnist --dataset examples/mnist/data --task classify
    python examples/evaluate.py --model examples/mnist --dataset examples/mnist/data --task certify --limit 50

Under `accelerate launch` (or torchrun) the images are shared between the processes. With `--output DIR` each finished
image is one JSON line there, in a file for each process, beside the settings (`run.json`); a certification gets its
report (`report.md`, `report.json`, `certified_accuracy.png`), which can be made again from the records alone:

    python -m diffusers_ndc.evaluation.report DIR
"""

import argparse
import platform
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from labelled_images import load_labelled_images
from tqdm.auto import tqdm

import diffusers_ndc
from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.certificate import plurality
from diffusers_ndc.evaluation.records import RecordWriter, read_records, write_run
from diffusers_ndc.evaluation.report import write_report
from diffusers_ndc.images import to_pixel_batch
from diffusers_ndc.noise import check_noisy_range
from diffusers_ndc.stopping import largest_provable


# What reading an image raises when its own data are at fault: PIL has no common class for that.
FAULTS = (OSError, ValueError, TypeError, SyntaxError, PIL.Image.DecompressionBombError)


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
    add("--n0", type=int, help="selection draws (certify; default: 100, or 10 with --stop-early)")
    add("--n", type=int, default=10_000, help="draws (predict, certify)")
    add("--alpha", type=float, default=0.001, help="error probability of one image's result (predict, certify)")
    add("--radii", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0], help="pixel units (certify)")
    add("--stop-early", action="store_true", help="stop each image once its --radii are proved or given up (certify)")
    add("--batch-size", type=int, default=64, help="network batch of one process")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="new folder for the settings, the records of all images, and the report")
    args = parser.parse_args()
    args.method = args.method or ("dc" if args.task == "classify" else "apndc")
    if args.n0 is None:
        args.n0 = 10 if args.stop_early else 100
    return args


def write_settings(pipe, args) -> None:
    """All that the results depend on, into the run's folder."""
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    libraries = ("accelerate", "datasets", "diffusers", "numpy", "pillow", "scipy", "torch", "transformers")
    versions = {"python": platform.python_version(), "diffusers-ndc": diffusers_ndc.__version__}
    versions |= {library: version(library) for library in libraries}
    id2label = pipe.config.id2label
    write_run(args.output, {**settings, "id2label": id2label and dict(id2label), "versions": versions})


def read_image(pipe, image) -> torch.Tensor:
    """One image of the data set as the network takes it, shape `(C, H, W)`; raises one of `FAULTS`."""
    batch, _ = to_pixel_batch(image, pipe.unet.config.in_channels, pipe.denoiser.image_size)
    pipe.denoiser.check_images(batch)
    check_noisy_range(batch, sigma=0)
    return batch[0]


def evaluate_image(pipe, image: torch.Tensor, label: int, args) -> dict:
    """The record of one image, but for its index and time."""
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
    return {"image_hash": certificate.image_hash, "label": label, "certificate": certificate.to_dict()}


def report(records: list[dict], args) -> None:
    """Accuracy over the images that could be read, an abstention counting as wrong; certified at each radius."""
    failed = [record for record in records if "failed" in record]
    for record in failed:
        print(f"image {record['index']} failed: {record['failed']}")
    records = [record for record in records if "failed" not in record]
    if not records:
        raise SystemExit("no image could be read")

    def share(right):
        return f"{sum(right) / len(records):.1%} of {len(records)}"

    if args.task == "certify":
        records = [{**record, "correct": record["certificate"]["label"] == record["label"]} for record in records]
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
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        if held := len(read_records(args.output)):
            raise SystemExit(f"--output {args.output} already holds {held} records; accepted is a new folder.")
        accelerator.wait_for_everyone()  # nobody writes before all have looked
    dataset, image_column, label_column = load_labelled_images(args.dataset, args.split)
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(args.model).to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    if args.output and accelerator.is_main_process:
        write_settings(pipe, args)

    indices = range(len(dataset))[: args.limit][accelerator.process_index :: accelerator.num_processes]
    records = []
    with RecordWriter(args.output, accelerator.process_index) if args.output else nullcontext() as writer:
        for index in tqdm(indices, disable=not accelerator.is_main_process):
            start = time.perf_counter()
            try:
                row = dataset[index]
                image, label = read_image(pipe, row[image_column]), row[label_column]
            except FAULTS as error:
                record = {"failed": f"{type(error).__name__}: {error}"}
            else:
                record = evaluate_image(pipe, image, label, args)
            records.append({"index": index, **record, "seconds": time.perf_counter() - start})
            if writer:
                writer.write(records[-1])
    records = sorted(gather_object(records), key=lambda record: record["index"])
    if accelerator.is_main_process:
        if args.output and args.task == "certify":
            write_report([args.output], args.output)
        report(records, args)
    accelerator.end_training()


if __name__ == "__main__":
    main()
