"""EDM checkpoints as networks and schedulers of diffusers.

DDPM++ and NCSN++ become an `EDMUNet2DModel`, ADM a stock `UNet2DModel`; both name their blocks alike. Labels, which
the published networks take as one-hot vectors, become rows of an embedding.
"""

import math
import os
import re
from typing import Any

import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from diffusers.schedulers import SchedulerMixin
from torch import nn

from .edm_schedulers import IDDPMPrecondScheduler, VEPrecondScheduler, VPPrecondScheduler
from .edm_unet import RESAMPLE_FILTERS, TIME_EMBEDDING_TYPES, EDMUNet2DModel
from .files import EDMCheckpoint, read_checkpoint


# What a constructor takes where the checkpoint does not say, by its class; what REQUIRED names it has to say.
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
# What this package can build, of the arguments that have more than one kind.
ACCEPTED = {
    "embedding_type": TIME_EMBEDDING_TYPES,
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
    "resample_filter": RESAMPLE_FILTERS,
}
EDM_SIGMA_MIN, EDM_SIGMA_MAX = 0.002, 80.0
MAY_BE_0 = ("label_dim", "augment_dim", "attn_resolutions", "num_blocks")
LARGEST, MOST_BLOCKS = 65_536, 1000  # of any number, and of blocks: a network of more would take forever to make
HEAD_WIDTH = 64
NORM_GROUPS = 32

