"""Certify a picture step by step: the certificate so far, and the noisy copies that vote."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import PIL.Image
import torch

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline, SmoothedClassifier
from diffusers_ndc.diffusion.units import model_images, model_sigma, pixel_images
from diffusers_ndc.pipelines.inputs import to_pixel_batch


ALPHA = 0.001
N0 = 20
SECONDS = 120.0
"""Time limit for one picture, so that a visitor who does not wait for the result does not keep the others waiting."""

STEP = threading.Lock()  # one step at a time: visitors take turns instead of slowing each other down


class Progress(NamedTuple):
    """The state of a certification after a step.

    Args:
        certificate: The best certificate so far, with all network evaluations spent so far.
        votes: Votes of each class so far.
        radii: For each step, the number of noisy copies so far and the radius proved by them (pixel units, 0: none).
        out_of_time: Whether the certification ends here because it took `SECONDS`.
    """

    certificate: Certificate
    votes: dict[int, int]
    radii: list[tuple[int, float]]
    out_of_time: bool


def certify(
    pipe: NoisedDiffusionClassifierPipeline, picture: PIL.Image.Image, sigma: float, wanted: float, copies: int
) -> Iterator[Progress]:
    """Certify until the wanted radius is proved, all copies have voted, or the caller asks for no more.

    With probability at least `1 - ALPHA` all certificates on the way are true at once (`pipe.certify_iter`), so the
    best one may be kept, and the visitor may stop at any time.

    Args:
        pipe: The model.
        picture: In the model's size and colours.
        sigma: Standard deviation of the smoothing noise, pixel units.
        wanted: l2 radius to prove, pixel units.
        copies: Number of noisy copies that vote, at most.

    Yields:
        The state after each step.

    Raises:
        ValueError: An argument is outside the range that the model was trained for.
    """
    end = time.monotonic() + SECONDS
    growing = pipe.certify_iter(picture, sigma, n0=N0, n=copies, alpha=ALPHA, batch_size="auto")
    best, radii = None, []
    while True:
        with STEP:  # never held across a yield: a visitor who leaves must not keep it
            latest = next(growing, None)
        if latest is None:
            return
        if best is None or latest.radius > best.radius:
            best = latest
        best = dataclasses.replace(best, evaluations=latest.evaluations)
        radii.append((latest.n, best.radius))
        out_of_time = time.monotonic() > end
        yield Progress(best, latest.counts, list(radii), out_of_time)
        if out_of_time or best.radius >= wanted:
            return


def first_copies(
    pipe: NoisedDiffusionClassifierPipeline, picture: PIL.Image.Image, certificate: Certificate, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The certified picture, the first noisy copies that voted on it, and these after one denoising step.

    Args:
        pipe: The model.
        picture: In the model's size and colours.
        certificate: A certificate of the picture by this model.
        count: Number of copies.

    Returns:
        Shapes `(C, H, W)`, `(count, C, H, W)` and the same, pixel units, on the CPU.
    """
    batch, _ = to_pixel_batch(picture, pipe.unet.config.in_channels, pipe.denoiser.image_size)
    image = batch[0].to(pipe.unet.device)
    smoothed = SmoothedClassifier(pipe.classifier(certificate.sigma), certificate.sigma)
    noisy = smoothed.noisy_copies(image, certificate, count)
    with STEP, pipe.denoiser.inference():
        denoised = pixel_images(pipe.denoiser.denoise(model_images(noisy), model_sigma(certificate.sigma)))
    return image.cpu(), noisy.cpu(), denoised.float().cpu()
