"""Small EDM networks with reference outputs; files of the published formats are written as in `examples/recipes`."""

import json
import lzma
import math

import numpy as np
import torch
from published_files import Persistent as Persistent
from published_files import save_published as save_published
from published_networks import published_shapes as published_shapes

from diffusers_ndc.checkpoints import EDMCheckpoint
from helpers.paths import FIXTURES


def load_fixture(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Header and tensors of a fixture: after the header all float16 values, then all float32 ones, byte by byte.

    Bytes of equal significance lie together, and so compress.
    """
    data = lzma.decompress((FIXTURES / f"{name}.xz").read_bytes())
    start = 4 + int.from_bytes(data[:4], "little")
    header, tensors = json.loads(data[4:start]), {}
    for dtype in ("<f2", "<f4"):
        shapes = {key: shape for key, (kind, shape) in header["tensors"].items() if kind == dtype}
        size, width = sum(math.prod(shape) for shape in shapes.values()), int(dtype[-1])
        planes = np.frombuffer(data, np.uint8, size * width, start).reshape(width, size)
        flat, start = np.ascontiguousarray(planes.T).view(dtype)[:, 0].copy(), start + size * width
        for key, shape in shapes.items():
            tensors[key] = torch.from_numpy(flat[: math.prod(shape)]).reshape(shape)
            flat = flat[math.prod(shape) :]
    return header, tensors


def golden(name: str) -> tuple[EDMCheckpoint, dict[str, torch.Tensor]]:
    """One of the small networks `a` to `e`, and its inputs and outputs.

    They are random networks of the published kinds, run by their authors' own program: DDPM++ (a), NCSN++ (b) and
    ADM (c2) of ten classes; DDPM++ without classes with VP (d) and EDM (e) preconditioning.
    """
    header, tensors = load_fixture(f"edm_{name}")
    weights = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
    return EDMCheckpoint(header["class_name"], header["init_kwargs"], weights, f"golden {name}"), tensors
