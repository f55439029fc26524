"""The architecture of a network of OpenAI, told from the names and shapes of its tensors."""

import re
from dataclasses import dataclass

import torch


MAX_BLOCKS = 1000
"""Largest number of blocks. A damaged file with more would take forever to build."""

NORM_GROUPS = 32
"""Groups of every norm, whatever the width."""

BLOCK = re.compile(r"(input|output)_blocks\.(\d{1,4})\.")


@dataclass(frozen=True)
class OpenAIArchitecture:
    """A network of guided-diffusion or improved-diffusion, as far as its weights tell.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output: twice those of the images with a learned variance.
        model_channels: OpenAI's `num_channels`, the number of sines and cosines of the time embedding.
        block_out_channels: Width at each level, from the highest resolution down.
        num_res_blocks: Residual blocks at each level of the encoder; the decoder has one more.
        attention_levels: Whether a level has attention. The middle of the network always has one.
        resblock_updown: Whether residual blocks resample, instead of convolutions.
        use_scale_shift_norm: Whether the time embedding scales and shifts, instead of only shifting.
        num_labels: Rows of the class embedding, `None` for a network without classes.
    """

    in_channels: int
    out_channels: int
    model_channels: int
    block_out_channels: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[bool, ...]
    resblock_updown: bool
    use_scale_shift_norm: bool
    num_labels: int | None

    @property
    def attended_widths(self) -> list[int]:
        """Widths of the attentions, each once."""
        widths = zip(self.block_out_channels, self.attention_levels, strict=True)
        return sorted({width for width, attended in widths if attended} | {self.block_out_channels[-1]})


def read_architecture(state_dict: dict[str, torch.Tensor], source: str) -> OpenAIArchitecture:
    """Tell the architecture of a network from its state dict.

    Args:
        state_dict: Its tensors, by OpenAI's names.
        source: Where it was read from, for messages.

    Raises:
        ValueError: It is no network of OpenAI, or one of its classifiers, which is half such a network.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    if "time_embed.0.weight" not in shapes or "input_blocks.0.0.weight" not in shapes:
        raise ValueError(
            f"{source} must hold a network of OpenAI's guided-diffusion or improved-diffusion, got a state dict "
            f"without 'time_embed.0.weight' and 'input_blocks.0.0.weight' (it has {sorted(shapes)[:3]})."
        )
    if not any(name.startswith("output_blocks.") for name in shapes):
        raise ValueError(
            f"{source} must hold a diffusion network, got one of OpenAI's noisy classifiers (a network without "
            "'output_blocks'), which cannot denoise."
        )
    try:
        architecture = _read(shapes, source)
    except LookupError as error:
        raise ValueError(
            f"{source} must have the tensors of a network of guided-diffusion or improved-diffusion, got none of the "
            f"name or shape needed ({error})."
        ) from error
    if any(width < 1 or width % NORM_GROUPS != 0 for width in architecture.block_out_channels):
        raise ValueError(
            f"{source} must have widths that are multiples of {NORM_GROUPS}, got {architecture.block_out_channels}."
        )
    return architecture


def _read(shapes: dict[str, tuple[int, ...]], source: str) -> OpenAIArchitecture:
    num_blocks = count_blocks(shapes, source)
    upsamplers = [index for index in range(num_blocks) if upsampler(shapes, index) is not None]
    # Every level of the decoder but the last ends in an upsampler.
    period = upsamplers[0] + 1 if upsamplers else num_blocks
    if period < 2 or num_blocks % period != 0 or upsamplers != list(range(period - 1, num_blocks - 1, period)):
        raise ValueError(
            f"{source} must have as many blocks at each level, got upsamplers in the output blocks {upsamplers} of "
            f"{num_blocks}."
        )
    first_blocks = range(num_blocks - period, -1, -period)  # of each level's decoder, from the highest resolution down
    widths = tuple(shapes[f"output_blocks.{first}.0.out_layers.3.weight"][0] for first in first_blocks)
    labels = shapes.get("label_emb.weight")
    return OpenAIArchitecture(
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        model_channels=shapes["time_embed.0.weight"][1],
        block_out_channels=widths,
        num_res_blocks=period - 1,
        attention_levels=tuple(f"output_blocks.{first}.1.qkv.weight" in shapes for first in first_blocks),
        resblock_updown=bool(upsamplers) and upsampler(shapes, upsamplers[0]) == "in_layers.0",
        use_scale_shift_norm=shapes["middle_block.0.emb_layers.1.weight"][0] == 2 * widths[-1],
        num_labels=None if labels is None else labels[0],
    )


def count_blocks(shapes: dict[str, tuple[int, ...]], source: str) -> int:
    """Number of blocks of the encoder, which is that of the decoder.

    Raises:
        ValueError: A block is missing, or there are too many.
    """
    found: dict[str, set[int]] = {"input": set(), "output": set()}
    for name in shapes:
        match = BLOCK.match(name)
        if match is not None:
            found[match[1]].add(int(match[2]))
    inputs, outputs = found["input"], found["output"]
    num_blocks = len(outputs)
    if inputs != outputs or outputs != set(range(num_blocks)) or num_blocks > MAX_BLOCKS:
        raise ValueError(
            f"{source} must have as many 'input_blocks' as 'output_blocks', numbered without a gap, and at most "
            f"{MAX_BLOCKS}, got {len(inputs)} and {num_blocks}. Networks that resample without weights "
            "(conv_resample=False) are not supported."
        )
    return num_blocks


def upsampler(shapes: dict[str, tuple[int, ...]], index: int) -> str | None:
    """What an output block ends in: `in_layers.0` (a residual block that doubles), `conv`, or `None`."""
    for child in (1, 2):  # the second one if attention is the first
        for part in ("in_layers.0", "conv"):
            if f"output_blocks.{index}.{child}.{part}.weight" in shapes:
                return part
    return None
