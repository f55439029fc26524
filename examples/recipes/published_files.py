"""Files of the formats in which networks of EDM and of OpenAI are published, written here, with any weights.

The pickles of EDM hold the source text of their classes, which must not be run; here it is one line that would end the
program.
"""

import math
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from diffusers_ndc.checkpoints import EDMCheckpoint


BUFFERS = ("resample_filter", "freqs", "u")


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


def improved_diffusion_shapes(
    channels: int, channel_mult: list[int], num_res_blocks: int, attention: list[bool]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network of improved-diffusion without classes, with a learned variance, for RGB images.

    Args:
        channels: OpenAI's `num_channels`.
        channel_mult: Width of each level, from the highest resolution down, in multiples of `channels`.
        num_res_blocks: Residual blocks at each level of the encoder.
        attention: Whether a level has attention.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    embedding, levels = 4 * channels, list(zip(channel_mult, attention, strict=True))

    def affine(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def resnet(name, c_in, c):
        affine(f"{name}.in_layers.0", c_in)
        affine(f"{name}.in_layers.2", c, c_in, 3, 3)
        affine(f"{name}.emb_layers.1", 2 * c, embedding)
        affine(f"{name}.out_layers.0", c)
        affine(f"{name}.out_layers.3", c, c, 3, 3)
        if c_in != c:
            affine(f"{name}.skip_connection", c, c_in, 1, 1)

    def attend(name, c):
        affine(f"{name}.norm", c)
        affine(f"{name}.qkv", 3 * c, c, 1)
        affine(f"{name}.proj_out", c, c, 1)

    affine("time_embed.0", embedding, channels)
    affine("time_embed.2", embedding, embedding)
    c = channels * channel_mult[0]
    affine("input_blocks.0.0", c, 3, 3, 3)
    skips, index = [c], 1
    for level, (multiple, attended) in enumerate(levels):
        for _ in range(num_res_blocks):
            resnet(f"input_blocks.{index}.0", c, channels * multiple)
            c = channels * multiple
            if attended:
                attend(f"input_blocks.{index}.1", c)
            skips.append(c)
            index += 1
        if level < len(levels) - 1:
            affine(f"input_blocks.{index}.0.op", c, c, 3, 3)
            skips.append(c)
            index += 1
    resnet("middle_block.0", c, c)
    attend("middle_block.1", c)
    resnet("middle_block.2", c, c)
    index = 0
    for level, (multiple, attended) in reversed(list(enumerate(levels))):
        for block in range(num_res_blocks + 1):
            resnet(f"output_blocks.{index}.0", c + skips.pop(), channels * multiple)
            c = channels * multiple
            if attended:
                attend(f"output_blocks.{index}.1", c)
            if level and block == num_res_blocks:
                affine(f"output_blocks.{index}.{2 if attended else 1}.conv", c, c, 3, 3)
            index += 1
    affine("out.0", c)
    affine("out.2", 6, c, 3, 3)
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Weights with which a network neither fades nor explodes: norms and filters that change nothing, small biases."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if name.endswith("resample_filter"):
            weights[name] = torch.full(shape, 1 / math.prod(shape))
        elif name.endswith("weight") and len(shape) == 1:
            weights[name] = torch.ones(shape)
        elif name.endswith("bias"):
            weights[name] = 0.1 * torch.randn(shape, generator=generator)
        else:
            weights[name] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    return weights
