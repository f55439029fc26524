"""The arguments with which the networks of Karras et al. are made: defaults, and what this package can build."""

import math
from typing import Any

from .edm_unet import RESAMPLE_FILTERS, TIME_EMBEDDING_TYPES
from .files import EDMCheckpoint


# Defaults of the constructors' arguments, by class. A checkpoint must state the ones in REQUIRED.
OUTER_DEFAULTS: dict[str, dict] = {
    "common": {"img_resolution": 32, "img_channels": 3, "label_dim": 0, "use_fp16": False, "model_type": None},
    "EDMPrecond": {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}
REQUIRED = ("img_resolution", "img_channels")
INNER_DEFAULTS = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": [16],
        "dropout": 0.10,
        "label_dropout": 0.0,
        "augment_dim": 0,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "channel_mult_emb": 4,
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
        "dropout": 0.10,
        "label_dropout": 0.0,
        "augment_dim": 0,
    },
}
# Arguments of which this package can build some kinds only.
SUPPORTED = {
    "embedding_type": TIME_EMBEDDING_TYPES,
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
    "resample_filter": RESAMPLE_FILTERS,
}

MAY_BE_0 = ("label_dim", "augment_dim", "attn_resolutions", "num_blocks")

MAX_NUMBER = 65_536
"""Largest number among the arguments."""

MAX_BLOCKS = 1000
"""Largest number of blocks. A damaged description with more would take forever to build."""


def arguments(checkpoint: EDMCheckpoint) -> dict:
    """All arguments of the checkpoint's network, with defaults for those that the checkpoint omits.

    Args:
        checkpoint: The checkpoint.

    Raises:
        ValueError: An argument is missing, unknown, or of a kind that this package cannot build.
    """
    source = checkpoint.source
    defaults = {
        **OUTER_DEFAULTS["common"],
        **OUTER_DEFAULTS[checkpoint.class_name],
        **INNER_DEFAULTS[checkpoint.model_type],
    }
    unknown = sorted(set(checkpoint.init_kwargs) - set(defaults))
    if unknown:
        raise ValueError(
            f"{source} must have arguments of a {checkpoint.class_name} of a {checkpoint.model_type}, which are "
            f"{sorted(defaults)}, got {unknown}."
        )
    missing = [name for name in REQUIRED if name not in checkpoint.init_kwargs]
    if missing:
        raise ValueError(f"{source} must have the arguments {REQUIRED}, got none for {missing}.")
    merged = {**defaults, **checkpoint.init_kwargs}
    for name, default in defaults.items():
        if name != "model_type" and not _is_possible(name, merged[name], default):
            raise ValueError(f"{source} must have a value like {default} for {name}, got {name}={merged[name]!r}.")
    num_resolutions = len(merged["channel_mult"])
    if num_resolutions == 0:
        raise ValueError(f"{source} must have at least one number in channel_mult, got channel_mult=[].")
    num_blocks = num_resolutions * (merged["num_blocks"] + 1)
    if num_blocks > MAX_BLOCKS:
        raise ValueError(
            f"{source} must have at most {MAX_BLOCKS} blocks in all, got {num_blocks} "
            f"({num_resolutions} numbers in channel_mult, num_blocks={merged['num_blocks']})."
        )
    for name, supported in SUPPORTED.items():
        value = merged.get(name, supported[0])
        hashable = tuple(value) if isinstance(value, list) else value
        if hashable not in supported:
            raise ValueError(f"{source} must have one of {supported} for {name}, got {name}={value!r}.")
    return merged


def _is_possible(name: str, value: Any, default: object) -> bool:
    """Whether a value has the type of the argument's default and, if it is a number, a possible size."""
    if isinstance(default, list):
        return type(value) in (list, tuple) and all(_is_possible(name, part, 1) for part in value)
    if isinstance(default, float):
        return type(value) in (int, float) and (0 <= value <= MAX_NUMBER or value == default)
    if type(value) is not type(default):
        return False
    if type(value) is int:
        smallest = 0 if name in MAY_BE_0 else 1
        return smallest <= value <= MAX_NUMBER
    return True
