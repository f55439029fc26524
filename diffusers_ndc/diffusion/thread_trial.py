"""A trial of the number of threads with a denoiser's network."""

import math
from collections.abc import Callable

import torch

from ..common.noise import standard_normal
from ..common.threads import choose_threads
from .denoiser import Denoiser
from .networks import image_sides


VALUES = 64 * 28 * 28
"""Values of the batch of a trial, if one image does not have more."""

SIDE = 32
"""Side of its images, if the network takes all sizes."""


def choose_threads_for(denoiser: Denoiser) -> None:
    """Choose the number of threads for a denoiser on the CPU, as `choose_threads`.

    Args:
        denoiser: The denoiser. On another device nothing is done, nor if its network cannot do the trial, such as one
            for larger images whose configuration does not state their size.
    """
    if denoiser.unet.device.type == "cpu":
        try:
            choose_threads(trial_batch(denoiser))
        except RuntimeError:  # of torch: shapes or memory; the work itself may have others
            return


def trial_batch(denoiser: Denoiser, count: int | None = None) -> Callable[[], None]:
    """A function that evaluates the network on one batch of noise of its own, without gradients.

    Args:
        denoiser: The denoiser.
        count: Number of images. Default: as many as have `VALUES` values, or one.
    """
    unet = denoiser.unet
    shape = (unet.config.in_channels, *(image_sides(unet) or (SIDE, SIDE)))
    if count is None:
        count = max(1, VALUES // math.prod(shape))
    images = standard_normal(shape, [0], torch.float32, unet.device).expand(count, *shape)
    sigma = denoiser.nearest_sigma(1.0)
    classes = torch.zeros(count, dtype=torch.long, device=unet.device) if denoiser.num_classes else None

    def run() -> None:
        with torch.no_grad():
            denoiser.denoise(images, sigma, classes)

    return run
