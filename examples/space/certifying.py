"""A picture certified step by step: the certificate so far, and the noisy copies that vote."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import PIL.Image
import torch

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline
from diffusers_ndc.common.noise import standard_normal
from diffusers_ndc.common.seeds import derive_seeds
from diffusers_ndc.diffusion.classifier import model_images, model_sigma, pixel_images
from diffusers_ndc.pipelines.inputs import to_pixel_batch


ALPHA = 0.001
N0 = 20
SECONDS = 120.0
"""Time that one picture may take; a visitor who sent it and does not listen would keep the others waiting."""

STEP = threading.Lock()  # one step at a time: visitors take turns instead of slowing each other down


class Progress(NamedTuple):
    """How far a certification is.

    Args:
        certificate: The best so far, with all network evaluations that were spent.
        votes: Votes of each class so far.
        radii: Number of noisy copies, and the radius proved by then (pixel units, 0: none), after each step.
        out_of_time: Whether it ends here because `SECONDS` are over.
    """

    certificate: Certificate
    votes: dict[int, int]
    radii: list[tuple[int, float]]
    out_of_time: bool


def certify(
    pipe: NoisedDiffusionClassifierPipeline, picture: PIL.Image.Image, sigma: float, wanted: float, copies: int
) -> Iterator[Progress]:
    """Certify until the wanted radius is proved, the copies are spent, or nobody asks for more.

    With probability at least `1 - ALPHA` all certificates on the way are true at once (`pipe.certify_iter`), so that
    the best may be kept, and anyone may stop at any time.

    Args:
        pipe: The model.
        picture: In the model's size and colours.
        sigma: Smoothing noise, pixel units.
        wanted: Radius to prove, pixel units.
        copies: Most noisy copies that vote.

    Raises:
        ValueError: An argument is beyond what the model was trained for.
    """
    end = time.monotonic() + SECONDS
    growing = pipe.certify_iter(picture, sigma, n0=N0, n=copies, alpha=ALPHA)
    best, radii = None, []
    while True:
        with STEP:  # never across a yield: who leaves half-way leaves it open
            latest = next(growing, None)
        if latest is None:
            return
        best = latest if best is None or latest.radius > best.radius else best
        best = dataclasses.replace(best, evaluations=latest.evaluations)
        radii.append((latest.n, best.radius))
        out_of_time = time.monotonic() > end
        yield Progress(best, latest.counts, list(radii), out_of_time)
        if out_of_time or best.radius >= wanted:
            return


def first_copies(
    pipe: NoisedDiffusionClassifierPipeline, picture: PIL.Image.Image, certificate: Certificate, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The picture as certified, the first noisy copies that voted on it, and what one denoising step makes of them.

    Returns:
        Shapes `(C, H, W)`, `(count, C, H, W)` and the same, pixel units, on the CPU.
    """
    batch, _ = to_pixel_batch(picture, pipe.unet.config.in_channels, pipe.denoiser.image_size)
    image = batch[0].to(pipe.unet.device)
    seeds = [
        derive_seeds((certificate.seed, certificate.image_hash, "estimate", number), 2)[0] for number in range(count)
    ]
    noisy = image + certificate.sigma * standard_normal(tuple(image.shape), seeds, image.dtype, image.device)
    with STEP, pipe.denoiser.inference():
        denoised = pixel_images(pipe.denoiser.denoise(model_images(noisy), model_sigma(certificate.sigma)))
    return image.cpu(), noisy.cpu(), denoised.float().cpu()
