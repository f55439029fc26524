"""Checkpoints of OpenAI's guided-diffusion and improved-diffusion as networks and schedulers of diffusers.

Most networks become a stock `UNet2DModel`; the others an `OpenAIUNet2DModel`, which adds what the stock one lacks.
"""

import os
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, UNet2DModel

from .downloads import local_copy, locate
from .openai_architecture import NORM_GROUPS, OpenAIArchitecture, read_architecture
from .openai_arguments import OpenAIArguments, check_complete, complete
from .openai_unet import OpenAIUNet2DModel
from .openai_weights import converted_state_dict
from .state_dicts import SUFFIXES, assign_weights, read_state_dict


IMAGE_CHANNELS = (1, 3)
"""Channels of grey and of colour images."""


@dataclass(frozen=True)
class OpenAICheckpoint:
    """A network of guided-diffusion or improved-diffusion, unconverted.

    Args:
        architecture: What its weights tell.
        arguments: What they do not tell.
        state_dict: Its tensors, by their published names.
        source: Where it was read from, for messages.

    Raises:
        ValueError: An argument is missing or does not fit the architecture.
    """

    architecture: OpenAIArchitecture
    arguments: OpenAIArguments
    state_dict: dict[str, torch.Tensor]
    source: str

    def __post_init__(self):
        check_complete(self.arguments, self.architecture, self.source)


def read_openai_checkpoint(
    path: str | os.PathLike,
    arguments: OpenAIArguments | None = None,
    argument: str = "path",
    shared: dict | None = None,
) -> OpenAICheckpoint:
    """Read a checkpoint of guided-diffusion or improved-diffusion. Nothing in the file is run.

    Args:
        path: A state dict (`.pt`, `.pth`, `.safetensors`), with or without classes. Or the address of one, which is
            downloaded once: `https://HOST/FILE` or `hf://OWNER/REPOSITORY[@REVISION]/FILE`, each with `#sha256=DIGITS`
            at its end if it must have this SHA-256.
        arguments: How the network was trained. What is not given is taken from the published network of the same
            names and shapes; without one, all that the weights do not tell must be given.
        argument: Name of the caller's argument, for messages.
        shared: Arguments by name that are taken for a network of no published architecture.

    Returns:
        The checkpoint, unconverted; see `convert_openai_network` and `convert_openai_scheduler`.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: The file cannot be downloaded.
        ValueError: The file is damaged or holds something else: a classifier, a super-resolution network, the state
            of an optimizer; or an argument is missing or does not fit.

    Example:
        >>> checkpoint = read_openai_checkpoint("256x256_diffusion_uncond.pt")  # doctest: +SKIP
        >>> unet = convert_openai_network(checkpoint)  # doctest: +SKIP
        >>> scheduler = convert_openai_scheduler(checkpoint)  # doctest: +SKIP
    """
    location = locate(path, argument, SUFFIXES)
    source = location.source
    with local_copy(location) as file:
        state_dict = read_state_dict(file, source)
    architecture = read_architecture(state_dict, source)
    check_channels(architecture, source)
    arguments = complete(arguments or OpenAIArguments(), architecture, source, location.name, shared or {})
    return OpenAICheckpoint(architecture, arguments, state_dict, source)


def check_channels(architecture: OpenAIArchitecture, source: str) -> None:
    """Raise a `ValueError` unless a network denoises images, given nothing but them."""
    inputs, outputs = architecture.in_channels, architecture.out_channels
    if inputs in [2 * channels for channels in IMAGE_CHANNELS]:
        raise ValueError(
            f"{source} must hold a network that takes noisy images alone, got a super-resolution network (upsampler), "
            f"which takes {inputs} channels: the images and their low-resolution copies."
        )
    if inputs not in IMAGE_CHANNELS or outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"{source} must have images of 1 or 3 channels, and as many or twice as many outputs, got {inputs} "
            f"inputs and {outputs} outputs."
        )


