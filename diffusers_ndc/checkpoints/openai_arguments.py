"""What the weights of OpenAI's networks do not tell: the flags of their training, published or given."""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePath

from ..common.checks import check_integer
from .openai_architecture import OpenAIArchitecture


NOISE_SCHEDULES = ("linear", "cosine")

MIN_STEPS, MAX_STEPS = 21, 100_000
"""Numbers of training steps: with 20 or fewer, the last variance of the linear schedule would exceed 1."""

MAX_NUMBER = 65_536

RESCALED_STEPS = 1000
"""Steps to which `rescale_timesteps` scales every process."""


@dataclass(frozen=True, kw_only=True)
class OpenAIArguments:
    """How a network of OpenAI was trained, as far as its weights do not tell, by the names of OpenAI's flags.

    Args:
        image_size: Height and width of the images, in pixels.
        num_heads: Number of heads of every attention. `num_head_channels` takes its place if both are given.
        num_head_channels: Width of every head; -1, as in OpenAI's scripts, if `num_heads` decides.
        use_new_attention_order: Whether queries, keys and values lie one after the other in the weights.
        noise_schedule: `linear` or `cosine`.
        diffusion_steps: Number T of noise levels in training.
        rescale_timesteps: Whether the network was told `1000 t / T` instead of `t`.
        predict_xstart: Whether it predicts the clean image instead of the noise.
        num_classes: Number of trained classes. OpenAI's scripts give every class-conditional network 1000 rows.

    `None` means that an argument is not given.

    Raises:
        ValueError: A value is not as described.
    """

    image_size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    use_new_attention_order: bool | None = None
    noise_schedule: str | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None
    predict_xstart: bool | None = None
    num_classes: int | None = None

    def __post_init__(self):
        for name in ("image_size", "num_heads", "num_classes"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1, MAX_NUMBER)
        channels = self.num_head_channels
        if channels is not None and (type(channels) is not int or channels != -1):
            check_integer("num_head_channels", channels, 1, MAX_NUMBER, "-1 or an integer")
        if self.diffusion_steps is not None:
            check_integer("diffusion_steps", self.diffusion_steps, MIN_STEPS, MAX_STEPS)
        schedule = self.noise_schedule
        if schedule is not None and (type(schedule) is not str or schedule not in NOISE_SCHEDULES):
            raise ValueError(f"`noise_schedule` must be one of {NOISE_SCHEDULES}, got {schedule!r}.")
        for name in ("use_new_attention_order", "rescale_timesteps", "predict_xstart"):
            if getattr(self, name) is not None and type(getattr(self, name)) is not bool:
                raise ValueError(f"`{name}` must be True, False or None, got {getattr(self, name)!r}.")

    @classmethod
    def from_dict(cls, values: dict, argument: str) -> "OpenAIArguments":
        """The arguments of a dictionary of them by name.

        Args:
            values: The dictionary.
            argument: Name of the caller's argument, for messages.

        Raises:
            ValueError: It is not a dictionary, a name is unknown, or a value is not as described.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or not set(values) <= set(names):
            raise ValueError(f"`{argument}` must be a dictionary with keys among {names}, got {values!r}.")
        return cls(**values)

    def given(self) -> dict:
        """The arguments that are given, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def heads(self, width: int) -> int:
        """Number of heads of an attention of a width.

        Raises:
            ValueError: Neither their number nor their width is given.
        """
        if self.num_head_channels is not None and self.num_head_channels != -1:
            return width // self.num_head_channels
        if self.num_heads is None:
            raise ValueError("`num_heads` or `num_head_channels` must be given, got neither.")
        return self.num_heads

    @property
    def timestep_scale(self) -> float:
        """What the network is told per step, for complete arguments."""
        return RESCALED_STEPS / self.diffusion_steps if self.rescale_timesteps and self.diffusion_steps else 1.0


