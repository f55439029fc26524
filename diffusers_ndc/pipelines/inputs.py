"""Images as people have them (PIL images, numpy arrays, tensors, lists of them) as one batch in pixel units."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from ..common.images import check_floating


Image = PIL.Image.Image | np.ndarray | torch.Tensor
Images = Image | Sequence[Image]

EXPECTED = (
    "a PIL image, a numpy array (H, W[, C]) or (N, H, W, C), a tensor (C, H, W) or (N, C, H, W), or a list of them"
)

FAULTS = (OSError, ValueError, TypeError, SyntaxError, PIL.Image.DecompressionBombError)
"""What reading a damaged image raises: PIL has no common class for that."""

PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Modes with 8 bits or one bit per channel. PIL does not know which value is white in the others."""


def one_of(images: Images | None, image: Images | None) -> Images:
    """The images that were given, as `images` or by the name that other pipelines use.

    Raises:
        TypeError: Both are given, or neither is.
    """
    if images is None:
        images = image
    elif image is not None:
        raise TypeError("`images` or `image` must be given, got both.")
    if images is None:
        raise TypeError("`images` or `image` must be given, got neither.")
    return images


def to_pixel_batch(images: Images, channels: int, size: tuple[int, int] | None) -> tuple[torch.Tensor, bool]:
    """Convert images to one float32 batch; uint8 values are divided by 255.

    PIL images are converted to the network's colour mode and, if necessary, resized to its size. Arrays and tensors
    are not resized. The batch is contiguous: networks round alike for one memory order.

    Args:
        images: A PIL image, array or tensor, a batch, or a list of them.
        channels: Channels of converted PIL images: 1 (grey) or 3 (RGB).
        size: Height and width of resized PIL images. `None` leaves them as they are.

    Returns:
        The batch, shape `(N, C, H, W)`, and whether `images` was a single image.

    Raises:
        TypeError: `images`, an element or a value is of a wrong type.
        ValueError: The list is empty, its images differ in shape, an image has a wrong number of axes, or a PIL image
            has no pixels or not 8 bits per channel.

    Example:
        >>> batch, single = to_pixel_batch(np.full((28, 28), 255, np.uint8), channels=1, size=(28, 28))
        >>> batch.shape, batch.max().item(), single
        (torch.Size([1, 1, 28, 28]), 1.0, True)
    """
    if isinstance(images, Sequence):
        if not images:
            raise ValueError(f"`images` must be {EXPECTED}, got an empty list.")
        batches = [_convert(image, channels, size) for image in images]
        shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
        if len(shapes) > 1:
            raise ValueError(f"`images` must be of one shape, got {shapes}.")
        return torch.cat(batches), False
    batch = _convert(images, channels, size)
    single = isinstance(images, PIL.Image.Image) or images.ndim < 4
    return batch, single


def _convert(image: Image, channels: int, size: tuple[int, int] | None) -> torch.Tensor:
    """One element as a float32 batch of its own, shape `(N, C, H, W)`."""
    if isinstance(image, PIL.Image.Image):
        return _convert_pil(image, channels, size)
    if isinstance(image, np.ndarray):
        tensor = _tensor_of_array(image)
    elif isinstance(image, torch.Tensor):
        tensor = image
    else:
        raise TypeError(f"`images` must be {EXPECTED}, got {type(image).__name__}.")
    if tensor.ndim not in (3, 4):
        raise ValueError(f"`images` must be {EXPECTED}, got a tensor of shape {tuple(tensor.shape)}.")
    if tensor.dtype == torch.uint8 and not tensor.is_meta:
        tensor = tensor / 255
    elif not (tensor.is_floating_point() or tensor.is_meta):
        raise TypeError(f"`images` must have values of type uint8 (0 to 255) or float, got {tensor.dtype}.")
    check_floating(tensor)
    if tensor.ndim == 3:
        tensor = tensor[None]
    return tensor.to(torch.float32).contiguous()


def _convert_pil(image: PIL.Image.Image, channels: int, size: tuple[int, int] | None) -> torch.Tensor:
    if image.mode not in PIL_MODES or 0 in image.size:
        raise ValueError(
            f"`images` must be PIL images of the modes {PIL_MODES} with at least one pixel, got the mode {image.mode} "
            f"and size {image.size}."
        )
    if channels in (1, 3):  # before the resizing: the indices of a palette cannot be interpolated
        image = image.convert("L" if channels == 1 else "RGB")
    height, width = image.size[::-1] if size is None else size
    processor = VaeImageProcessor(vae_scale_factor=1, resample="bicubic", do_normalize=False)
    return processor.preprocess(image, height, width).float().contiguous()


def _tensor_of_array(array: np.ndarray) -> torch.Tensor:
    """An array with the channels last as a tensor with the channels first."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim not in (3, 4):
        raise ValueError(f"`images` must be {EXPECTED}, got an array of shape {array.shape}.")
    if array.dtype == np.uint8:
        plain = np.array(array, dtype=np.uint8, order="C")
    elif array.dtype.kind == "f":
        plain = np.array(array, dtype=np.float32, order="C")
    else:
        raise TypeError(f"`images` must have values of type uint8 (0 to 255) or float, got {array.dtype}.")
    return torch.from_numpy(plain).movedim(-1, -3)
