"""Image processors of transformers, on tensors: each image by itself, and differentiable."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F


if TYPE_CHECKING:
    from transformers import BaseImageProcessor


RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""torch's names of PIL's ways of resizing, by PIL's numbers."""

SUPPORTED_STEPS = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}
"""Steps of an image processor that `preprocess` can do."""


def preprocess(
    images: torch.Tensor,
    num_channels: int,
    size: dict[str, int] | None,
    resample: str | None,
    image_mean: list[float] | None,
    image_std: list[float] | None,
) -> torch.Tensor:
    """Prepare images for a classifier as its image processor does.

    Args:
        images: Shape `(N, C, H, W)` in [0, 1], float32 or float64.
        num_channels: Channels of the result; a single grey channel is repeated.
        size: `height` and `width`, or `shortest_edge`, which keeps the aspect ratio. `None`: the size stays.
        resample: `bilinear` or `bicubic`, both with antialiasing as PIL has it.
        image_mean: Subtracted; one value for all channels, or one per channel. `None`: no normalisation.
        image_std: Divisor, likewise.
    """
    if size is not None and resample is not None:
        height, width = images.shape[2:]
        if "shortest_edge" in size:
            edge = size["shortest_edge"]
            target = [edge * side // min(height, width) for side in (height, width)]
        else:
            target = [size["height"], size["width"]]
        # the cubic kernel overshoots; the 8-bit images that classifiers are trained on end at 0 and 1
        images = F.interpolate(images, target, mode=resample, antialias=True).clamp(0, 1)
    images = images.expand(-1, num_channels, -1, -1)
    if image_mean is None:
        return images
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
    return (images - mean) / std


def read_preprocessing(image_processor: "BaseImageProcessor", num_channels: int) -> dict:
    """The arguments of `preprocess` for an image processor of transformers, as plain values.

    Args:
        image_processor: The image processor.
        num_channels: Channels that the classifier takes.

    Raises:
        TypeError: `image_processor` is of another kind.
        ValueError: It has a step or setting that `preprocess` does not support.
    """
    if not hasattr(image_processor, "to_dict"):  # image processors share no public base class
        raise TypeError(
            f"`image_processor` must be an image processor of transformers, got {type(image_processor).__name__}."
        )
    config, name = image_processor.to_dict(), type(image_processor).__name__
    steps = {step for step, value in config.items() if step.startswith("do_") and value}
    _check_steps(name, config, steps)
    size = resample = mean = std = None
    if "do_resize" in steps:
        size, resample = _resizing(name, config)
    if "do_normalize" in steps:
        mean, std = _normalisation(name, config, num_channels)
    return {"size": size, "resample": resample, "image_mean": mean, "image_std": std}


def _check_steps(name: str, config: dict, steps: set[str]) -> None:
    # `crop_pct` crops while resizing, the other two change the normalisation
    settings = {setting for setting in ("crop_pct", "include_top", "rescale_offset") if config.get(setting)}
    unsupported = sorted((steps - SUPPORTED_STEPS) | settings)
    if unsupported:
        raise ValueError(
            f"`image_processor` ({name}) must have no steps beside {sorted(SUPPORTED_STEPS)}, got {unsupported}. If "
            "the classifier can do without them, set them to False or None."
        )
    if "do_rescale" not in steps or not math.isclose(config["rescale_factor"], 1 / 255):
        raise ValueError(
            f"`image_processor` ({name}) must have do_rescale=True and rescale_factor=1/255 (values in [0, 1]), got "
            f"{config.get('do_rescale')} and {config.get('rescale_factor')}."
        )


def _resizing(name: str, config: dict) -> tuple[dict, str | None]:
    size, resample = dict(config["size"]), RESAMPLING.get(config["resample"])
    if set(size) not in ({"height", "width"}, {"shortest_edge"}) or resample is None:
        raise ValueError(
            f"`image_processor` ({name}) must have a size with height and width or shortest_edge, and a resample of "
            f"{RESAMPLING}, got size={size} and resample={config['resample']!r}."
        )
    return size, resample


def _normalisation(name: str, config: dict, num_channels: int) -> tuple[list[float], list[float]]:
    mean, std = _as_list(config["image_mean"]), _as_list(config["image_std"])
    for values in (mean, std):
        if len(values) not in (1, num_channels):
            raise ValueError(
                f"`image_processor` ({name}) must have an image_mean and image_std of one value, or of one per "
                f"channel ({num_channels}), got {mean} and {std}."
            )
    return mean, std


def _as_list(values: float | list[float] | None) -> list[float]:
    if values is None:
        return []
    return [values] if isinstance(values, (int, float)) else list(values)
