"""Fashion-MNIST: the likelihood classifier against a classifier behind a denoiser, and one trained on noise.

    sudo apt-get install dataset-fashion-mnist
    python examples/recipes/fashion_mnist.py --source /usr/share/datasets/fashion-mnist --output runs/fashion

Trains a small class-conditional diffusion model and calibrates it, trains the baselines, certifies every 20th test
image with each method and each sigma, and writes one table from the records: OUTPUT/table/report.md. The methods:

    ndc          the Noised Diffusion Classifier (APNDC), the class sifter proposing candidates
    ndc-scores   the same, the sifter's scores counting in the loss too (level 0)
    features     the class sifter alone, without a likelihood
    dds          a ViT that was trained on clean images, behind the diffusion model as a denoiser
    gaussian     a ResNet that was trained on images with the smoothing noise, alone (one network for each sigma)
    dds-6x       as dds and gaussian, with up to six times as many noisy copies: as many evaluations as ndc may spend,
    gaussian-6x  where its copies cost six
    all-classes  as ndc, all classes at all levels, on every 200th test image: what sifting costs in certificates

All of them get the same noisy copies (one seed), and at most --n of them an image. Images stop early. With n = 1,000
and ResNets of six epochs, half as many as here, an image of `gaussian` took 304, 378 and 252 copies on average (sigma
0.25, 0.5, 1), so that a run of 500 images takes 30 to 45 minutes of a core that does 450 evaluations of the network a
second, if a copy costs six; `all-classes` takes about twice as long for its 50 images. With sigma 0.25 no radius
beyond 0.6 can be proved: 0.75 and 1 count as not certified there. Six times as many copies prove 0.75, which takes
5,500 of them: `dds-6x` needs an hour for sigma 0.25.

To go on after a kill, at any moment, give the same command again. --method and --sigma take some of the runs, so that
several commands with one --output can share the work. --dry-run does all of it with tiny networks, in a minute or two.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from steps import certify, check_same_command, run, save, say

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.diffusion.levels_table import levels_key


EXAMPLES = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "diffusers_ndc"]

METHODS = ("ndc", "ndc-scores", "features", "dds", "gaussian", "dds-6x", "gaussian-6x", "all-classes")
SIGMAS = (0.25, 0.5, 1.0)

BLOCKS = {"add_attention": False, "layers_per_block": 1}


@dataclass(frozen=True)
class Experiment:
    """How much of everything is done: options of the programs.

    Args:
        training: Of `train_class_conditional.py`.
        calibration: Of `diffusers-ndc calibrate`.
        vit: Of `train_image_classifier.py`, for the classifier of clean images.
        resnet: Of the same, for those of noisy images.
        evaluation: Of `diffusers-ndc evaluate`.
        skip: Every `skip`-th test image is taken.
        skip_all_classes: The same for all classes at all levels, a multiple of it.
    """

    training: dict[str, object]
    calibration: dict[str, object]
    vit: dict[str, object]
    resnet: dict[str, object]
    evaluation: dict[str, object]
    skip: int
    skip_all_classes: int


UNET = {
    **BLOCKS,
    "block_out_channels": [16, 32, 64],
    "norm_num_groups": 8,
    "time_embedding_dim": 128,
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
}
EDM = {"objective": "edm", "p-mean": 0.3, "p-std": 1.0, "sigma-data": 0.8, "learning-rate": 2e-3}
VIT = {"model_type": "vit", "patch_size": 4, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}

FULL = Experiment(
    training={
        "unet-config": json.dumps(UNET),
        **EDM,
        "max-train-steps": 10_000,
        "checkpointing-steps": 500,
        "mixed-precision": "bf16",
    },
    calibration={"limit": 3000, "num-copies": 2},
    vit={"config": json.dumps({**VIT, "intermediate_size": 96}), "epochs": 7, "flip": True},
    resnet={"epochs": 12, "flip": True, "mixed-precision": "bf16"},
    evaluation={"radii": [0.25, 0.5, 0.75, 1]},
    skip=20,
    skip_all_classes=200,
)

TINY_UNET = {**BLOCKS, "block_out_channels": [8, 8], "norm_num_groups": 4}
TINY_UNET |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
TINY_RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
TINY = Experiment(
    training={"unet-config": json.dumps(TINY_UNET), "max-train-steps": 2, "batch-size": 8, "lr-warmup-steps": 1},
    calibration={"limit": 40, "num-levels": 2, "candidates": [1, 6, 3], "num-copies": 1},
    vit={"config": json.dumps({**VIT, "num_hidden_layers": 1, "intermediate_size": 16}), "epochs": 1},
    resnet={"config": json.dumps(TINY_RESNET), "epochs": 1},
    evaluation={"radii": [0.05, 0.1], "n0": 2, "alpha": 0.1},
    skip=2,
    skip_all_classes=4,
)
TINY_N = 16


def main(words: list[str] | None = None) -> None:
    args = parse_args(words)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        follow(args, TINY if args.dry_run else FULL)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: what is finished is kept; give the same command again to continue")


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for everything that the recipe makes")
    add("--source", type=Path, help="folder with the four IDX files of Fashion-MNIST")
    add("--dataset", type=Path, help="instead: folder of `fashion_mnist_data.py`")
    add("--model", type=Path, help="a model that `train_class_conditional.py` has trained; it is copied")
    add("--method", nargs="+", choices=METHODS, default=METHODS, help="some of the methods (default: all)")
    add("--sigma", type=float, nargs="+", choices=SIGMAS, help="some of the noise levels (default: all)")
    add("--n", type=int, help="most noisy copies of an image (default: 1000; -6x: six times as many)")
    add("--batch-size", type=int, default=64, help="network evaluations per batch (default: 64, for a CPU)")
    add("--dry-run", action="store_true", help="all of it with tiny networks; sigma 0.25, unless --sigma names others")
    args = parser.parse_args(words)
    if not args.dry_run and (args.source is None) == (args.dataset is None):
        parser.error("`--source` or `--dataset` must be given, got both or neither.")
    for name in ("source", "dataset", "model"):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"`--{name}` must be a folder, got {folder}.")
    for name in ("n", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"`--{name.replace('_', '-')}` must be 1 or more, got {value}.")
    args.sigma = args.sigma or (SIGMAS[:1] if args.dry_run else SIGMAS)
    args.n = args.n or (TINY_N if args.dry_run else 1000)
    return args


def follow(args: argparse.Namespace, experiment: Experiment) -> None:
    """Take the steps that are left, as far as the chosen methods need them."""
    output = args.output
    dataset = None if args.dataset is None else str(args.dataset.resolve())
    facts = {"recipe": "fashion_mnist", "dry_run": args.dry_run, "n": args.n, "dataset": dataset}
    with FileLock(output / "recipe.lock"):
        check_same_command(output / "recipe.json", facts)
    data = make_data(args)
    kinds = {method.removesuffix("-6x") for method in args.method}
    if kinds != {"gaussian"}:
        train_model(args.model, data, output, experiment)
        for sigma in args.sigma:
            calibrate(output / "model", data, sigma, args.batch_size, experiment)
    if "all-classes" in kinds:
        make_unsifted(output / "model", output / "model-all-classes", args.sigma)
    if "dds" in kinds:
        train_classifier(output / "vit", data, experiment.vit)
    if "gaussian" in kinds:
        for sigma in args.sigma:
            train_classifier(output / f"resnet-{sigma:g}", data, {**experiment.resnet, "sigma": sigma})
    (output / "runs").mkdir(exist_ok=True)
    for method in args.method:
        for sigma in args.sigma:
            command = [*COMMAND, "evaluate", *options(evaluation(method, sigma, data, args, experiment))]
            certify(command, run_folder(output, method, sigma))
    folders = [run_folder(output, method, sigma) for sigma in SIGMAS for method in METHODS]
    finished = [folder for folder in folders if (folder / "done").exists()]
    run([*COMMAND, "report", *map(str, finished), "--output", str(output / "table")], stdout=subprocess.DEVNULL)
    say(f"{output / 'table' / 'report.md'}: the table of {len(finished)} runs")


def evaluation(method: str, sigma: float, data: Path, args: argparse.Namespace, experiment: Experiment) -> dict:
    """Settings of a run."""
    output, kind = args.output, method.removesuffix("-6x")
    settings: dict[str, object] = {
        "method": kind,
        "model": output / "model",
        "dataset": data,
        "split": "test",
        "skip": experiment.skip,
        "sigma": sigma,
        "n": args.n if method == kind else 6 * args.n,
        "stop-early": True,
        "batch-size": args.batch_size,
        "seed": 0,
        "output": run_folder(output, method, sigma),
        **experiment.evaluation,
    }
    if method == "ndc":
        settings["method"] = "apndc"
    elif method == "ndc-scores":
        settings |= {"method": "apndc", "sift": "scores"}
    elif method == "all-classes":
        settings |= {"method": "apndc", "model": output / "model-all-classes", "skip": experiment.skip_all_classes}
    elif kind == "dds":
        settings["classifier"] = output / "vit"
    elif kind == "gaussian":
        settings["classifier"] = output / f"resnet-{sigma:g}"
        del settings["model"]
    return settings


def run_folder(output: Path, method: str, sigma: float) -> Path:
    return output / "runs" / f"{method}-{sigma:g}"


def options(settings: dict[str, object]) -> list[str]:
    """Options of a command line; `True` is one without a value."""
    words = []
    for name, value in settings.items():
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return words


def make_data(args: argparse.Namespace) -> Path:
    """The images as Parquet."""
    if args.dataset is not None:
        return args.dataset
    data = args.output / "data"
    with FileLock(args.output / "data.lock"):
        if not data.exists():
            source = args.source
            if args.dry_run and source is None:
                source = make_stand_in(args.output / "stand-in")
            say(f"{data}: writing the images of {source}")
            new = data.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            program = str(EXAMPLES / "fashion_mnist_data.py")
            run([sys.executable, program, *options({"source": source, "output": new})])
            new.rename(data)
    return data


def train_model(trained: Path | None, data: Path, output: Path, experiment: Experiment) -> None:
    """Train the diffusion model, or go on with it; or copy one that is trained."""
    model, training = output / "model", output / "training"
    with FileLock(output / "model.lock"):
        if model.exists():
            return say(f"{model}: is there")
        if trained is None:
            say(f"{training}: training the diffusion model")
            settings = {"dataset": data, "output-dir": training, **experiment.training}
            run_training("train_class_conditional.py", settings, training)
            trained = training
        new = model.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(trained, new, ignore=shutil.ignore_patterns("checkpoints"))
        new.rename(model)


def train_classifier(folder: Path, data: Path, settings: dict) -> None:
    """Train an image classifier, or go on with it."""
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (folder / "preprocessor_config.json").exists():  # the last file
            return say(f"{folder}: is there")
        say(f"{folder}: training an image classifier")
        run_training("train_image_classifier.py", {"dataset": data, "output-dir": folder, **settings}, folder)


def run_training(program: str, settings: dict, folder: Path) -> None:
    """Run a training program, from its newest checkpoint if there is one."""
    if any(folder.glob("checkpoints/*")):
        settings = {**settings, "resume": True}
    run([sys.executable, str(EXAMPLES / program), *options(settings)])


def calibrated(model: Path) -> dict:
    """The noise levels of a saved pipeline by sigma."""
    return json.loads((model / "model_index.json").read_text(encoding="utf-8"))["levels"] or {}


def calibrate(model: Path, data: Path, sigma: float, batch_size: int, experiment: Experiment) -> None:
    """Choose noise levels and fit the class sifter, on training images; on a GPU where there is one."""
    with FileLock(model.with_suffix(".lock")):
        if levels_key(sigma) in calibrated(model):
            return say(f"{model}: is calibrated for sigma {sigma:g}")
        say(f"{model}: calibrating for sigma {sigma:g}")
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        settings = {"model": model, "dataset": data, "split": "train", "sigma": sigma, "device": device}
        settings |= {"batch-size": batch_size, **experiment.calibration}
        run([*COMMAND, "calibrate", *options(settings)])


def make_unsifted(model: Path, folder: Path, sigmas: list[float]) -> None:
    """The same model with the same noise levels, at which no class is sifted away."""
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.exists() and {levels_key(sigma) for sigma in sigmas} <= set(calibrated(folder)):
            return say(f"{folder}: is there")
        pipe = NoisedDiffusionClassifierPipeline.from_pretrained(model)
        levels = {}
        for sigma, methods in pipe.config.levels.items():
            known = {method: NoiseLevels.from_dict(values) for method, values in methods.items()}
            levels[sigma] = {method: replace(one, sifting=None).to_dict() for method, one in known.items()}
        pipe.register_to_config(levels=levels)
        pipe.register_modules(sifter=None)
        save(pipe, folder)


def make_stand_in(folder: Path) -> Path:
    """Write IDX files of a few images, each class with its own brightness."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 8)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        noise = generator.integers(0, 20, (count, 28, 28))
        images = (20 * labels[:, None, None] + noise).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(head + values.tobytes())
    return folder


if __name__ == "__main__":
    main()
