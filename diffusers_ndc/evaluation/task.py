"""Evaluation tasks: named, versioned settings that make the results of different models and methods comparable.

A task fixes what is asked: which images, which l2 radii, and how strong the evidence of a certificate must be (`n0`,
`n`, `alpha`, and whether an image may stop early). What answers is free: model, method, sifter, classifier, the seed
of the noise and its grid, batch size and precision. The place of the images is free too, as long as they are the same
images in the same order: reports compare the hashes of the images.

The tasks of this package are the YAML files in `tasks/`. A version is never changed once it is published.
"""

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..certification.bounds import MIN_ALPHA
from ..common.yaml_file import read_yaml


FOLDER = Path(__file__).with_name("tasks")

Method = Literal["apndc", "epndc", "apndc-clean", "dds", "features", "gaussian", "dc"]


@dataclass(frozen=True)
class Task:
    """An evaluation task. Two tasks are the same only if all of their values are.

    Args:
        name: Its name: lower-case letters, digits, dots, dashes and underscores.
        version: Its version, 1 or more. Results of different versions are not compared.
        dataset: Hub id (or folder) of the labelled images.
        split: Split of the data set.
        skip: Every `skip`-th image of the split is taken, starting with the first.
        images: Number of images that are taken.
        sigmas: Standard deviations of the smoothing noise (pixel units). A run has one of them, by default the first.
        radii: l2 radii at which certified accuracy is reported (pixel units).
        n0: Noisy copies that choose the candidate.
        n: Noisy copies that bound its probability; with `stop_early`, the largest number of them.
        alpha: Error probability of each certificate.
        stop_early: Whether an image is finished as soon as each radius is proved or given up.
        method: The base classifier of a run that does not name another one.
        dataset_config_name: Configuration of the data set, if it has several.
        image_column: Column with the images. Default: the first with images.
        label_column: Column with the true classes. Default: the first with class labels.

    Raises:
        ValueError: A value is invalid.

    Example:
        >>> task = load_task("cifar10-l2")
        >>> task.images, task.sigmas, task.n
        (512, (0.25, 0.5, 1.0), 10000)
    """

    name: str
    version: int
    dataset: str
    split: str
    skip: int
    images: int
    sigmas: tuple[float, ...]
    radii: tuple[float, ...]
    n0: int
    n: int
    alpha: float
    stop_early: bool
    method: Method = "apndc"
    dataset_config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self):
        _check(
            "name",
            isinstance(self.name, str) and re.fullmatch("[a-z0-9][a-z0-9._-]{0,63}", self.name),
            "at most 64 lower-case letters, digits, dots, dashes and underscores, starting with a letter or digit",
            self.name,
        )
        for name in ("dataset", "split"):
            value = getattr(self, name)
            _check(name, isinstance(value, str) and value != "", "a text", value)
        for name in ("dataset_config_name", "image_column", "label_column"):
            value = getattr(self, name)
            _check(name, value is None or (isinstance(value, str) and value != ""), "a text, or left out", value)
        for name, least in {"version": 1, "skip": 1, "images": 1, "n0": 0, "n": 1}.items():
            value = getattr(self, name)
            _check(name, type(value) is int and value >= least, f"a whole number of at least {least}", value)
        alpha = self.alpha
        expected = f"an error probability between 0 and 1, at least {MIN_ALPHA:g}"
        _check("alpha", _is_number(alpha) and MIN_ALPHA <= alpha < 1, expected, alpha)
        _check("stop_early", type(self.stop_early) is bool, "true or false", self.stop_early)
        methods = get_args(Method)
        _check("method", isinstance(self.method, str) and self.method in methods, f"one of {methods}", self.method)
        object.__setattr__(self, "sigmas", _ascending("sigmas", self.sigmas, sys.float_info.min))
        object.__setattr__(self, "radii", _ascending("radii", self.radii, 0.0))

    @classmethod
    def from_dict(cls, values: Any) -> "Task":
        """Make a task of plain values, as a YAML file or `run.json` has them.

        Raises:
            ValueError: A key is missing or unknown, or a value is invalid.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a task must have keys and values, got a {type(values).__name__}.")
        known = [f.name for f in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ValueError(f"the keys of a task must be among {known}, got {_shown(unknown[0])}.")
        needed = [f.name for f in fields(cls) if f.default is MISSING]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"a task must have the keys {needed}, got none of {missing}.")
        return cls(**values)

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{self.name}, version {self.version}"

    def settings(self, elsewhere: bool = False) -> dict[str, Any]:
        """The settings of a run of this task, by name: those that are fixed, and those that a run may have otherwise.

        Args:
            elsewhere: Whether the images lie elsewhere than in `dataset`, where configuration and columns may have
                other names.
        """
        names = ["dataset", "split", "skip", "n0", "n", "alpha", "stop_early", "method"]
        if not elsewhere:
            names += ["dataset_config_name", "image_column", "label_column"]
        values = {name: getattr(self, name) for name in names}
        return {**values, "limit": self.images, "sigma": self.sigmas[0], "radii": list(self.radii)}

    def differing(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a run that contradict the task, with the value of the task (`None`: it has no such setting).

        Args:
            settings: Settings of a run, from `Settings` or from its `run.json`. A run that classifies clean images
                (method `dc`) has no settings of certificates.
        """
        fixed: dict[str, Any] = {"indices_file": None, "skip": self.skip, "limit": self.images}
        if settings.get("dataset") == self.dataset:
            for name in ("dataset_config_name", "split", "image_column", "label_column"):
                fixed[name] = getattr(self, name)
        if settings.get("method") != "dc":
            fixed |= {"radii": list(self.radii), "n0": self.n0, "n": self.n, "alpha": self.alpha}
            fixed |= {"stop_early": self.stop_early, "max_copies_per_radius": None, "max_evaluations": None}
        return {name: value for name, value in fixed.items() if settings.get(name) != value}


