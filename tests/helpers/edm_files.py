"""Small EDM networks with reference outputs, and files of the published formats."""

import json
import lzma
import math
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from diffusers_ndc.checkpoints import EDMCheckpoint
from helpers.paths import FIXTURES


BUFFERS = ("resample_filter", "freqs", "u")


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


class Persistent:
    """An object that a published pickle holds as class name, source text and state."""

    def __init__(self, class_name, state, source, version=6):
        self.meta = {
            "type": "class",
            "version": version,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def module_state(tensors: dict, source: str, classes: dict, prefix: str = "") -> dict:
    """The `__dict__` of a module: its own tensors, and persistent objects for its parts."""
    own = {key: value for key, value in tensors.items() if "." not in key}
    parts = {}
    for key in tensors:
        if "." in key:
            parts.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = tensors[key]
    modules = {}
    for name, inside in parts.items():
        if prefix == "model." and name in ("enc", "dec"):
            modules[name] = torch.nn.ModuleDict()
            modules[name]._modules.update(module_state(inside, source, classes, f"{prefix}{name}.")["_modules"])
        else:
            state = module_state(inside, source, classes, f"{prefix}{name}.")
            modules[name] = Persistent(classes.get(prefix + name, "UNetBlock"), state, source)
    return {
        "training": False,
        "_parameters": {k: torch.nn.Parameter(v) for k, v in own.items() if k not in BUFFERS} | {"none": None},
        "_buffers": {k: v for k, v in own.items() if k in BUFFERS} | {"scratch": torch.ones(1)},
        "_non_persistent_buffers_set": {"scratch"},
        "_backward_hooks": OrderedDict(),
        "_forward_hooks": OrderedDict(),
        "_modules": modules,
        "skip_scale": np.sqrt(0.5),
    }


def save_published(
    path, checkpoint: EDMCheckpoint, source="raise SystemExit('run')", model_class=None, protocol=4, **outer
):
    """Write a checkpoint in the published format, a pickle whose classes are source text."""
    classes = {"model": model_class or checkpoint.model_type}
    state = module_state({k: v.float() for k, v in checkpoint.state_dict.items()}, source, classes)
    state |= {"_init_args": (), "_init_kwargs": checkpoint.init_kwargs, "sigma_data": 0.5}
    content = {
        "ema": Persistent(checkpoint.class_name, state, source),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}, source),
        "augment_pipe": None,
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "use_labels": True},
    }
    stand_in = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise NotImplementedError", stand_in.__dict__)
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), stand_in
    try:
        Path(path).write_bytes(pickle.dumps(content | outer, protocol))
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
    return path


def published_shapes(class_name: str, init_kwargs: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters and buffers of a published network, from its description alone."""
    song = init_kwargs["model_type"] == "SongUNet"
    base = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
    if not song:
        base = {
            "model_channels": 192,
            "channel_mult": [1, 2, 3, 4],
            "num_blocks": 3,
            "attn_resolutions": [32, 16, 8],
        }
    given = {"channel_mult_noise": 1, "resample_filter": [1, 1], "augment_dim": 0, **base, **init_kwargs}
    m, n, labels = given["model_channels"], given["num_blocks"], given["label_dim"]
    resolution, taps = given["img_resolution"], len(given["resample_filter"])
    widths = [m * multiple for multiple in given["channel_mult"]]
    e, z = 4 * m, m * given["channel_mult_noise"]
    shapes = {}

    def affine(name, *shape, bias=True):
        shapes[f"model.{name}.weight"] = shape
        if bias:
            shapes[f"model.{name}.bias"] = shape[:1]

    def block(name, c_in, c, attention=False, resampled=False):
        affine(f"{name}.norm0", c_in)
        affine(f"{name}.conv0", c, c_in, 3, 3)
        affine(f"{name}.affine", c if song else 2 * c, e)
        affine(f"{name}.norm1", c)
        affine(f"{name}.conv1", c, c, 3, 3)
        if c_in != c or (resampled and song):
            affine(f"{name}.skip", c, c_in, 1, 1)
        if resampled:
            for part in ("conv0", "skip"):
                shapes[f"model.{name}.{part}.resample_filter"] = (1, 1, taps, taps)
        if attention:
            affine(f"{name}.norm2", c)
            affine(f"{name}.qkv", 3 * c, c, 1, 1)
            affine(f"{name}.proj", c, c, 1, 1)

    if given.get("embedding_type") == "fourier":
        shapes["model.map_noise.freqs"] = (z // 2,)
    if labels:
        affine("map_label", z if song else e, labels, bias=song)
    if given["augment_dim"]:
        affine("map_augment", z, given["augment_dim"], bias=False)
    affine("map_layer0", e, z)
    affine("map_layer1", e, e)
    first = m if song else widths[0]
    affine(f"enc.{resolution}x{resolution}_conv", first, given["img_channels"], 3, 3)
    skips, c, c_aux = [first], first, given["img_channels"]
    for level, width in enumerate(widths):
        size = resolution >> level
        attention = size in given["attn_resolutions"]
        if level:
            block(f"enc.{size}x{size}_down", c, c, resampled=True)
            if given.get("encoder_type") == "residual":
                affine(f"enc.{size}x{size}_aux_residual", c, c_aux, 3, 3)
                shapes[f"model.enc.{size}x{size}_aux_residual.resample_filter"] = (1, 1, taps, taps)
                c_aux = c
            skips.append(c)
        for i in range(n):
            block(f"enc.{size}x{size}_block{i}", c, width, attention)
            c = width
            skips.append(c)
    for level in reversed(range(len(widths))):
        size, width = resolution >> level, widths[level]
        if level == len(widths) - 1:
            block(f"dec.{size}x{size}_in0", c, c, attention=True)
            block(f"dec.{size}x{size}_in1", c, c)
        else:
            block(f"dec.{size}x{size}_up", c, c, resampled=True)
        for i in range(n + 1):
            attention = size in given["attn_resolutions"] and (i == n or not song)
            block(f"dec.{size}x{size}_block{i}", c + skips.pop(), width, attention)
            c = width
    outputs = given["img_channels"] * (2 if class_name == "iDDPMPrecond" else 1)
    norm, conv = (f"dec.{resolution}x{resolution}_aux_{kind}" if song else f"out_{kind}" for kind in ("norm", "conv"))
    affine(norm, c)
    affine(conv, outputs, c, 3, 3)
    return shapes