def convert_openai_scheduler(checkpoint: OpenAICheckpoint) -> DDPMScheduler:
    """The process of a checkpoint.

    Args:
        checkpoint: The checkpoint.

    Returns:
        A `DDPMScheduler` with the checkpoint's schedule. For networks without a learned variance it has OpenAI's
        default, `fixed_large`, which matters to sampling only.
    """
    steps = checkpoint.arguments.diffusion_steps
    assert steps is not None  # `complete` has made sure
    learned = checkpoint.architecture.out_channels == 2 * checkpoint.architecture.in_channels
    linear = checkpoint.arguments.noise_schedule == "linear"
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule="linear" if linear else "squaredcos_cap_v2",
        beta_start=0.1 / steps,
        beta_end=20 / steps,
        prediction_type="sample" if checkpoint.arguments.predict_xstart else "epsilon",
        variance_type="learned_range" if learned else "fixed_large",
    )


def convert_openai_network(checkpoint: OpenAICheckpoint) -> UNet2DModel:
    """The network of a checkpoint, in float32, in evaluation mode.

    Args:
        checkpoint: The checkpoint.

    Returns:
        A `UNet2DModel` wherever it computes the same, else an `OpenAIUNet2DModel`: for attentions of several widths
        with one number of heads, a time embedding of another width than the first block, or rescaled timesteps.

    Raises:
        ValueError: The weights are not those of such a network.
    """
    architecture, arguments, source = checkpoint.architecture, checkpoint.arguments, checkpoint.source
    try:
        with torch.device("meta"):
            network = make_network(architecture, arguments)
        weights = converted_state_dict(
            checkpoint.state_dict,
            architecture,
            arguments.heads,
            bool(arguments.use_new_attention_order),
            arguments.num_classes,
            source,
        )
    except (ArithmeticError, LookupError, RuntimeError) as error:
        raise ValueError(
            f"{source} must have the weights of a network of guided-diffusion or improved-diffusion, got some with "
            f"which it cannot be built ({error!r})."
        ) from error
    assign_weights(network, weights, source)
    return network.eval()


def make_network(architecture: OpenAIArchitecture, arguments: OpenAIArguments) -> UNet2DModel:
    """The network of an architecture, without its weights."""
    widths, attended = architecture.block_out_channels, architecture.attention_levels
    plain_down = "ResnetDownsampleBlock2D" if architecture.resblock_updown else "DownBlock2D"
    plain_up = "ResnetUpsampleBlock2D" if architecture.resblock_updown else "UpBlock2D"
    resampling = "resnet" if architecture.resblock_updown else "conv"
    settings = {
        "sample_size": arguments.image_size,
        "in_channels": architecture.in_channels,
        "out_channels": architecture.out_channels,
        "block_out_channels": widths,
        "layers_per_block": architecture.num_res_blocks,
        "down_block_types": tuple("AttnDownBlock2D" if here else plain_down for here in attended),
        "up_block_types": tuple("AttnUpBlock2D" if here else plain_up for here in reversed(attended)),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "downsample_padding": 1,
        "time_embedding_type": "positional",
        "time_embedding_dim": 4 * architecture.model_channels,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_num_groups": NORM_GROUPS,
        "attn_norm_num_groups": NORM_GROUPS,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "resnet_time_scale_shift": "scale_shift" if architecture.use_scale_shift_norm else "default",
        "num_class_embeds": arguments.num_classes,
    }
    more: dict = {}
    head_widths = {width // arguments.heads(width) for width in architecture.attended_widths}
    if len(head_widths) == 1:
        settings["attention_head_dim"] = head_widths.pop()
    else:
        settings["attention_head_dim"] = None  # one head, whatever the width
        if arguments.num_heads != 1:
            more["num_attention_heads"] = arguments.num_heads
    if architecture.model_channels != widths[0]:
        more["time_proj_dim"] = architecture.model_channels
    if arguments.timestep_scale != 1:
        more["timestep_scale"] = arguments.timestep_scale
    return OpenAIUNet2DModel(**settings, **more) if more else UNet2DModel(**settings)