OUTER_KEYS = {
    "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
    "map_noise.freqs": "time_proj.frequencies",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
RESNET_KEYS = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION_KEYS = {"norm2": "group_norm", "proj": "to_out.0"}
DIRECT_KEYS = {"conv": "conv_in", "aux_norm": "conv_norm_out", "aux_conv": "conv_out"}
BLOCK = re.compile(r"model\.(enc|dec)\.(\d+)x\2_(conv|aux_norm|aux_conv|aux_residual|down|up|in|block)(\d*)\.([\w.]+)")


def read_checkpoints(
    path: str | os.PathLike, unconditional: str | os.PathLike | None = None, null_class: int | None = None
) -> tuple[nn.Module, SchedulerMixin, nn.Module | None, int | None]:
    """What a classifier needs: conditional network, scheduler, unconditional network or `None`, null class or `None`.

    Args:
        path: Class-conditional checkpoint.
        unconditional: Checkpoint without classes, or `None`.
        null_class: The number of classes, if the label of all zeros was trained as "no class". It is taken to be so
            where the checkpoint's arguments have a `label_dropout`.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is damaged, holds something else, or they do not go together.
    """
    checkpoint = read_checkpoint(path)
    given, classes = arguments(checkpoint), checkpoint.num_classes
    if not classes:
        raise ValueError(
            f"{checkpoint.source} holds a network without classes (label_dim=0); accepted is a class-conditional one. "
            "One without classes goes into `unconditional`."
        )
    if null_class not in (None, classes):
        raise ValueError(f"`null_class` is {null_class!r}; accepted are {classes}, the number of classes, and None.")
    null_class = classes if given["label_dropout"] else null_class
    network, scheduler = convert_network(checkpoint, null_class is not None), convert_scheduler(checkpoint)
    if unconditional is None:
        return network, scheduler, None, null_class
    other = read_checkpoint(unconditional, "unconditional")
    if other.num_classes:
        raise ValueError(
            f"{other.source} holds a network with {other.num_classes} classes; accepted is one without (label_dim=0)."
        )
    shared = ("img_resolution", "img_channels", *OUTER_DEFAULTS[checkpoint.class_name])
    mine, theirs = ({name: values.get(name) for name in shared} for values in (given, arguments(other)))
    if other.class_name != checkpoint.class_name or theirs != mine:
        raise ValueError(
            f"{other.source} is a {other.class_name} with {theirs}; accepted is what {checkpoint.source} is, a "
            f"{checkpoint.class_name} with {mine}."
        )
    return network, scheduler, convert_network(other), null_class


def arguments(checkpoint: EDMCheckpoint) -> dict:
    """All arguments of the checkpoint's network, those that it leaves out at their defaults.

    Raises:
        ValueError: One is missing, unknown, or of a kind that this package cannot build.
    """
    defaults = {
        **OUTER_DEFAULTS["common"],
        **OUTER_DEFAULTS[checkpoint.class_name],
        **INNER_DEFAULTS[checkpoint.model_type],
    }
    unknown = sorted(set(checkpoint.init_kwargs) - set(defaults))
    if unknown:
        raise ValueError(
            f"{checkpoint.source} was made with the arguments {unknown}, which a {checkpoint.class_name} of a "
            f"{checkpoint.model_type} does not take; accepted are {sorted(defaults)}."
        )
    missing = [name for name in REQUIRED if name not in checkpoint.init_kwargs]
    if missing:
        raise ValueError(f"{checkpoint.source} does not say {missing}; accepted are whole numbers.")
    merged = {**defaults, **checkpoint.init_kwargs}
    for name, usual in defaults.items():
        if name != "model_type" and not _fits(name, value := merged[name], usual):
            raise ValueError(f"{checkpoint.source} was made with {name}={value!r}; accepted is a value like {usual}.")
    levels, blocks = len(merged["channel_mult"]), merged["num_blocks"]
    if not 1 <= levels <= levels * (blocks + 1) <= MOST_BLOCKS:
        raise ValueError(
            f"{checkpoint.source} was made with {levels} numbers in channel_mult and num_blocks={blocks}; accepted is "
            f"at least one, and {MOST_BLOCKS} blocks in all."
        )
    for name, accepted in ACCEPTED.items():
        value = merged.get(name, accepted[0])
        if (tuple(value) if type(value) is list else value) not in accepted:
            raise ValueError(f"{checkpoint.source} was made with {name}={value!r}; accepted are {accepted}.")
    return merged


def _fits(name: str, value: Any, usual: object) -> bool:
    """Whether a value is of the kind of the usual one, and no number for which no network is."""
    if type(usual) is list:
        return type(value) in (list, tuple) and all(_fits(name, part, 1) for part in value)
    if type(usual) is float:
        return type(value) in (int, float) and (0 <= value <= LARGEST or value == usual)
    return type(value) is type(usual) and (type(value) is not int or (name not in MAY_BE_0) <= value <= LARGEST)


def convert_scheduler(checkpoint: EDMCheckpoint) -> SchedulerMixin:
    """The preconditioning of a checkpoint, with the noise levels between which it may be used.

    `EDMPrecond` itself accepts every level from 0 to infinity. Where a checkpoint keeps that, the levels are those
    between which Karras et al. sample, 0.002 to 80 (Table 1); hardly any training level lies outside.

    Raises:
        ValueError: As for `arguments`, or the levels `u` of an iDDPM checkpoint are missing.
    """
    given = arguments(checkpoint)
    if checkpoint.class_name == "EDMPrecond":
        return EDMEulerScheduler(
            sigma_min=given["sigma_min"] or EDM_SIGMA_MIN,
            sigma_max=given["sigma_max"] if math.isfinite(given["sigma_max"]) else EDM_SIGMA_MAX,
            sigma_data=given["sigma_data"],
        )
    if checkpoint.class_name == "VPPrecond":
        beta_d, beta_min = given["beta_d"], given["beta_min"]
        t = torch.tensor([given["epsilon_t"], 1.0])  # in float32, as in the original: the smallest level depends on it
        low, high = ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt().tolist()
        return VPPrecondScheduler(low, high, beta_d, beta_min, given["M"])
    if checkpoint.class_name == "VEPrecond":
        return VEPrecondScheduler(float(given["sigma_min"]), float(given["sigma_max"]))
    levels = checkpoint.state_dict.get("u")
    if levels is None or levels.shape != (given["M"] + 1,):
        raise ValueError(f"{checkpoint.source} has no noise levels 'u' of the shape ({given['M'] + 1},).")
    sigmas = levels.tolist()
    return IDDPMPrecondScheduler(sigmas, sigma_min=sigmas[-2], sigma_max=sigmas[0])


def convert_network(checkpoint: EDMCheckpoint, no_label_row: bool = False) -> EDMUNet2DModel | UNet2DModel:
    """The network of a checkpoint, in float32, in evaluation mode.

    Args:
        checkpoint: What was read.
        no_label_row: Whether the class embedding gets a last row for the label of all zeros. Networks that were
            trained without label dropout, as the published ones, have never seen it.

    Raises:
        ValueError: As for `arguments`; or the weights are not those of such a network; or it is an ADM narrower than
            a `UNet2DModel` can express.
    """
    given = arguments(checkpoint)
    rows = given["label_dim"] + no_label_row if given["label_dim"] else None
    adm = checkpoint.model_type == "DhariwalUNet"
    try:
        with torch.device("meta"):
            network = (adm_network if adm else song_network)(checkpoint, given, rows)
        weights = converted_state_dict(checkpoint, given, no_label_row)
    except (ArithmeticError, LookupError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint.source} has arguments or weights of no {checkpoint.model_type}: {error!r}"
        ) from error
    accepted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in accepted | found if accepted.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"{checkpoint.source} has weights that are not those of the network that it says it is, {len(wrong)} of "
            f"them, first '{wrong[0]}': its shape is {found.get(wrong[0])}, accepted is {accepted.get(wrong[0])}."
        )
    network.load_state_dict(weights, assign=True)
    return network.eval()


