"""Settings of an evaluation run. `settings_parser` reads them from a command line and a YAML file."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from ..certification.bound_names import default_bound
from ..certification.bounds import check_alpha
from ..certification.grid_noise import check_grid
from ..certification.stopping import largest_provable
from ..common.checks import check_kind, check_number, check_seed, check_sigma, checked_batch_size, plain_number
from ..common.options import option as _option
from ..common.options import required
from ..common.places import check_place
from .task import Method, Task, check_name


LIMITS = ("max_copies_per_radius", "max_evaluations")
"""Settings that limit what an image may cost. A run that does not state one has no such limit."""

OPTIONAL = (*LIMITS, "sift", "task")
"""Settings that a run states only if they are given."""


@dataclass
class Settings:
    """Settings of one run. The help of each field says what it is, and in which unit."""

    model: str | None = required("Folder or Hub id of the diffusion model. With --method gaussian there is none.")
    dataset: str = required("Labelled images: a Hub id, or a folder of images or Parquet files.")
    output: str = required("Folder of the run. Records of the same run in it are kept.")
    dataset_config_name: str | None = _option(None, "Configuration of the data set, if it has several.")
    split: str = _option("test", "Split of the data set.")
    image_column: str | None = _option(None, "Column with the images. Default: the first with images.")
    label_column: str | None = _option(None, "Column with the true classes. Default: the first with class labels.")
    streaming: bool = _option(False, "Read the data set as a stream, and keep only the chosen images, in memory.")
    indices_file: str | None = _option(None, "Text file with the indices of the images to take, one per line.")
    skip: int = _option(1, "Take every k-th image.")
    limit: int | None = _option(None, "Take at most this many images, after --indices-file and --skip.")
    method: Method = _option(
        "apndc",
        "Base classifier: a noised diffusion classifier (apndc, epndc, apndc-clean), or diffusion denoised smoothing "
        "(dds) with an external --classifier, or with a latent --model that has a pixel denoiser. features: the "
        "model's sifter alone, without a likelihood. gaussian: an external --classifier alone, for a network that was "
        "trained on images with Gaussian noise; without a --model. dc: the diffusion classifier on the clean images, "
        "without certificates.",
    )
    sift: Literal["candidates", "scores", "none"] | None = _option(
        None,
        "What the model's sifter does for each noisy copy: choose its candidate classes, or count in the loss too. "
        "Default: candidates, if it was fitted for this method and sigma.",
    )
    classifier: str | None = _option(
        None, "Folder or Hub id of a transformers image classifier, for --method dds or gaussian."
    )
    sigma: float = _option(0.25, "Standard deviation of the smoothing noise, in pixel units (images in [0, 1]).")
    radii: list[float] = _option([0.25, 0.5, 0.75, 1.0], "l2 radii to report certified accuracy at, in pixel units.")
    stop_early: bool = _option(
        False, "Finish an image as soon as each of the --radii is proved or given up, with a bound that allows this."
    )
    max_copies_per_radius: float | None = _option(
        None,
        "With --stop-early: give an image up when one more of the --radii would cost more noisy copies than this, in "
        "expectation; 50000 saves a fifth to a half of the copies, and loses a few radii. Default: no limit.",
    )
    max_evaluations: int | None = _option(
        None,
        "With --stop-early: network evaluations for an image; when they are spent, it is finished with what is proved "
        "by then. Default: no limit.",
    )
    n0: int | None = _option(None, "Noisy copies that choose the candidate. Default: 100, or 10 with --stop-early.")
    n: int = _option(10_000, "Noisy copies that bound its probability; with --stop-early, the largest number of them.")
    alpha: float = _option(0.001, "Error probability of each certificate.")
    grid: int | None = _option(
        None,
        "For 8-bit images: draw the noise on a grid with this many steps between two of their values (16 is good), "
        "for proofs that rounding in floating point cannot break. Default: plain floating-point noise.",
    )
    batch_size: str = _option(
        "auto", "Network evaluations per batch of one process: a number, or auto, what is fastest in a short trial."
    )
    seed: int = _option(
        0, "Seed of all noise. If the images come from somebody who may know the seed, take one that nobody knows."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _option(
        None, "Precision of the network. Default: the setting of accelerate launch."
    )
    plan: bool = _option(
        False,
        "Start no run: print what it would prove and cost, and which sigma would be the best, from a short trial on "
        "images of --split that the run does not take, if there are any left.",
    )
    plan_images: int = _option(32, "Images of the trial of --plan.")
    overwrite: bool = _option(False, "Delete the records of a run in --output, and start anew.")
    patience: float = _option(1800.0, "Seconds without a sign of life from any process after which a run gives up.")
    report_to: str | None = _option(None, "A tracker of accelerate: tensorboard, wandb, trackio, ..., or all.")
    push_to_hub: str | None = _option(None, "Hub id of a model repository to upload the card and the records to.")
    task: Task | None = _option(
        None,
        "Name of an evaluation task, or a YAML file with one. It fixes images, radii, n0, n, alpha and stopping, and "
        "--sigma must be one of its own (default: the first). Model, method, sifter, classifier, seed, grid, batch "
        "size and precision are free. --dataset may name a copy of its data set, with its images in their order.",
    )

    def __post_init__(self):
        self.radii = sorted({float(radius) for radius in self.radii})
        for name in ("sigma", "alpha", "max_copies_per_radius", "patience"):
            setattr(self, name, plain_number(getattr(self, name)))
        if isinstance(self.batch_size, str) and self.batch_size.isdecimal():  # from the command line
            object.__setattr__(self, "batch_size", int(self.batch_size))
        if not self.certifies:
            self.sigma = 0.0
            self.radii = [0.0]
            self.stop_early = False
            self.max_evaluations = None
            self.n0 = None
            self.grid = None
        elif self.n0 is None:
            self.n0 = 10 if self.stop_early else 100
        if not self.stop_early or self.max_copies_per_radius == math.inf:
            self.max_copies_per_radius = None

    @property
    def certifies(self) -> bool:
        """Whether images get certificates."""
        return self.method != "dc"

    @property
    def has_model(self) -> bool:
        """Whether there is a diffusion model."""
        return self.method != "gaussian"

    def to_dict(self) -> dict:
        """Convert to plain values, for JSON. In a run without certificates, `n` and `alpha` are null.

        `OPTIONAL` settings that are `None` are left out, so that a run without them has the description of one from
        before there were any.
        """
        values = asdict(self)
        for name in OPTIONAL:
            if values[name] is None:
                del values[name]
        if not self.certifies:
            values["n"] = None
            values["alpha"] = None
        return values

    def check(self) -> None:
        """Raise if a setting is invalid, as far as this is known before anything is loaded.

        Raises:
            TypeError, ValueError: A setting is out of its range, or does not go with another one.
        """
        leasts = {"skip": 1, "limit": 1, "n": 1, "n0": 0, "max_evaluations": 1, "plan_images": 2}
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise TypeError(f"`--{name.replace('_', '-')}` must be a whole number, got {value!r}.")
            if value is not None and value < least:
                raise ValueError(f"`--{name.replace('_', '-')}` must be {least} or more, got {value}.")
        checked_batch_size(self.batch_size, "--batch-size")
        check_seed(self.seed)
        check_kind("task", self.task, Task, type(None))
        if self.task is not None:
            self._check_task(self.task)
        if self.report_to is not None:
            _check_tracker(self.report_to)
        expected = "a number of seconds above 0"
        if not check_number("--patience", self.patience, expected) > 0:
            raise ValueError(f"`--patience` must be {expected}, got {self.patience}.")
        self._check_networks()
        if self.certifies:
            self._check_certification()
        elif self.plan:
            raise ValueError(
                f"`--plan` must be left out with --method {self.method}, which has no certificates, got it."
            )

    def check_places(self) -> None:
        """Raise if model, data set or classifier can only be folders, and there are none.

        Raises:
            TypeError, ValueError: One of them is not there.
        """
        for name in ("model", "dataset", "classifier"):
            if getattr(self, name) is not None:
                check_place(f"--{name}", getattr(self, name))

    def _check_networks(self) -> None:
        """Raise a `ValueError` unless model, classifier and sifter go with the method."""
        method = self.method
        if self.has_model != (self.model is not None):
            must = "be given" if self.has_model else "be left out"
            raise ValueError(f"`--model` must {must} with --method {method}, got {self.model or 'none'}.")
        if method == "gaussian" and self.classifier is None:
            raise ValueError("`--classifier` must be given with --method gaussian, got none.")
        if self.classifier is not None and method not in ("dds", "gaussian"):
            raise ValueError(
                f"`--classifier` must be left out with --method {method}, got {self.classifier}. "
                "It belongs to --method dds or gaussian."
            )
        if self.sift is not None and method in ("features", "gaussian"):
            raise ValueError(f"`--sift` must be left out with --method {method}, got {self.sift}.")

    def _check_task(self, task: Task) -> None:
        """Raise a `ValueError` if a setting contradicts the task."""
        check_name(task)
        values = self.to_dict()
        for name, expected in task.differing(values).items():
            of_task = "which has no such setting" if expected is None else f"which has {expected}"
            raise ValueError(
                f"`--{name.replace('_', '-')}` must be left out with --task {task.name}, {of_task}, got "
                f"{values.get(name)}."
            )
        if self.certifies and self.sigma not in task.sigmas:
            raise ValueError(
                f"`--sigma` must be one of {list(task.sigmas)} with --task {task.name}, got {self.sigma}."
            )

    @property
    def bound(self) -> str:
        """Name of the bound of the certificates."""
        return default_bound(self.stop_early)

    def provable_radii(self, num_classes: int) -> list[float]:
        """The radii that `n` copies prove if they all agree. Larger ones are reported, but not tried.

        Args:
            num_classes: Number of classes of the model.

        Raises:
            ValueError: There are none.
        """
        alpha = self.alpha
        if not self.n0:  # the classes share the error probability
            alpha = self.alpha / num_classes
        largest = largest_provable(self.sigma, alpha, self.bound, self.n)
        radii = [radius for radius in self.radii if radius <= largest]
        if not radii:
            raise ValueError(f"`--radii` must have one of at most {largest:.4g} with --n {self.n}, got {self.radii}.")
        return radii

    def _check_certification(self) -> None:
        check_sigma(self.sigma)
        check_alpha(self.alpha)
        if self.sigma == 0:
            raise ValueError("`--sigma` must be a noise level above 0 (pixel units) for a certificate, got 0.")
        if self.grid is not None:
            check_grid(self.grid, self.sigma)
        price, expected = self.max_copies_per_radius, "a number of noisy copies above 0, or inf"
        if price is not None and not check_number("--max-copies-per-radius", price, expected) > 0:
            raise ValueError(f"`--max-copies-per-radius` must be {expected}, got {price}.")
        if self.max_evaluations is not None and not self.stop_early:
            raise ValueError(
                f"`--max-evaluations` must be left out without --stop-early, got {self.max_evaluations}: a bound for "
                "a fixed number of copies does not allow for a budget."
            )
        if not self.radii or not all(0 <= radius < math.inf for radius in self.radii):
            raise ValueError(f"`--radii` must be finite radii of at least 0 (pixel units), got {self.radii}.")


def _check_tracker(name: str) -> None:
    """Raise a `ValueError` unless a tracker is installed."""
    from accelerate.tracking import get_available_trackers  # imports torch, which few settings need to be checked

    trackers = ["all", *(str(tracker) for tracker in get_available_trackers())]
    if name not in trackers:
        raise ValueError(f"`--report-to` must be one of {trackers}, which are installed, got {name}.")
