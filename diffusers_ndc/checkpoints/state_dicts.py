"""State dicts as they lie on the disk, read without running anything in them.

`torch.load(weights_only=True)` runs no code, but builds more than a state dict needs: arrays of any length, tensors
without memory, and values that a compressed archive inflates. So the names in a `.pt` are checked before it is loaded,
and its tensors may not have more bytes than the file.
"""

import os
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import nn


SUFFIXES = (".pt", ".pth", ".safetensors")
"""Endings of the names of state dicts."""

NAMES = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
"""Names that the pickle of a state dict needs, besides those of the storages of torch."""

OTHER_CALLS = ("EXT1", "EXT2", "EXT4", "INST", "NEWOBJ", "NEWOBJ_EX", "OBJ", "STACK_GLOBAL")
"""Opcodes that name or make an object and do not occur in a file of `torch.save`."""

ARCHIVE = b"PK\x03\x04"
"""First bytes of a zip archive."""

LEGACY_PICKLES = 5
"""Pickles at the beginning of a file of torch before 1.6: magic number, protocol, system, content, storages."""


def read_state_dict(path: Path, source: str) -> dict[str, torch.Tensor]:
    """Read a state dict to the CPU. Nothing in the file is run.

    Args:
        path: A file of `torch.save` (`.pt`, `.pth`) or of safetensors.
        source: Where it was read from, for messages.

    Returns:
        The floating-point tensors, by their names.

    Raises:
        ValueError: The file is damaged, holds something other than floating-point tensors, or names what no state dict
            needs.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            check_names(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of any class for damaged bytes
        if isinstance(error, pickle.UnpicklingError) and type(error) is not NameRefused:
            reason = "its pickle is damaged, or holds more than tensors"  # torch's own text advises an unsafe load
        else:
            reason = str(error).partition("\n")[0][:300]
        raise ValueError(
            f"{source} must be a state dict, got a file that cannot be read ({reason}). Nothing in it was run."
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{source} must hold a dictionary of tensors, got {type(loaded).__name__}.")
    tensors = dict(dict.items(loaded))  # `loaded.items` itself could come from the file
    check_tensors(tensors, os.path.getsize(path), source)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def check_tensors(tensors: dict, file_size: int, source: str) -> None:
    """Raise a `ValueError` unless a dictionary holds dense floating-point tensors and no more bytes than its file."""
    if {"state", "param_groups"} <= tensors.keys():
        raise ValueError(
            f"{source} must hold the weights of a network, got the state of an optimizer. Use the file of the weights "
            "beside it (`ema_*.pt` of the same step)."
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{source} must hold tensors by their names, got a name of type {type(name).__name__}.")
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{source} must hold a dictionary of tensors, got {type(tensor).__name__} at '{name}'.")
        if not tensor.is_floating_point():
            raise ValueError(f"{source} must hold floating-point tensors, got {tensor.dtype} at '{name}'.")
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if size > file_size:
        raise ValueError(
            f"{source} must have its tensors side by side, got {size:,} bytes of tensors in a file of {file_size:,} "
            "bytes."
        )


class NameRefused(pickle.UnpicklingError):
    """A pickle names what no state dict needs."""


def check_names(path: Path) -> None:
    """Raise unless a file of `torch.save` is uncompressed and names only what a state dict needs.

    Raises:
        NameRefused: It names something else.
        zipfile.BadZipFile, ValueError: It is damaged, compressed, or a tar archive.
    """
    with path.open("rb") as file:
        for content in pickles(file):
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name in OTHER_CALLS:
                    raise NameRefused(f"has the opcode {opcode.name}, which no state dict needs")
                is_storage = str(argument).startswith("torch ") and str(argument).endswith("Storage")
                if opcode.name == "GLOBAL" and argument not in NAMES and not is_storage:
                    raise NameRefused(f"names {str(argument)[:100].replace(' ', '.')}, which no state dict needs")


def pickles(file: BinaryIO) -> Iterator[bytes | BinaryIO]:
    """The pickles of a file of `torch.save`, an archive or, before torch 1.6, pickles in a row."""
    is_archive = file.read(len(ARCHIVE)) == ARCHIVE  # what torch.load decides by
    file.seek(0)
    if not is_archive:
        if tarfile.is_tarfile(file):  # torch.load would unpack it
            raise ValueError("is a tar archive, as the first versions of torch wrote them")
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            yield file
        return
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("is compressed, which torch.save never does")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                yield archive.read(name)


def assign_weights(network: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Give a network its weights, which must be exactly those that it has.

    Args:
        network: The network, without memory for its weights (on the device `meta`).
        weights: The weights, by name.
        source: Where they were read from, for the message.

    Raises:
        ValueError: A weight is missing, unknown, or has another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected | actual if expected.get(name) != actual.get(name))
    if wrong:
        raise ValueError(
            f"{source} must have the weights of the network that its arguments describe, got {len(wrong)} of another "
            f"shape or name. '{wrong[0]}' must have the shape {expected.get(wrong[0])}, got {actual.get(wrong[0])}."
        )
    network.load_state_dict(weights, assign=True)
