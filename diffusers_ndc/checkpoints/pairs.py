"""A class-conditional checkpoint and one without classes, of one family or of two.

The class-conditional one says which reader it needs. Whether the other is of EDM or of OpenAI is told from the file.
"""

import os
from dataclasses import dataclass

from diffusers import ModelMixin
from diffusers.schedulers import SchedulerMixin

from .downloads import local_copy, locate
from .edm import convert_network, convert_scheduler
from .edm_arguments import OUTER_DEFAULTS, arguments
from .files import SUFFIXES, EDMCheckpoint, read_checkpoint
from .openai import OpenAICheckpoint, convert_openai_network, convert_openai_scheduler, read_openai_checkpoint
from .openai_arguments import OpenAIArguments
from .state_dicts import read_state_dict


PROCESS = ("noise_schedule", "diffusion_steps", "predict_xstart")
"""Arguments of OpenAI's that define a scheduler."""

EDM_NAME, OPENAI_NAME = "model.map_layer0.weight", "time_embed.0.weight"
"""Tensors that every network of the family has."""

Checkpoint = EDMCheckpoint | OpenAICheckpoint


@dataclass(frozen=True)
class CheckpointPair:
    """All that a classifier needs from one or two checkpoints.

    Args:
        unet: The class-conditional network.
        scheduler: Its scheduler.
        unconditional_unet: The network without classes, or `None`.
        unconditional_scheduler: The scheduler of that network if it was trained with another process, else `None`.
        null_class: The null class of `unet`, or `None`.
    """

    unet: ModelMixin
    scheduler: SchedulerMixin
    unconditional_unet: ModelMixin | None = None
    unconditional_scheduler: SchedulerMixin | None = None
    null_class: int | None = None


