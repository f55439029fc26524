"""Pixel units to model units and back: the one place that converts.

Users and certificates speak of images in [0, 1], diffusion models of images in [-1, 1]: noise has twice the standard
deviation there.
"""

import torch


def model_images(images: torch.Tensor) -> torch.Tensor:
    """Images from pixel units, [0, 1], to model units, [-1, 1], in float32 or better."""
    x = 2 * images - 1
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pixel_images(images: torch.Tensor) -> torch.Tensor:
    """Images from model units, [-1, 1], to pixel units, [0, 1]."""
    return (images + 1) / 2


def model_sigma(sigma: float) -> float:
    """A noise level from pixel units to model units."""
    return 2 * sigma


def pixel_sigma(sigma: float) -> float:
    """A noise level from model units to pixel units."""
    return sigma / 2
