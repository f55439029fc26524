"""The tensors of the networks of Karras et al. under the names, and in the shapes, of diffusers."""

import math
import re

import torch

from .files import EDMCheckpoint


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


def converted_state_dict(checkpoint: EDMCheckpoint, given: dict, no_label_row: bool) -> dict[str, torch.Tensor]:
    """The state dict of the converted network.

    Two kinds of tensors are left out: the resampling filters, which are fixed, and `map_augment`, whose input is zero
    outside of training.

    Args:
        checkpoint: The checkpoint.
        given: Its `arguments`.
        no_label_row: Whether the class embedding gets a last row for the label of all zeros.

    Raises:
        ValueError: A tensor has an unknown name, or a resampling filter differs from that of the arguments.
    """
    old = {key: tensor.float() for key, tensor in checkpoint.state_dict.items()}
    new = {}
    if "model.map_label.weight" in old:
        weight, bias = old.pop("model.map_label.weight"), None
        if checkpoint.model_type == "SongUNet":
            bias = old.pop("model.map_label.bias")
        new["class_embedding.weight"] = class_embedding(weight, bias, no_label_row)
    for key, tensor in old.items():
        if key.endswith(".resample_filter"):
            check_resample_filter(checkpoint, key, tensor, given.get("resample_filter", [1, 1]))
        elif key not in ("u", "model.map_augment.weight"):
            new |= renamed(checkpoint, key, tensor, given["img_resolution"], len(given["channel_mult"]))
    if checkpoint.class_name == "iDDPMPrecond":  # the second half of its output is a variance, which is not used
        for leaf in ("weight", "bias"):
            new[f"conv_out.{leaf}"] = new[f"conv_out.{leaf}"][: given["img_channels"]]
    if checkpoint.model_type == "DhariwalUNet":
        new["time_embedding.linear_1.weight"] = widened(
            new["time_embedding.linear_1.weight"], given["channel_mult"][0]
        )
    return new


def class_embedding(weight: torch.Tensor, bias: torch.Tensor | None, no_label_row: bool) -> torch.Tensor:
    """Table of label embeddings, from the linear layer that takes one-hot labels.

    Args:
        weight: Shape (channels, classes).
        bias: Shape (channels,). Given for DDPM++ and NCSN++, which also scale the label of K classes by `sqrt(K)`.
        no_label_row: Whether the table gets a last row for the label of all zeros.

    Returns:
        Shape (classes, channels), or (classes + 1, channels) with `no_label_row`.
    """
    table = weight.T
    if bias is not None:
        table = math.sqrt(len(table)) * table
    if no_label_row:
        table = torch.cat([table, torch.zeros_like(table[:1])])
    if bias is not None:
        table = table + bias
    return table.contiguous()


def check_resample_filter(checkpoint: EDMCheckpoint, key: str, tensor: torch.Tensor, taps: list[int]) -> None:
    """Raise a `ValueError` unless a resampling filter of the checkpoint is that of its arguments.

    Args:
        checkpoint: The checkpoint, for the message.
        key: Name of the filter.
        tensor: The filter, shape (1, 1, taps, taps).
        taps: The argument `resample_filter`.
    """
    kernel = torch.tensor(taps, dtype=torch.float32)
    kernel = kernel.outer(kernel) / kernel.sum() ** 2
    if tensor.shape[2:] != kernel.shape or not torch.allclose(tensor[0, 0], kernel):
        raise ValueError(
            f"{checkpoint.source} must have the filters of its argument resample_filter={taps}, got another one in "
            f"'{key}'."
        )


def widened(weight: torch.Tensor, factor: int) -> torch.Tensor:
    """The first layer of ADM's time MLP for the wider time embedding of diffusers.

    diffusers embeds the time in as many channels as the first block has, `factor` times as many as ADM does. Every
    `factor`-th of them is one of ADM's, the others get zero weights.

    Args:
        weight: Shape (outputs, channels).
        factor: Width of the first block in units of ADM's `model_channels`.
    """
    if factor == 1:
        return weight
    wide = weight.new_zeros(len(weight), factor * weight.shape[1])
    wide[:, ::factor] = weight
    return wide


def renamed(
    checkpoint: EDMCheckpoint, key: str, tensor: torch.Tensor, resolution: int, num_resolutions: int
) -> dict[str, torch.Tensor]:
    """One published tensor under its name in diffusers; the joint projection of an attention becomes three tensors.

    Args:
        checkpoint: The checkpoint, for the message.
        key: Published name of the tensor.
        tensor: The tensor.
        resolution: Height of the images, in pixels.
        num_resolutions: Number of resolutions of the network.

    Raises:
        ValueError: No network has a tensor of this name.
    """
    for outer, name in OUTER_KEYS.items():
        if key == f"model.{outer}" or key.startswith(f"model.{outer}."):
            return {name + key.removeprefix(f"model.{outer}"): tensor}
    match = BLOCK.fullmatch(key)
    if match is None:
        raise ValueError(f"{checkpoint.source} must have tensors that such a network has, got '{key}'.")
    side, height, kind, number, rest = match.groups()
    level = (resolution // int(height)).bit_length() - 1  # 0 at full resolution, 1 at half of it, ...
    up_level = num_resolutions - 1 - level
    if kind in DIRECT_KEYS:
        return {f"{DIRECT_KEYS[kind]}.{rest}": tensor}
    if kind == "aux_residual":
        return {f"down_blocks.{level - 1}.residual.Conv2d_0.{rest}": tensor}
    if kind == "down":
        block = f"down_blocks.{level - 1}.downsamplers.0"
    elif kind == "up":
        block = f"up_blocks.{up_level - 1}.upsamplers.0"
    elif kind == "in":
        block = f"mid_block.resnets.{number}"
    elif side == "enc":
        block = f"down_blocks.{level}.resnets.{number}"
    else:
        block = f"up_blocks.{up_level}.resnets.{number}"
    part, _, leaf = rest.partition(".")
    if part in RESNET_KEYS:
        return {f"{block}.{RESNET_KEYS[part]}.{leaf}": tensor}
    return attention_tensors(block.replace("resnets", "attentions"), part, leaf, tensor)


def attention_tensors(attention: str, part: str, leaf: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of an attention: its 1x1 convolutions become linear layers.

    Args:
        attention: Name of the attention in diffusers.
        part: Published name of its part. In `qkv`, queries, keys and values take turns.
        leaf: `weight` or `bias`.
        tensor: The published tensor.
    """
    if part == "qkv":
        tensors = {f"{attention}.to_{name}.{leaf}": tensor[j::3] for j, name in enumerate("qkv")}
    else:
        tensors = {f"{attention}.{ATTENTION_KEYS.get(part, part)}.{leaf}": tensor}
    return {name: value.reshape(value.shape[:2]).contiguous() for name, value in tensors.items()}
