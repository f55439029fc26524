"""What a run of the evaluation is told: the command line, and a YAML file with the same keys."""

import math
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import yaml
from accelerate.tracking import get_available_trackers
from transformers import HfArgumentParser

from ..certification.bounds import check_alpha
from ..certification.grid_noise import check_grid
from ..common.checks import check_seed, check_sigma


def _option(default, help):
    if isinstance(default, list):
        shown = " ".join(map(str, default))
        return field(default_factory=lambda: list(default), metadata={"help": f"{help} Default: {shown}."})
    shown = "" if default is None or default is False else f" Default: {default}."
    return field(default=default, metadata={"help": help + shown})


@dataclass
class Settings:
    """Settings of one run; each field's help says what it is, and in which unit."""

    model: str = field(metadata={"help": "Folder or Hub id of the diffusion model."})
    dataset: str = field(metadata={"help": "Labelled images: a Hub id, or a folder of images or Parquet files."})
    output: str = field(metadata={"help": "Folder of the run. If it holds records of the same run, they are kept."})
    dataset_config_name: str | None = _option(None, "Configuration of the data set, where it has several.")
    split: str = _option("test", "Split of the data set.")
    image_column: str | None = _option(None, "Column with the images. Default: the first one that holds images.")
    label_column: str | None = _option(None, "Column with the true classes. Default: the first one of class labels.")
    streaming: bool = _option(False, "Read the data set as a stream; only the chosen images are kept, in memory.")
    indices_file: str | None = _option(None, "Text file with the indices of the images to take, one a line.")
    skip: int = _option(1, "Take every k-th image.")
    limit: int | None = _option(None, "Take so many images at most, after --indices-file and --skip.")
    method: Literal["apndc", "epndc", "apndc-clean", "dds", "dc"] = _option(
        "apndc",
        "Base classifier: a noised diffusion classifier (apndc, epndc, apndc-clean), or diffusion denoised smoothing "
        "(dds) with an outside --classifier, or with a latent --model that has a denoiser of pixels. dc: the "
        "diffusion classifier on the clean images, no certificate.",
    )
    classifier: str | None = _option(None, "Folder or Hub id of a transformers image classifier, for --method dds.")
    sigma: float = _option(0.25, "Standard deviation of the smoothing noise, in pixel units (images in [0, 1]).")
    radii: list[float] = _option([0.25, 0.5, 0.75, 1.0], "l2 radii to report certified accuracy at, in pixel units.")
    stop_early: bool = _option(
        False, "End an image as soon as each of the --radii is proved or given up, by a bound that allows for it."
    )
    n0: int | None = _option(None, "Noisy copies that choose the class. Default: 100, or 10 with --stop-early.")
    n: int = _option(10_000, "Noisy copies that bound its probability; with --stop-early, the most that are made.")
    alpha: float = _option(0.001, "Probability with which one certificate may be wrong.")
    grid: int | None = _option(
        None,
        "For 8-bit images: draw the noise on a grid with so many steps between two of their values (16 is good), for "
        "proofs that rounding in floating point cannot break. Default: plain floating-point noise.",
    )
    batch_size: int = _option(64, "Network evaluations in one batch of one process.")
    seed: int = _option(
        0, "Seed of all noise. For images that somebody has chosen who may know it, take one that nobody knows."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _option(
        None, "Precision of the network. Default: as accelerate launch has it."
    )
    overwrite: bool = _option(False, "Delete what a run has left in --output, and start anew.")
    patience: float = _option(1800.0, "Seconds without a sign of life from any process after which a run gives up.")
    report_to: str | None = _option(None, "Tracker of accelerate: tensorboard, wandb, trackio, ..., or all.")
    push_to_hub: str | None = _option(None, "Hub id of a model repository to upload the card and the records to.")

    def __post_init__(self):
        self.radii = sorted({float(radius) for radius in self.radii})
        if self.method == "dc":
            self.sigma, self.radii, self.stop_early, self.n0, self.grid = 0.0, [0.0], False, None, None
        elif self.n0 is None:
            self.n0 = 10 if self.stop_early else 100

    @property
    def certifies(self) -> bool:
        """Whether images get certificates."""
        return self.method != "dc"

    def to_dict(self) -> dict:
        """The settings as plain values, for JSON; those of a certificate are null where there is none."""
        return {**asdict(self), **({} if self.certifies else {"n": None, "alpha": None})}

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            TypeError, ValueError: A setting is out of its range, or does not go with another one.
        """
        accepted = {"skip": 1, "limit": 1, "batch_size": 1, "n": 1, "n0": 0}
        for name, least in accepted.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; accepted is {least} or more.")
        check_seed(self.seed)
        trackers = [str(tracker) for tracker in get_available_trackers()]
        if self.report_to is not None and self.report_to not in ("all", *trackers):
            raise ValueError(f"--report-to is {self.report_to}; installed here are {trackers}, accepted also is all.")
        if not self.patience > 0:
            raise ValueError(f"--patience is {self.patience}; accepted is a number of seconds above 0.")
        if self.classifier is not None and self.method != "dds":
            raise ValueError(f"--classifier is {self.classifier} with --method {self.method}; it belongs to dds.")
        if self.certifies:
            check_sigma(self.sigma)
            check_alpha(self.alpha)
            if self.sigma == 0:
                raise ValueError("--sigma is 0; accepted for a certificate is a noise level above 0 (pixel units).")
            if self.grid is not None:
                check_grid(self.grid, self.sigma)
            if not self.radii or not all(0 <= radius < math.inf for radius in self.radii):
                raise ValueError(f"--radii are {self.radii}; accepted are radii of at least 0 (pixel units).")


def parse(argv: Sequence[str] | None = None, description: str | None = None) -> Settings:
    """Settings from a command line; `--config FILE` names a YAML file with the same keys, which the line overrules.

    Args:
        argv: The words of the line. Default: those of this process.
        description: What `--help` begins with.

    Raises:
        SystemExit: A word is not understood, a value is of a wrong type, or the file is not such a file.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(Settings, description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys; the command line wins.")
    first = HfArgumentParser([], add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    try:
        words = [] if path is None else _words(path)
        settings, _ = parser.parse_args_into_dataclasses(words + argv)
    except ValueError as error:
        parser.error(str(error))
    return settings


def _words(path: str) -> list[str]:
    """A YAML file as words of a command line."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    # a tag on what it is not for, such as !!int on nothing, fails in whatever way
    except (OSError, RecursionError, yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from None
    known = [f.name for f in fields(Settings)]
    names = {name: str(name).replace("-", "_") for name in values} if isinstance(values, dict) else None
    if names is None or not set(names.values()) <= set(known):
        given = type(values).__name__ if names is None else sorted(set(names.values()) - set(known))
        raise ValueError(f"--config {path} holds {given}; accepted are the keys {known}.")
    words = []
    for name, value in values.items():
        if value is not None:
            listed = value if isinstance(value, list) else [value]
            if any(isinstance(item, (list, dict, set)) for item in listed):
                raise ValueError(
                    f"--config {path} has a {name} of several parts; accepted is a value, or a list of them."
                )
            words += [f"--{names[name]}", *(str(item) for item in listed)]
    return words
