"""Small networks of OpenAI with reference outputs, and the names and shapes of the published ones."""

import json
import lzma
from functools import cache

import torch
from safetensors.torch import load

from helpers.paths import FIXTURES


ADM = {"noise_schedule": "linear", "diffusion_steps": 1000, "rescale_timesteps": False, "num_head_channels": 16}
IDDPM = {"use_new_attention_order": False, "noise_schedule": "cosine", "diffusion_steps": 4000, "num_heads": 4}
FLAGS = {
    "a": {**ADM, "noise_schedule": "cosine", "use_new_attention_order": True, "num_classes": 10},
    "b": {**ADM, "use_new_attention_order": False},
    "c": {**IDDPM, "rescale_timesteps": True},
    "d": {**IDDPM, "rescale_timesteps": False, "num_classes": 10},
    "e": {**ADM, "use_new_attention_order": False, "num_classes": 10},
    "f": {"noise_schedule": "linear", "diffusion_steps": 1000, "num_heads": 1},
}
"""What the weights of the small networks do not tell, besides what all of them share."""

NUMBERS = {"a": 999_622, "b": 715_878, "c": 757_030, "d": 893_030, "e": 500_998, "f": 709_926}
"""Numbers of their parameters."""


def flags(name: str) -> dict:
    """The flags that the weights of a small network do not tell."""
    return {"image_size": 16, "predict_xstart": False, **FLAGS[name]}


@cache
def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dict, inputs and outputs of one of the small networks `a` to `f`.

    They are random networks of the published kinds, run by their authors' own program: ADM-64 with classes in the new
    attention order (a), ADM-256 without classes (b), improved-diffusion's CIFAR-10 with rescaled timesteps (c),
    ImageNet-64 with classes and heads of two widths (d), ADM-512 whose first block is narrow (e), LSUN (f).
    """
    tensors = load(lzma.decompress((FIXTURES / f"openai_{name}.xz").read_bytes()))
    weights = {key.removeprefix("net."): value.float() for key, value in tensors.items() if key.startswith("net.")}
    return weights, {key: value for key, value in tensors.items() if not key.startswith("net.")}


def save_golden(path, name: str, **changes):
    """Write the state dict of a small network as OpenAI's scripts do."""
    torch.save({**golden(name)[0], **changes}, path)
    return path


@cache
def published_networks() -> list[dict]:
    """The 12 published kinds: names of files, parameters, arguments, and the shapes of all tensors by name."""
    return json.loads(lzma.decompress((FIXTURES / "openai_published_shapes.xz").read_bytes()))
