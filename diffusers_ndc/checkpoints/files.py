"""Checkpoints of Karras et al. 2022 (arXiv:2206.00364) as they lie on the disk."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common import json as strict_json
from .downloads import Location, local_copy, locate
from .state_dicts import SUFFIXES as STATE_DICT_SUFFIXES
from .state_dicts import read_state_dict
from .unpickling import read_pickled_network


PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
NETWORKS = ("SongUNet", "DhariwalUNet")
SUFFIXES = (".pkl", *STATE_DICT_SUFFIXES)
DESCRIPTION = '{"class_name": "EDMPrecond", "init_kwargs": {...}}'


@dataclass(frozen=True)
class EDMCheckpoint:
    """A published network of Karras et al.: its class, its arguments and its weights.

    Args:
        class_name: The preconditioning, one of `PRECONDITIONINGS`.
        init_kwargs: The keyword arguments with which the network was made.
        state_dict: Its tensors, by their published names.
        source: Where it was read from, for messages.

    Raises:
        ValueError: The preconditioning or the network inside has another class.
    """

    class_name: str
    init_kwargs: dict
    state_dict: dict[str, torch.Tensor]
    source: str

    def __post_init__(self):
        if self.class_name not in PRECONDITIONINGS:
            raise ValueError(f"{self.source} must hold one of {PRECONDITIONINGS}, got a {self.class_name}.")
        if self.model_type not in NETWORKS:
            raise ValueError(f"{self.source} must hold one of {NETWORKS}, got a {self.model_type}.")

    @property
    def model_type(self) -> str:
        """Class of the network inside: `SongUNet` (DDPM++, NCSN++) or `DhariwalUNet` (ADM)."""
        default = "DhariwalUNet" if self.class_name in ("EDMPrecond", "iDDPMPrecond") else "SongUNet"
        return self.init_kwargs.get("model_type", default)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 for a network without classes."""
        return self.init_kwargs.get("label_dim", 0)


def read_checkpoint(path: str | os.PathLike, argument: str = "path") -> EDMCheckpoint:
    """Read a checkpoint. Nothing in the file is run.

    Args:
        path: A published `.pkl`, whose network `ema` is read; or the network's state dict (`.pt`, `.pth`,
            `.safetensors`) with a JSON file of the same name beside it:
            `{"class_name": "EDMPrecond", "init_kwargs": {...}}`. Or the address of such a file, which is downloaded
            once: `https://HOST/FILE` or `hf://OWNER/REPOSITORY[@REVISION]/FILE`, each with `#sha256=DIGITS` at its end
            if it must have this SHA-256.
        argument: Name of the caller's argument, for messages.

    Returns:
        The checkpoint, unconverted; see `convert_network` and `convert_scheduler`.

    Raises:
        FileNotFoundError: The file does not exist, or a state dict has no JSON file beside it.
        OSError: The file cannot be downloaded.
        ValueError: The file is damaged, holds something else, or is a pickle that names what no EDM network needs; or
            an address has another form, or its file another SHA-256.
    """
    location = locate(path, argument, SUFFIXES)
    if location.suffix == ".pkl":
        with local_copy(location) as file:
            return _read_pickle(file, location.source)
    class_name, init_kwargs = _read_description(location)  # before the weights, which may be a long download
    with local_copy(location) as file:
        state_dict = read_state_dict(file, location.source)
    return EDMCheckpoint(class_name, init_kwargs, state_dict, location.source)


def _read_pickle(path: Path, source: str) -> EDMCheckpoint:
    try:
        with path.open("rb") as file:
            class_name, init_kwargs, inner_class, tensors = read_pickled_network(file)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{source} must be a pickle of an EDM network, got a file that cannot be read ({error}). Nothing in it "
            "was run."
        ) from error
    checkpoint = EDMCheckpoint(class_name, init_kwargs, tensors, source)
    if inner_class != checkpoint.model_type:
        raise ValueError(f"{source} must hold a {checkpoint.model_type}, as its arguments state, got a {inner_class}.")
    return checkpoint


def _read_description(location: Location) -> tuple[str, dict]:
    beside = location.beside(".json")
    try:
        with local_copy(beside) as file:
            return _parse_description(file, beside.name, location.source)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{location.source} must have '{beside.name}' beside it, which describes the state dict ({DESCRIPTION}), "
            "got no such file."
        ) from error


def _parse_description(file: Path, name: str, source: str) -> tuple[str, dict]:
    try:
        description = strict_json.loads(file.read_text(encoding="utf-8"))
        return description["class_name"], dict(description["init_kwargs"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{source} must have a description {DESCRIPTION} in '{name}', got a file that cannot be used "
            f"({type(error).__name__}: {error})."
        ) from error