def song_network(checkpoint: EDMCheckpoint, given: dict, rows: int | None) -> EDMUNet2DModel:
    """DDPM++ or NCSN++, without weights."""
    width = given["model_channels"]
    return EDMUNet2DModel(
        sample_size=given["img_resolution"],
        in_channels=given["img_channels"],
        out_channels=given["img_channels"],
        model_channels=width,
        block_out_channels=tuple(width * multiple for multiple in given["channel_mult"]),
        layers_per_block=given["num_blocks"],
        attention_resolutions=tuple(given["attn_resolutions"]),
        time_embedding_type=given["embedding_type"],
        time_proj_dim=width * given["channel_mult_noise"],
        time_embedding_dim=width * given["channel_mult_emb"],
        residual_encoder=given["encoder_type"] == "residual",
        resample_filter=tuple(given["resample_filter"]),
        dropout=given["dropout"],
        num_class_embeds=rows,
    )


def adm_network(checkpoint: EDMCheckpoint, given: dict, rows: int | None) -> UNet2DModel:
    """ADM as a `UNet2DModel`, without weights."""
    resolution = given["img_resolution"]
    widths = tuple(given["model_channels"] * multiple for multiple in given["channel_mult"])
    attention = [resolution >> level in given["attn_resolutions"] for level in range(len(widths))]
    attended = [width for width, has in zip(widths, attention, strict=True) if has] + [widths[-1]]
    # one number of groups for all norms, and heads of one width
    if min(widths) < 4 * NORM_GROUPS or any(width % HEAD_WIDTH for width in attended):
        raise ValueError(
            f"{checkpoint.source} is an ADM with the widths {widths}; accepted are widths of at least "
            f"{4 * NORM_GROUPS}, and multiples of {HEAD_WIDTH} where there is attention."
        )
    return UNet2DModel(
        sample_size=resolution,
        in_channels=given["img_channels"],
        out_channels=given["img_channels"],
        time_embedding_type="positional",
        time_embedding_dim=given["model_channels"] * given["channel_mult_emb"],
        flip_sin_to_cos=True,
        freq_shift=0,
        block_out_channels=widths,
        layers_per_block=given["num_blocks"],
        down_block_types=tuple("AttnDownBlock2D" if has else "ResnetDownsampleBlock2D" for has in attention),
        up_block_types=tuple("AttnUpBlock2D" if has else "ResnetUpsampleBlock2D" for has in reversed(attention)),
        downsample_type="resnet",
        upsample_type="resnet",
        dropout=given["dropout"],
        attention_head_dim=HEAD_WIDTH,
        norm_num_groups=NORM_GROUPS,
        attn_norm_num_groups=NORM_GROUPS,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=rows,
    )


