"""Checks and content hash of image tensors, and what many images are that are read a few at a time."""

import hashlib
from typing import Protocol

import numpy as np
import torch


FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ImageRows(Protocol):
    """N images of which a few are read at a time: a tensor `(N, C, H, W)`, or an object that makes them when asked."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """The images with these numbers, shape `(n, C, H, W)`, pixel units; the same values each time."""


def check_floating(tensor: object, name: str = "images") -> None:
    """Raise a `TypeError` unless `tensor` is a dense floating-point tensor that holds values (not `meta`)."""
    if not isinstance(tensor, torch.Tensor):
        given = type(tensor).__name__
    elif (
        tensor.dtype in FLOATING_DTYPES
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and not tensor.is_nested
    ):
        return
    else:
        given = f"a tensor of {tensor.dtype} ({tensor.layout}, {tensor.device})"
    raise TypeError(f"`{name}` must be a dense floating-point tensor, got {given}.")


def check_pixel_range(images: torch.Tensor, sigma: float = 0.0) -> None:
    """Raise a `ValueError` if values are NaN, or beyond [0, 1] by more than Gaussian noise of `sigma` explains.

    Args:
        images: Any shape, pixel units.
        sigma: Standard deviation of the noise that the images carry, pixel units. Ten times this is allowed for.
    """
    low, high = images.min().item(), images.max().item()
    margin = 10 * float(sigma)  # `sigma` may be an unsigned integer of numpy
    if not (low >= -margin and high <= 1 + margin):
        noise = f" plus noise of sigma={sigma}" if sigma else ""
        raise ValueError(f"`images` must have values in [0, 1]{noise}, without NaN, got {low:.4g} to {high:.4g}.")


def check_clean_images(images: torch.Tensor, axes: str) -> None:
    """Raise unless these are clean images: a dense floating-point tensor with such axes and values in [0, 1].

    Args:
        images: The images, pixel units.
        axes: "NCHW" for a batch, "CHW" for one image.

    Raises:
        TypeError, ValueError: They are not.
    """
    check_floating(images)
    if images.ndim != len(axes) or images.numel() == 0:
        raise ValueError(f"`images` must have the shape ({', '.join(axes)}), without a 0, got {tuple(images.shape)}.")
    check_pixel_range(images)


def content_hash(image: torch.Tensor) -> str:
    """Hash of an image's shape and values (as float32): 32 hexadecimal digits, the same on every device."""
    values = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]
