"""The tensors of OpenAI's networks under the names, and in the shapes, of diffusers."""

from collections.abc import Callable, Iterator

import torch

from .openai_architecture import OpenAIArchitecture


OUTER_PARTS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION_PARTS = {"norm": "group_norm", "proj_out": "to_out.0"}


def converted_state_dict(
    state_dict: dict[str, torch.Tensor],
    architecture: OpenAIArchitecture,
    heads: Callable[[int], int],
    use_new_attention_order: bool,
    num_classes: int | None,
    source: str,
) -> dict[str, torch.Tensor]:
    """The state dict of the converted network, in float32.

    Args:
        state_dict: The published tensors.
        architecture: The architecture that they belong to.
        heads: From the width of an attention to its number of heads.
        use_new_attention_order: Whether queries, keys and values lie one after the other, or take turns by heads.
        num_classes: Rows of the class embedding to keep, or `None`.
        source: Where the tensors were read from, for the message.

    Raises:
        ValueError: A tensor has a name that the architecture does not have.
    """
    parts, attentions = dict(OUTER_PARTS), {}
    for kind, old, new in blocks(architecture):
        if kind == "conv":
            parts[old] = new
        elif kind == "resnet":
            parts |= {f"{old}.{part}": f"{new}.{name}" for part, name in RESNET_PARTS.items()}
        else:
            parts |= {f"{old}.{part}": f"{new}.{name}" for part, name in ATTENTION_PARTS.items()}
            attentions[f"{old}.qkv"] = new
    converted = {}
    for name, tensor in state_dict.items():
        part, _, leaf = name.rpartition(".")
        tensor = tensor.float()
        if part in attentions:
            new_order = use_new_attention_order
            for letter, rows in zip("qkv", split_qkv(tensor, heads(tensor.shape[0] // 3), new_order), strict=True):
                converted[f"{attentions[part]}.to_{letter}.{leaf}"] = rows
        elif part in parts:
            if part.endswith(".proj_out"):
                tensor = tensor.flatten(start_dim=1) if leaf == "weight" else tensor
            elif part == "label_emb":
                tensor = tensor[:num_classes]
            converted[f"{parts[part]}.{leaf}"] = tensor.contiguous()
        else:
            raise ValueError(f"{source} must have tensors that such a network has, got '{name}'.")
    return converted


def blocks(architecture: OpenAIArchitecture) -> Iterator[tuple[str, str, str]]:
    """The blocks of a network: `resnet`, `attention` or `conv`, its published name, and its name in diffusers."""
    num_levels, num_resnets = len(architecture.block_out_channels), architecture.num_res_blocks
    period = num_resnets + 1
    sampler, conv = ("resnet", ("", "")) if architecture.resblock_updown else ("conv", (".op", ".conv"))
    for level, attended in enumerate(architecture.attention_levels):
        for j in range(num_resnets):
            block = f"input_blocks.{level * period + 1 + j}"
            yield "resnet", f"{block}.0", f"down_blocks.{level}.resnets.{j}"
            if attended:
                yield "attention", f"{block}.1", f"down_blocks.{level}.attentions.{j}"
        if level < num_levels - 1:
            block = f"input_blocks.{(level + 1) * period}"
            yield sampler, f"{block}.0{conv[0]}", f"down_blocks.{level}.downsamplers.0{conv[1]}"

    yield "resnet", "middle_block.0", "mid_block.resnets.0"
    yield "attention", "middle_block.1", "mid_block.attentions.0"
    yield "resnet", "middle_block.2", "mid_block.resnets.1"

    for up, attended in enumerate(reversed(architecture.attention_levels)):
        for j in range(period):
            block = f"output_blocks.{up * period + j}"
            yield "resnet", f"{block}.0", f"up_blocks.{up}.resnets.{j}"
            if attended:
                yield "attention", f"{block}.1", f"up_blocks.{up}.attentions.{j}"
        if up < num_levels - 1:
            child = 2 if attended else 1
            yield sampler, f"{block}.{child}{conv[1]}", f"up_blocks.{up}.upsamplers.0{conv[1]}"


def split_qkv(tensor: torch.Tensor, num_heads: int, new_order: bool) -> list[torch.Tensor]:
    """Queries, keys and values of an attention, each with its heads one after the other, as diffusers has them.

    Args:
        tensor: Weight, shape `(3 * channels, channels, 1)`, or bias, shape `(3 * channels,)`.
        num_heads: Number of heads.
        new_order: Whether the three lie one after the other. Otherwise each head has its own three in a row.

    Returns:
        Three tensors of shape `(channels, channels)` or `(channels,)`.
    """
    rows = tensor.reshape(3, -1) if new_order else tensor.reshape(num_heads, 3, -1).transpose(0, 1)
    shape = (tensor.shape[0] // 3, *tensor.shape[1:2])
    return [part.reshape(shape).contiguous() for part in rows]