def converted_state_dict(checkpoint: EDMCheckpoint, given: dict, no_label_row: bool) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors under the names, and in the shapes, of the networks above.

    Left out are the resampling filters, which are fixed, and `map_augment`, whose input is zero outside of training.
    """
    adm, levels = checkpoint.model_type == "DhariwalUNet", len(given["channel_mult"])
    kernel = torch.tensor(given.get("resample_filter", [1, 1]), dtype=torch.float32)
    kernel = kernel.outer(kernel) / kernel.sum() ** 2
    old = {key: tensor.float() for key, tensor in checkpoint.state_dict.items()}
    new = {}
    if "model.map_label.weight" in old:
        table = old.pop("model.map_label.weight").T
        table = table if adm else math.sqrt(len(table)) * table
        table = torch.cat([table, torch.zeros_like(table[:1])]) if no_label_row else table
        new["class_embedding.weight"] = (table if adm else table + old.pop("model.map_label.bias")).contiguous()
    for key, tensor in old.items():
        if key == "u" or key == "model.map_augment.weight":
            continue
        if key.endswith(".resample_filter"):
            if tensor.shape[2:] != kernel.shape or not torch.allclose(tensor[0, 0], kernel):
                raise ValueError(
                    f"{checkpoint.source} was made with resample_filter={given.get('resample_filter', [1, 1])}, but "
                    f"has another one in '{key}'."
                )
            continue
        new |= renamed(checkpoint, key, tensor, given["img_resolution"], levels)
    if checkpoint.class_name == "iDDPMPrecond":  # the other half of its output is a variance that nothing here reads
        for leaf in ("weight", "bias"):
            new[f"conv_out.{leaf}"] = new[f"conv_out.{leaf}"][: given["img_channels"]]
    wider, key = given["channel_mult"][0], "time_embedding.linear_1.weight"
    if adm and wider > 1:  # diffusers embeds the time in as many channels as the first block has: every q-th is ours
        ours, new[key] = new[key], new[key].new_zeros(len(new[key]), wider * new[key].shape[1])
        new[key][:, ::wider] = ours
    return new


def renamed(
    checkpoint: EDMCheckpoint, key: str, tensor: torch.Tensor, resolution: int, levels: int
) -> dict[str, torch.Tensor]:
    """One published tensor as one of diffusers, or, of an attention's joint projection, as three.

    Raises:
        ValueError: No network has a tensor of this name.
    """
    for outer, name in OUTER_KEYS.items():
        if key == f"model.{outer}" or key.startswith(f"model.{outer}."):
            return {name + key.removeprefix(f"model.{outer}"): tensor}
    found = BLOCK.fullmatch(key)
    if found is None:
        raise ValueError(f"{checkpoint.source} has a tensor '{key}', which no such network has.")
    side, height, kind, number, rest = found.groups()
    level = (resolution // int(height)).bit_length() - 1
    if kind in DIRECT_KEYS:
        return {f"{DIRECT_KEYS[kind]}.{rest}": tensor}
    if kind == "aux_residual":
        return {f"down_blocks.{level - 1}.residual.Conv2d_0.{rest}": tensor}
    block = {
        "down": f"down_blocks.{level - 1}.downsamplers.0",
        "up": f"up_blocks.{levels - 2 - level}.upsamplers.0",
        "in": f"mid_block.resnets.{number}",
        "block": f"down_blocks.{level}.resnets.{number}"
        if side == "enc"
        else f"up_blocks.{levels - 1 - level}.resnets.{number}",
    }[kind]
    part, _, leaf = rest.partition(".")
    if part in RESNET_KEYS:
        return {f"{block}.{RESNET_KEYS[part]}.{leaf}": tensor}
    attention = block.replace("resnets", "attentions")
    if part == "qkv":  # 1x1 convolutions to linear layers; queries, keys and values take turns
        parts = {f"{attention}.to_{name}.{leaf}": tensor[j::3] for j, name in enumerate("qkv")}
    else:
        parts = {f"{attention}.{ATTENTION_KEYS.get(part, part)}.{leaf}": tensor}
    return {name: value.reshape(value.shape[:2]).contiguous() for name, value in parts.items()}
