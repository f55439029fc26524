"""Certify a picture step by step: the certificate so far, and the noisy copies that vote."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import PIL.Image
import torch

from ..certification.certificate import Certificate
from ..certification.smoothing import SmoothedClassifier
from ..diffusion.denoised import denoise_once
from ..pipelines.inputs import to_pixel_batch
from . import limits
from .models import Model


N0 = 20

STEP = threading.Lock()  # one step at a time: visitors take turns instead of slowing each other down


class Progress(NamedTuple):
    """The state of a certification after a step.

    Args:
        certificate: The best certificate so far, with all network evaluations spent so far.
        votes: Votes of each class so far.
        radii: For each step, the number of noisy copies so far and the radius proved by them (pixel units, 0: none).
        out_of_time: Whether the certification ends here because its time is up.
    """

    certificate: Certificate
    votes: dict[int, int]
    radii: list[tuple[int, float]]
    out_of_time: bool


def certify(
    model: Model,
    picture: PIL.Image.Image,
    sigma: float,
    wanted: float,
    copies: int,
    seconds: float | None = None,
) -> Iterator[Progress]:
    """Certify until the wanted radius is proved, all copies have voted, or the caller asks for no more.

    With probability at least `1 - limits.ALPHA` all certificates on the way are true at once (`pipe.certify_iter`), so
    the best one may be kept, and the visitor may stop at any time.

    Args:
        model: The model.
        picture: In the model's size and colours.
        sigma: Standard deviation of the smoothing noise, pixel units.
        wanted: l2 radius to prove, pixel units.
        copies: Number of noisy copies that vote, at most.
        seconds: Time limit. Default: `limits.SECONDS`.

    Yields:
        The state after each step.

    Raises:
        ValueError: An argument is outside the range that the model was trained for.
    """
    end = time.monotonic() + (limits.SECONDS if seconds is None else seconds)
    growing = model.pipe.certify_iter(picture, sigma, n0=N0, n=copies, alpha=limits.ALPHA, batch_size="auto")
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


def warm_up(model: Model) -> None:
    """Classify a few noisy copies of an empty picture, so that no visitor waits for the trial of batch sizes."""
    height, width = model.size or (64, 64)
    picture = PIL.Image.new("L", (width, height))
    with STEP:
        next(model.pipe.certify_iter(picture, model.sigmas[0], n0=N0, n=20, alpha=limits.ALPHA, batch_size="auto"))


def as_tensor(model: Model, picture: PIL.Image.Image) -> torch.Tensor:
    """The picture as the network sees it, shape `(C, H, W)`, pixel units, on the CPU."""
    batch, _ = to_pixel_batch(picture, model.channels, model.size)
    return batch[0]


def first_copies(
    model: Model, picture: PIL.Image.Image, certificate: Certificate, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The certified picture, the first noisy copies that voted on it, and these after one denoising step.

    Args:
        model: The model.
        picture: In the model's size and colours.
        certificate: A certificate of the picture by this model.
        count: Number of copies.

    Returns:
        Shapes `(C, H, W)`, `(count, C, H, W)` and the same, pixel units, on the CPU.
    """
    image = as_tensor(model, picture).to(model.device)
    classifier = model.pipe.classifier(certificate.sigma)
    noisy = SmoothedClassifier(classifier, certificate.sigma).noisy_copies(image, certificate, count)
    with STEP, classifier.denoiser.inference():
        denoised = denoise_once(classifier.denoiser, noisy, certificate.sigma)
    return image.cpu(), noisy.cpu(), denoised.float().cpu()
