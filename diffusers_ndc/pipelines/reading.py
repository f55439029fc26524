"""Many images, each decoded when it is read, so that memory does not grow with their number."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from ..common.images import check_pixel_range
from ..diffusion.denoiser import Denoiser
from .inputs import EXPECTED, FAULTS, Images, to_pixel_batch


ImagesOrPaths = Images | Sequence[str | os.PathLike]


class ReadBatch:
    """Clean images of one shape as a batch `(N, C, H, W)` whose rows are made each time that they are read.

    `batch[rows]` has the values that `to_pixel_batch` gives these images. Nothing but the images as they were given is
    kept. The first image is read and checked at once.

    Args:
        images: A batch as an array or tensor, or any sequence of single images: PIL images, arrays, tensors or paths
            of image files. A sequence may load its images when they are asked for, always the same ones.
        denoiser: Says which channels and size the images must have; PIL images are converted to them.
        device: Device of the rows.

    Raises:
        TypeError, ValueError: There is no image, or the first one is not as described.
    """

    def __init__(self, images: ImagesOrPaths, denoiser: Denoiser, device: torch.device):
        self.images = one_by_one(images)
        self.denoiser, self.device = denoiser, device
        if len(self.images) == 0:
            raise ValueError(f"`images` must be {EXPECTED}, got no image.")
        self.shape: tuple[int, ...] | None = None
        self.shape = tuple(self._read(0).shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """The images with these numbers, shape `(n, C, H, W)`, float32, pixel units. Raises as `check`."""
        return torch.cat([self._read(int(row)) for row in rows]).to(self.device)

    def check(self, on_images: Callable[[int], object]) -> None:
        """Read every image once.

        Args:
            on_images: Called with the number of images, after each.

        Raises:
            TypeError, ValueError: An image cannot be read, is of another kind or shape, or has values outside [0, 1].
                The message names it by its number.
        """
        for number in range(len(self)):
            self._read(number)
            on_images(1)

    def _read(self, number: int) -> torch.Tensor:
        """One image as a batch of its own, on the CPU or where it was given."""
        name = f"`images[{number}]`"
        try:
            image = _loaded(self.images[number])
        except FAULTS as error:
            raise ValueError(f"{name} must be an image that can be read, got {error!r}.") from error
        try:
            batch, single = to_pixel_batch(image, self.denoiser.image_channels, self.denoiser.image_size)
            if not single:
                raise ValueError(f"`images` must be a single image, got a batch or list of {len(batch)}.")
            self.denoiser.check_images(batch)
            check_pixel_range(batch)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(str(error).replace("`images`", name, 1)) from error
        shape = tuple(batch.shape[1:])
        if self.shape not in (None, shape):
            raise ValueError(f"{name} must be of the shape of the first image, {self.shape}, got {shape}.")
        return batch


def one_by_one(images: Any) -> Sequence[Any] | np.ndarray | torch.Tensor:
    """A sequence, array or tensor whose elements are single images. Nothing is copied or loaded.

    Args:
        images: A single image, a batch, or a sequence of single images; a list or tuple may have batches among them.
    """
    if isinstance(images, (list, tuple)):
        return [single for element in images for single in (element if _is_batch(element) else [element])]
    if _is_batch(images) or (isinstance(images, Sequence) and not isinstance(images, (str, bytes))):
        return images
    return [images]


def _is_batch(images: object) -> bool:
    """Whether this is an array or tensor with an axis of images, which can be taken apart."""
    if isinstance(images, torch.Tensor):
        return images.ndim == 4 and images.layout == torch.strided and not images.is_nested
    return isinstance(images, np.ndarray) and images.ndim == 4


def _loaded(image: Any) -> Any:
    """The image itself, with its pixels; that of a file if it is a path, upright."""
    if isinstance(image, (str, os.PathLike)):
        with PIL.Image.open(image) as file:
            return PIL.ImageOps.exif_transpose(file)
    if isinstance(image, PIL.Image.Image):
        image.load()
    return image