@cache
def published() -> list[dict]:
    """The kinds of published networks: names of files, architecture, arguments."""
    kinds = json.loads(resources.files(__package__).joinpath("openai_published.json").read_text(encoding="utf-8"))
    for kind in kinds:
        told = kind["architecture"]
        for name in ("block_out_channels", "attention_levels"):
            told[name] = tuple(told[name])
        kind["architecture"] = OpenAIArchitecture(**told)
    return kinds


def complete(
    given: OpenAIArguments,
    architecture: OpenAIArchitecture,
    source: str,
    file_name: str,
    shared: dict,
) -> OpenAIArguments:
    """Add the arguments that are not given: those of the published network of this architecture, if there is one.

    Args:
        given: The arguments that are given, which win.
        architecture: The architecture of the network.
        source: Where it was read from, for messages.
        file_name: Name of its file. A warning states what is assumed of a file that is not named as published.
        shared: Arguments that a network of another architecture shares with a network it is used with.

    Raises:
        ValueError: An argument that is needed is not known, or does not fit the architecture.
    """
    values = given.given()
    kind = next((kind for kind in published() if kind["architecture"] == architecture), None)
    known = dict(kind["arguments"]) if kind is not None else dict(shared)
    if "num_heads" in values or "num_head_channels" in values:
        known = {name: value for name, value in known.items() if name not in ("num_heads", "num_head_channels")}
    assumed = {name: value for name, value in known.items() if name not in values}
    arguments = OpenAIArguments(**values, **assumed)
    check_complete(arguments, architecture, source)
    if kind is not None and assumed and PurePath(file_name).name not in kind["files"]:
        warnings.warn(
            f"{source} has the tensors of {kind['files'][0]}, and is taken to be trained like it: {assumed}. Pass the "
            "arguments in which it differs.",
            stacklevel=2,
        )
    return arguments


def check_complete(arguments: OpenAIArguments, architecture: OpenAIArchitecture, source: str) -> None:
    """Raise a `ValueError` if an argument that is needed is not known, or one does not fit the architecture."""
    known = arguments.given()
    missing = [
        name for name in ("image_size", "noise_schedule", "diffusion_steps", "predict_xstart") if name not in known
    ]
    if known.get("diffusion_steps") != RESCALED_STEPS and "rescale_timesteps" not in known:
        missing.append("rescale_timesteps")
    if "num_heads" not in known and known.get("num_head_channels", -1) == -1:
        missing.append("num_heads or num_head_channels")
    elif "use_new_attention_order" not in known and any(arguments.heads(w) > 1 for w in architecture.attended_widths):
        missing.append("use_new_attention_order")
    if architecture.num_labels is not None and "num_classes" not in known:
        missing.append("num_classes")
    if missing:
        raise ValueError(
            f"`{'`, `'.join(missing).replace(' or ', '` or `')}` must be given for {source}: its weights do not "
            "tell how it was trained, which is known of published networks only, and a wrong value would give wrong "
            f"answers without an error. Got {known or 'none'}."
        )
    check_fit(arguments, architecture, source)


def check_fit(arguments: OpenAIArguments, architecture: OpenAIArchitecture, source: str) -> None:
    """Raise a `ValueError` if one of the arguments, none of which is missing, does not fit the architecture."""
    for width in architecture.attended_widths:
        heads = arguments.heads(width)
        if heads == 0 or width % heads != 0 or arguments.num_head_channels not in (None, -1, width // heads):
            raise ValueError(
                "`num_heads` and `num_head_channels` must divide the widths with attention of "
                f"{source}, {architecture.attended_widths}, got num_heads={arguments.num_heads} and "
                f"num_head_channels={arguments.num_head_channels}."
            )
    multiple = 2 ** (len(architecture.block_out_channels) - 1)
    if arguments.image_size is None or arguments.image_size % multiple != 0:
        raise ValueError(f"`image_size` must be a multiple of {multiple} for {source}, got {arguments.image_size}.")
    if arguments.num_classes is not None and arguments.num_classes > (architecture.num_labels or 0):
        raise ValueError(
            f"`num_classes` must be at most {architecture.num_labels or 0}, the rows of the class embedding of "
            f"{source}, got {arguments.num_classes}."
        )
