"""What people hold in their hands (PIL images, numpy arrays, tensors, lists of them) as one batch in pixel units."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from ..common.images import check_floating


Image = PIL.Image.Image | np.ndarray | torch.Tensor
Images = Image | Sequence[Image]

ACCEPTED = (
    "a PIL image, a numpy array (H, W[, C]) or (N, H, W, C), a tensor (C, H, W) or (N, C, H, W), or a list of them"
)

PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Modes with 8 bits a channel, or one; what is white in the others, PIL does not know."""


def to_pixel_batch(images: Images, channels: int, size: tuple[int, int] | None) -> tuple[torch.Tensor, bool]:
    """One float32 batch in the usual memory order, by which networks round alike; uint8 values divided by 255.

    PIL images are converted to the network's colour mode and, where needed, resized to its size; arrays and tensors
    must fit as they are.

    Args:
        images: A PIL image, array or tensor, one or a batch or a list.
        channels: 1 (grey) or 3 (RGB) for PIL images; the last axis of arrays and the first of tensors.
        size: Height and width of PIL images after resizing; `None` leaves them as they are.

    Returns:
        The batch, shape `(N, C, H, W)`, and whether `images` was a single one.

    Raises:
        TypeError: `images` or one of its elements is of another kind.
        ValueError: The list is empty, its images differ in shape, an image has a wrong number of axes, or a PIL image
            has no pixels or not 8 bits a channel.
    """
    if isinstance(images, Sequence):
        if not images:
            raise ValueError(f"`images` is an empty list; accepted is {ACCEPTED}.")
        batches = [_one_kind(image, channels, size) for image in images]
        if len({batch.shape[1:] for batch in batches}) > 1:
            shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
            raise ValueError(f"`images` differ in shape: {shapes}; accepted are images of one shape.")
        return torch.cat(batches), False
    batch = _one_kind(images, channels, size)
    return batch, isinstance(images, PIL.Image.Image) or images.ndim < 4


def _one_kind(image: Image, channels: int, size: tuple[int, int] | None) -> torch.Tensor:
    if isinstance(image, PIL.Image.Image):
        if image.mode not in PIL_MODES or 0 in image.size:
            raise ValueError(
                f"`images` holds a PIL image of mode {image.mode} and size {image.size}; accepted are the modes "
                f"{PIL_MODES}, with at least one pixel."
            )
        if channels in (1, 3):  # before the resizing: between the places of a palette, it would mean nothing
            image = image.convert("L" if channels == 1 else "RGB")
        processor = VaeImageProcessor(vae_scale_factor=1, resample="bicubic", do_normalize=False)
        return processor.preprocess(image, *(size or image.size[::-1])).float().contiguous()
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim not in (3, 4):
            raise ValueError(f"`images` holds an array of shape {image.shape}; accepted is {ACCEPTED}.")
        if image.dtype != np.uint8 and image.dtype.kind != "f":
            raise TypeError(f"`images` holds values of type {image.dtype}; accepted are uint8 (0 to 255) and floats.")
        kind = np.uint8 if image.dtype == np.uint8 else np.float32
        image = torch.from_numpy(np.array(image, dtype=kind, order="C")).movedim(-1, -3)
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"`images` holds a {type(image).__name__}; accepted is {ACCEPTED}.")
    if image.ndim not in (3, 4):
        raise ValueError(f"`images` holds a tensor of shape {tuple(image.shape)}; accepted is {ACCEPTED}.")
    if image.dtype == torch.uint8 and not image.is_meta:
        image = image / 255
    elif not (image.is_floating_point() or image.is_meta):
        raise TypeError(f"`images` holds values of type {image.dtype}; accepted are uint8 (0 to 255) and floats.")
    check_floating(image)
    return (image if image.ndim == 4 else image[None]).to(torch.float32).contiguous()
