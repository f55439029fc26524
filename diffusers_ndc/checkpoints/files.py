"""Checkpoints of Karras et al. 2022 (arXiv:2206.00364) as they lie on the disk."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..common import json as strict_json
from .unpickling import read_pickled_network


PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
NETWORKS = ("SongUNet", "DhariwalUNet")
SUFFIXES = (".pkl", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class EDMCheckpoint:
    """A network of Karras et al. as it was published: what it is, and its weights.

    Args:
        class_name: The preconditioning, one of `PRECONDITIONINGS`.
        init_kwargs: The keywords that the network was made with.
        state_dict: Its tensors, by their published names.
        source: Where it was read from, for messages.

    Raises:
        ValueError: The class is another one.
    """

    class_name: str
    init_kwargs: dict
    state_dict: dict[str, torch.Tensor]
    source: str

    def __post_init__(self):
        if self.class_name not in PRECONDITIONINGS:
            raise ValueError(f"{self.source} holds a {self.class_name}; accepted are {PRECONDITIONINGS}.")
        if self.model_type not in NETWORKS:
            raise ValueError(f"{self.source} holds a {self.model_type}; accepted are {NETWORKS}.")

    @property
    def model_type(self) -> str:
        """Class of the network inside: `SongUNet` (DDPM++, NCSN++) or `DhariwalUNet` (ADM)."""
        by_default = "DhariwalUNet" if self.class_name in ("EDMPrecond", "iDDPMPrecond") else "SongUNet"
        return self.init_kwargs.get("model_type", by_default)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 for an unconditional network."""
        return self.init_kwargs.get("label_dim", 0)


def read_checkpoint(path: str | os.PathLike, argument: str = "path") -> EDMCheckpoint:
    """Read a checkpoint; nothing that is in the file is run.

    Args:
        path: A published `.pkl`, whose network `ema` is read; or the network's state dict, a `.pt` or `.safetensors`,
            with a JSON file of the same name beside it: `{"class_name": "EDMPrecond", "init_kwargs": {...}}`.
        argument: What the caller calls the path, for messages.

    Raises:
        FileNotFoundError: There is no such file, or no JSON file beside a state dict.
        ValueError: The file is damaged, holds something else, or a pickle that names what no EDM network needs.
    """
    path = Path(path)
    source = f"`{argument}` ('{path}')"
    if not path.is_file():
        raise FileNotFoundError(f"{source} does not exist; accepted is a file that ends in one of {SUFFIXES}.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{source} ends in '{path.suffix}'; accepted are {SUFFIXES}.")
    if path.suffix == ".pkl":
        try:
            with path.open("rb") as file:
                class_name, init_kwargs, inner_class, tensors = read_pickled_network(file)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{source} cannot be read ({error}); accepted is a pickle of an EDM network. Nothing of it was run."
            ) from error
        checkpoint = EDMCheckpoint(class_name, init_kwargs, tensors, source)
        if inner_class != checkpoint.model_type:
            raise ValueError(f"{source} is a {checkpoint.model_type} by its arguments, but holds a {inner_class}.")
        return checkpoint
    described = path.with_suffix(".json")
    if not described.is_file():
        raise FileNotFoundError(
            f"{source} has no '{described.name}' beside it; a state dict needs one that says what it is: "
            '{"class_name": "EDMPrecond", "init_kwargs": {...}}.'
        )
    try:
        description = strict_json.loads(described.read_text(encoding="utf-8"))
        class_name, init_kwargs = description["class_name"], dict(description["init_kwargs"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{source}: '{described.name}' is not as it should be ({type(error).__name__}: {error}); accepted is "
            '{"class_name": "EDMPrecond", "init_kwargs": {...}}.'
        ) from error
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes, torch.load raises whatever its parts do
        raise ValueError(f"{source} cannot be read: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{source} holds no state dict; accepted is a dictionary of tensors.")
    return EDMCheckpoint(class_name, init_kwargs, tensors, source)
