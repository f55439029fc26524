"""Questions to a network: is it supported, and on which device and in which dtype does it compute?"""

from typing import TYPE_CHECKING

import torch
from diffusers import DiTTransformer2DModel, ModelMixin
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_network(name: str, network: ModelMixin) -> None:
    """Raise unless a network is of a supported class, with finite weights and an output that fits its input.

    Args:
        name: Name of the argument, for the message.
        network: The network, not compiled.

    Raises:
        TypeError: The class of the network is not supported.
        ValueError: A weight is not finite, or the number of output channels is neither that of the input channels nor
            twice that (the second half is a learned variance).
    """
    has_classes(name, network)
    check_weights(name, network)
    inputs = network.config.in_channels
    outputs = network.config.out_channels or inputs
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"`{name}` must have as many output channels as input channels, or twice as many (the second half being a "
            f"learned variance), got in_channels={inputs} and out_channels={outputs}."
        )


def check_same_images(unet: ModelMixin, unconditional_unet: ModelMixin) -> None:
    """Raise a `ValueError` if two networks, not compiled, take images of other channels or another size."""
    channels, size = unet.config.in_channels, image_sides(unet)
    own_channels, own_size = unconditional_unet.config.in_channels, image_sides(unconditional_unet)
    if own_channels != channels or (size and own_size and own_size != size):
        raise ValueError(
            f"`unconditional_unet` must take images as `unet` does, with in_channels={channels} and "
            f"sample_size={size}, got in_channels={own_channels} and sample_size={own_size}."
        )


def image_sides(network: ModelMixin) -> tuple[int, int] | None:
    """Height and width of what a network, compiled or not, denoises; `None` if it takes any size."""
    size = network.config.sample_size
    if not size:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def has_classes(name: str, network: ModelMixin) -> bool:
    """Whether a network takes class labels.

    Args:
        name: Name of the argument, for the message.
        network: The network, not compiled.

    Raises:
        TypeError: The class of the network is not supported.
    """
    if isinstance(network, DiTTransformer2DModel):
        return True
    # Configurations do not state it in one way. The UNets of diffusers have this attribute, `None` without classes.
    if not isinstance(network, nn.Module) or not hasattr(network, "class_embedding"):
        raise TypeError(
            f"`{name}` must be a UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, or a network with their "
            f"arguments, configuration and `class_embedding`, got {type(network).__name__}."
        )
    return network.class_embedding is not None


def check_weights(name: str, network: nn.Module) -> None:
    """Raise a `ValueError` if a weight of the network is NaN or infinite. Offloaded weights are not checked."""
    finite = []
    for weight in network.parameters():
        if weight.is_meta:  # offloaded: its values are elsewhere
            continue
        values = weight.float() if weight.itemsize == 1 else weight  # `isfinite` does not exist for eight bits
        finite.append(values.isfinite().all())
    if finite and not torch.stack(finite).all():
        raise ValueError(f"`{name}` must have finite weights, got weights that are NaN or infinite.")


def check_evaluation_mode(denoiser: nn.Module) -> None:
    """Raise a `ValueError` if training mode makes a denoiser's answers random beyond the seeds, or batch-dependent."""
    for part in denoiser.modules():
        is_random = isinstance(part, _DropoutNd) and part.p > 0
        depends_on_batch = isinstance(part, _BatchNorm)
        if part.training and (is_random or depends_on_batch):
            raise ValueError(
                "`denoiser` must be in evaluation mode, got a network in training mode, where its "
                f"{type(part).__name__} changes the answers. Call the network's `eval()`."
            )


def uncompiled(network: ModelMixin) -> ModelMixin:
    """The network itself, if `torch.compile` has wrapped it in a module of another class."""
    return getattr(network, "_orig_mod", network)  # torch has no public way to unwrap it


def timestep_table_size(network: ModelMixin) -> int | None:
    """Number of timesteps in the table of a network with a learned time embedding, `None` for other networks."""
    # not every network of diffusers has this setting
    if getattr(network.config, "time_embedding_type", None) == "learned":
        return network.config.num_train_timesteps
    return None


def computing_dtype(network: "ModelMixin | PreTrainedModel") -> str:
    """Name of the dtype that a network computes in: its own dtype, or that of autocast if it is enabled."""
    kind = computing_device(network)
    if torch.is_autocast_enabled(kind):
        return f"autocast {torch.get_autocast_dtype(kind)}".replace("torch.", "")
    return str(network.dtype).removeprefix("torch.")


def computing_device(network: nn.Module) -> str:
    """Type of the device that a network computes on. Offloaded weights may lie elsewhere until they are needed."""
    for part in network.modules():
        # accelerate attaches its hooks under this name and offers no function that asks for the device
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device).type
    return next(network.parameters()).device.type


def inference(module: nn.Module) -> torch.no_grad | torch.inference_mode:
    """Context for evaluations without gradients: `inference_mode` where weights stay in place, else `no_grad`.

    `inference_mode` is cheaper. But weights that offloading hooks move within it could never have gradients again.
    """
    # accelerate and diffusers attach their hooks under these names, without a function that asks for them
    moved = any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())
    return torch.no_grad() if moved else torch.inference_mode()
