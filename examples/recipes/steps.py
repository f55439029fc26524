"""The steps of a recipe: download and convert, calibrate, plan, certify, compare.

A step whose result is there is skipped, and a result is there only as a whole: it is written elsewhere, then renamed.
So the same command goes on after a kill. A download goes on where it broke off, a run with its next image.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from comparison import compare
from filelock import FileLock, Timeout
from recipe import Recipe
from stand_in import stand_in

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.diffusion.levels_table import levels_key
from diffusers_ndc.evaluation import Settings, load_labelled_images, load_task
from diffusers_ndc.evaluation.run import LOCK_FILE


EVALUATE = Path(__file__).resolve().parents[1] / "evaluate.py"
MODEL_INDEX = NoisedDiffusionClassifierPipeline.config_name

BATCH_SIZE = 64
"""Network evaluations per batch of the calibration."""

FACTS = ("dry_run", "dataset", "classifier", "limit")
"""Options on which results depend that are kept; the runs themselves notice other settings."""


def main(recipe: Recipe, description: str) -> None:
    """Follow a recipe, as the command line says."""
    args = parse_args(recipe, description)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        with FileLock(args.output / "recipe.lock", timeout=0):
            with stand_in(recipe, args.output / "stand-in") if args.dry_run else nullcontext(recipe) as recipe:
                follow(recipe, args)
    except Timeout:
        sys.exit(f"error: `--output` must be a folder without a recipe at work, got {args.output}.")
    except (FloatingPointError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: what is finished is kept; give the same command again to continue")


def parse_args(recipe: Recipe, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, task = parser.add_argument, load_task(recipe.task)
    add("--output", type=Path, required=True, help="folder for everything that the recipe makes")
    add("--dataset", help=f"another place of the same images, a folder or Hub id (default: {task.dataset})")
    sigmas = ", ".join(f"{sigma:g}" for sigma in task.sigmas)
    add(
        "--sigma", type=float, nargs="+", choices=task.sigmas, help=f"smoothing noise, some of {sigmas} (default: all)"
    )
    add("--limit", type=int, help=f"take fewer images than the task {task.name}, which has {task.images}")
    if recipe.classifier:
        add("--classifier", help=f"image classifier, a folder or Hub id (default: {recipe.classifier})")
    add("--num-processes", type=int, default=1, help="processes that certify, one per GPU (default: 1)")
    add("--batch-size", type=int, help="network evaluations per batch (default: 64 to calibrate, auto to certify)")
    add("--plan", action="store_true", help="stop when the plans are printed, which say what the runs will cost")
    add(
        "--dry-run", action="store_true", help="do all of it with tiny stand-ins; one sigma, unless --sigma names more"
    )
    parser.set_defaults(classifier=None)
    args = parser.parse_args()
    for name in ("limit", "num_processes", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"`--{name.replace('_', '-')}` must be 1 or more, got {value}.")
    args.sigma = args.sigma or (task.sigmas[:1] if args.dry_run else task.sigmas)
    return args


def follow(recipe: Recipe, args: argparse.Namespace) -> None:
    """Take the steps that are left."""
    output, sigmas = args.output, args.sigma
    facts = {"recipe": recipe.name, **{name: getattr(args, name) for name in FACTS}}
    check_same_command(output / "recipe.json", facts)
    model, dataset = output / "model", args.dataset or load_task(recipe.task).dataset
    go_back(model)
    convert(recipe, model)
    if recipe.per_class:
        calibrate(recipe, model, dataset, sigmas, args.batch_size or BATCH_SIZE)
    commands = {sigma: evaluation(recipe, args, dataset, sigma) for sigma in sigmas}
    for sigma, command in commands.items():
        plan([*launcher(args.num_processes), *command], output / f"plan-sigma-{sigma:g}.md")
    if args.plan:
        return
    for sigma, command in commands.items():
        certify([*launcher(args.num_processes), *command], run_folder(output, sigma))
    text = compare(recipe, {sigma: run_folder(output, sigma) for sigma in sigmas}, args.dry_run)
    write(output / "comparison.md", text)
    print(text)


def check_same_command(path: Path, facts: dict) -> None:
    """Raise a `ValueError` unless what the results depend on is as in the command that began, if that noted it."""
    if not path.exists():
        write(path, json.dumps(facts))
    begun = json.loads(path.read_text(encoding="utf-8"))
    for name, value in facts.items():
        if begun.get(name, value) != value:
            option = name.replace("_", "-")
            raise ValueError(
                f"`--{option}` must be {begun[name]!r}, with which {path.parent} was begun, got {value!r}. Take "
                "another --output."
            )


def convert(recipe: Recipe, model: Path) -> None:
    """Download the checkpoints and make a pipeline of them."""
    if model.exists():
        return say(f"{model}: is there")
    say(f"{model}: downloading and converting {recipe.conditional} and {recipe.unconditional}")
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(
        recipe.conditional,
        recipe.unconditional,
        dict(enumerate(recipe.class_names)) if recipe.class_names else None,
        unconditional_arguments=recipe.unconditional_arguments,
    )
    save(pipe, model)


def calibrate(recipe: Recipe, model: Path, dataset: str, sigmas: list[float], batch_size: int) -> None:
    """Calibrate the model on training images, for the sigmas for which it is not."""
    levels = json.loads((model / MODEL_INDEX).read_text(encoding="utf-8"))["levels"] or {}
    missing = [sigma for sigma in sigmas if levels_key(sigma) not in levels]
    if not missing:
        return say(f"{model}: is calibrated for sigma {sigmas}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(model).to(device)
    images, labels = training_images(recipe, dataset, pipe)
    for sigma in missing:
        say(f"{model}: calibrating for sigma {sigma:g} on {len(images)} training images")
        pipe.calibrate(images, labels, sigma, batch_size=batch_size, **recipe.calibration)
        save(pipe, model)
    del pipe
    torch.cuda.empty_cache()  # the runs are other processes, on the same GPU


def training_images(recipe: Recipe, dataset: str, pipe: NoisedDiffusionClassifierPipeline) -> tuple[list, list[int]]:
    """The first training images of each class, and their classes.

    Raises:
        ValueError: There are too few images of a class.
    """
    data = load_labelled_images(Settings("", dataset, "", split=recipe.train_split))
    labels = data.labels(pipe.denoiser.num_classes, pipe.config.id2label)
    known = np.array([-1 if label is None else label for label in labels])
    chosen = [np.flatnonzero(known == label)[: recipe.per_class] for label in range(pipe.denoiser.num_classes)]
    fewest = min(len(numbers) for numbers in chosen)
    if fewest < recipe.per_class:
        raise ValueError(
            f"`--dataset` must have {recipe.per_class} images of each class in its split {recipe.train_split}, got "
            f"{fewest} of one class in {dataset}."
        )
    numbers = sorted(np.concatenate(chosen).tolist())
    return [data.image(number) for number in numbers], known[numbers].tolist()


def evaluation(recipe: Recipe, args: argparse.Namespace, dataset: str, sigma: float) -> list[str]:
    """The program and its options that certify the images with a sigma: all that says what is certified, and how."""
    task = load_task(recipe.task)
    if args.limit is None:
        settings = {"task": recipe.task}
    else:  # not the task any more
        settings = {**task.settings(elsewhere=dataset != task.dataset), "limit": args.limit}
    settings |= {
        "model": args.output / "model",
        "dataset": dataset,
        "classifier": args.classifier or recipe.classifier,
        "sigma": sigma,
        "output": run_folder(args.output, sigma),
        **recipe.evaluation,
    }
    if args.batch_size is not None:
        settings["batch_size"] = args.batch_size
    words = [str(EVALUATE)]
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def plan(command: list[str], path: Path) -> None:
    """Print what a run will prove and cost."""
    if not path.exists():
        say(f"{path}: a short trial, to tell the cost of the run")
        write(path, run([*command, "--plan"], stdout=subprocess.PIPE))
    say(f"{path}:\n\n{path.read_text(encoding='utf-8')}")


def certify(command: list[str], folder: Path) -> None:
    """Certify the images that are left."""
    done = folder / "done"
    if done.exists():
        return say(f"{folder}: is finished")
    folder.mkdir(exist_ok=True)
    wait_for_orphans(folder)
    say(f"{folder}: certifying")
    run(command)
    done.touch()


def launcher(num_processes: int) -> list[str]:
    """What starts a program with so many processes."""
    if num_processes == 1:
        return [sys.executable]
    words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*words, "--main_process_port", "0"]


def wait_for_orphans(folder: Path) -> None:
    """Wait for the processes of a run whose recipe was killed, without them."""
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{folder}: waiting for the processes of an earlier command, which are at work in it")
        lock.acquire()
    lock.release()


def run(command: list[str], **how) -> str:
    """Run a command. Returns what it printed if `how` says so.

    Raises:
        RuntimeError: It fails.
    """
    ended = subprocess.run(command, text=True, **how)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with the code {ended.returncode}. What is finished is kept.")
    return ended.stdout


def run_folder(output: Path, sigma: float) -> Path:
    return output / f"sigma-{sigma:g}"


def save(pipe: NoisedDiffusionClassifierPipeline, folder: Path) -> None:
    """Save a pipeline in the place of an earlier state of it, if there is one, as a whole."""
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def go_back(folder: Path) -> None:
    """Go back to the earlier state of a saved pipeline if a kill came between the two renames of `save`."""
    old = folder.with_suffix(".old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write(path: Path, text: str) -> None:
    """Write a file as a whole."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def say(text: str) -> None:
    print(text, flush=True)