def load_task(name: str) -> Task:
    """Load a task of this package by its name, or one of your own from a YAML file with the same keys.

    Args:
        name: Name of a task, or path of a YAML file.

    Raises:
        ValueError: There is no such task, or the file is no valid one.

    Example:
        >>> load_task("mnist-l2").title
        'mnist-l2, version 1'
    """
    names = task_names()
    if name in names:
        return Task.from_dict(read_yaml(FOLDER / f"{name}.yaml", "--task"))
    if not os.path.isfile(name):
        raise ValueError(f"`--task` must be one of {names}, or a YAML file with the keys of a task, got {name}.")
    try:
        task = Task.from_dict(read_yaml(name, "--task"))
        check_name(task)
    except ValueError as error:
        raise ValueError(f"`--task` must be a valid task, got {name}: {error}") from None
    return task


def check_name(task: Task) -> None:
    """Raise a `ValueError` if a task has the name and version of one of this package, and other values."""
    if task.name in task_names():
        known = load_task(task.name)
        if task.version == known.version and task != known:
            raise ValueError(
                f"a task must have a name of its own, got the name and version of {known.title}, a task of this "
                "package, with other values."
            )


def task_names() -> list[str]:
    """Names of the tasks of this package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _check(name: str, valid: object, expected: str, value: Any) -> None:
    if not valid:
        raise ValueError(f"`{name}` of a task must be {expected}, got {_shown(value)}.")


def _ascending(name: str, values: Any, least: float) -> tuple[float, ...]:
    """The values as floats, which must be different numbers in ascending order, each at least `least`."""
    valid = isinstance(values, (list, tuple)) and len(values) > 0
    valid = valid and all(_is_number(value) and value >= least for value in values)
    valid = valid and all(low < high for low, high in zip(values, values[1:], strict=False))
    above = "of at least 0" if least == 0 else "above 0"
    _check(name, valid, f"one or more finite numbers {above} (pixel units) in ascending order", values)
    return tuple(float(value) for value in values)


def _is_number(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    return abs(value) <= sys.float_info.max if type(value) is int else math.isfinite(value)


def _shown(value: Any) -> str:
    """A value for a message. A YAML file may hold values that are too long to show."""
    if isinstance(value, (list, tuple)) and len(value) <= 20 and all(map(_is_number, value)):
        return str(list(value))
    if value is None or isinstance(value, (bool, float, str)):
        text = repr(value)
        return text if len(text) <= 100 else f"{text[:100]}..."
    if type(value) is int:
        return str(value) if abs(value) <= sys.float_info.max else "an integer beyond the range of floats"
    return f"a {type(value).__name__}"