def read_checkpoints(
    path: str | os.PathLike,
    unconditional: str | os.PathLike | None = None,
    null_class: int | None = None,
    unconditional_arguments: OpenAIArguments | None = None,
) -> CheckpointPair:
    """Read all that a classifier needs from a checkpoint of EDM, and perhaps one without classes.

    Args:
        path: A class-conditional checkpoint: a published `.pkl`, or a state dict (`.pt`, `.pth`, `.safetensors`) with
            a JSON file of the same name beside it, `{"class_name": "EDMPrecond", "init_kwargs": {...}}`; or its
            address, as `read_checkpoint` takes it.
        unconditional: A checkpoint without classes, of EDM or of OpenAI, or `None`.
        null_class: The number of classes, if the label of all zeros was trained as "no class". This is assumed if the
            checkpoint's arguments have a `label_dropout`.
        unconditional_arguments: How an unconditional network of OpenAI was trained. Default: as the published one of
            its architecture.

    Returns:
        Networks and schedulers.

    Raises:
        FileNotFoundError: A file does not exist.
        OSError: A file cannot be downloaded.
        ValueError: A file is damaged or holds something else, or the two checkpoints do not fit each other.

    Example:
        >>> pair = read_checkpoints("edm-cifar10-32x32-cond-vp.pkl", "cifar10_uncond_50M_500K.pt")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    given, num_classes = arguments(checkpoint), checkpoint.num_classes
    if num_classes == 0:
        raise ValueError(
            f"{checkpoint.source} must hold a class-conditional network, got one without classes (label_dim=0). Pass "
            "such a network as `unconditional`."
        )
    if null_class not in (None, num_classes):
        raise ValueError(f"`null_class` must be {num_classes}, the number of classes, or None, got {null_class!r}.")
    if given["label_dropout"]:
        null_class = num_classes
    network = convert_network(checkpoint, no_label_row=null_class is not None)
    second, second_scheduler = None, None
    if unconditional is not None:
        shared = {"image_size": given["img_resolution"]}
        other = read_unconditional(unconditional, False, unconditional_arguments, shared)
        second, second_scheduler = convert_unconditional(other, checkpoint, network)
    return CheckpointPair(network, convert_scheduler(checkpoint), second, second_scheduler, null_class)


def read_openai_checkpoints(
    path: str | os.PathLike,
    unconditional: str | os.PathLike | None = None,
    arguments: OpenAIArguments | None = None,
    unconditional_arguments: OpenAIArguments | None = None,
) -> CheckpointPair:
    """Read all that a classifier needs from a checkpoint of OpenAI, and perhaps one without classes.

    Args:
        path: A class-conditional checkpoint: a state dict (`.pt`, `.pth`, `.safetensors`), or its address as
            `read_openai_checkpoint` takes it.
        unconditional: A checkpoint without classes, of OpenAI or of EDM, or `None`.
        arguments: How the class-conditional network was trained. Default: as the published one of its architecture.
        unconditional_arguments: How an unconditional network of OpenAI was trained. Default: as the published one of
            its architecture. If there is none, it has the image size, the noise schedule and the prediction of the
            class-conditional network.

    Returns:
        Networks and schedulers.

    Raises:
        FileNotFoundError: A file does not exist.
        OSError: A file cannot be downloaded.
        ValueError: A file is damaged or holds something else, an argument is missing or does not fit, or the two
            checkpoints do not fit each other.

    Example:
        >>> pair = read_openai_checkpoints("64x64_diffusion.pt", "imagenet64_uncond_100M_1500K.pt")  # doctest: +SKIP
    """
    checkpoint = read_openai_checkpoint(path, arguments)
    if checkpoint.architecture.num_labels is None:
        raise ValueError(
            f"{checkpoint.source} must hold a class-conditional network, got one without classes ('label_emb'). Pass "
            "such a network as `unconditional`."
        )
    network = convert_openai_network(checkpoint)
    second, second_scheduler = None, None
    if unconditional is not None:
        shared = {name: getattr(checkpoint.arguments, name) for name in ("image_size", *PROCESS)}
        other = read_unconditional(unconditional, True, unconditional_arguments, shared)
        second, second_scheduler = convert_unconditional(other, checkpoint, network)
    return CheckpointPair(network, convert_openai_scheduler(checkpoint), second, second_scheduler)


def read_unconditional(
    path: str | os.PathLike, beside_openai: bool, given: OpenAIArguments | None, shared: dict
) -> Checkpoint:
    """Read a checkpoint without classes, of whichever family it is.

    Args:
        path: The file, or its address.
        beside_openai: Whether the class-conditional network is of OpenAI. A file of neither family is read as its.
        given: How a network of OpenAI was trained.
        shared: Arguments of OpenAI's by name that are taken for a network of no published architecture.

    Raises:
        FileNotFoundError, OSError, ValueError: As the family's reader, or the network has classes, or `given` is for
            another family.
    """
    other: Checkpoint
    if is_of_openai(path, beside_openai):
        other = read_openai_checkpoint(path, given, "unconditional", shared)
        rows = other.architecture.num_labels or 0
    else:
        other = read_checkpoint(path, "unconditional")
        rows = other.num_classes
        if given is not None and given.given():
            raise ValueError(
                f"`unconditional_arguments` must be None for {other.source}, a checkpoint of EDM, which tells all of "
                f"them, got {given.given()}."
            )
    if rows:
        raise ValueError(f"{other.source} must hold a network without classes, got one with {rows} classes.")
    return other


def is_of_openai(path: str | os.PathLike, otherwise: bool, name: str = "unconditional") -> bool:
    """Whether a file is of OpenAI, by its ending or the names of its tensors; `otherwise` if they do not tell.

    Args:
        path: The file, or its address.
        otherwise: What to return if the file does not tell.
        name: Name of the argument with the path, for the messages.
    """
    location = locate(path, name, SUFFIXES)
    if location.suffix == ".pkl":
        return False
    with local_copy(location) as file:
        names = read_state_dict(file, location.source).keys()
    return otherwise if (OPENAI_NAME in names) == (EDM_NAME in names) else OPENAI_NAME in names


def convert_unconditional(
    other: Checkpoint, checkpoint: Checkpoint, unet: ModelMixin
) -> tuple[ModelMixin, SchedulerMixin | None]:
    """The network of a checkpoint without classes, and its scheduler if it was trained with another process.

    Args:
        other: The checkpoint without classes.
        checkpoint: The class-conditional checkpoint.
        unet: Its network.

    Raises:
        ValueError: The networks take images of other sizes or channels.
    """
    if isinstance(other, OpenAICheckpoint):
        network, scheduler = convert_openai_network(other), convert_openai_scheduler(other)
    else:
        network, scheduler = convert_network(other), convert_scheduler(other)
    channels, side = unet.config.in_channels, unet.config.sample_size
    own_channels, own_side = network.config.in_channels, network.config.sample_size
    if (own_channels, own_side) != (channels, side):
        raise ValueError(
            f"{other.source} must be a network of images {channels} x {side} x {side}, as {checkpoint.source} is, got "
            f"one of images {own_channels} x {own_side} x {own_side}."
        )
    return network, None if process(other) == process(checkpoint) else scheduler


def process(checkpoint: Checkpoint) -> tuple:
    """What defines the scheduler of a checkpoint, for comparison."""
    if isinstance(checkpoint, OpenAICheckpoint):
        return tuple(getattr(checkpoint.arguments, name) for name in PROCESS)
    given = arguments(checkpoint)
    return (checkpoint.class_name, *(given[name] for name in OUTER_DEFAULTS[checkpoint.class_name]))
