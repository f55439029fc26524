"""What happens when a visitor presses a button. Each handler checks what it is given, and refuses in words."""

import json
import logging
from collections.abc import Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
import torch

from ..certification.certificate import Certificate
from . import attacking, certifying, changes
from .break_figures import attempts_figure, changes_figure, size_in_words
from .certifying import Progress, as_tensor
from .drawing import copies_figure, download_link, floored, plain, progress_figure
from .gpu import on_gpu
from .limits import COPIES, RADII, SECONDS, SIGMAS, SIZES
from .models import MODELS, Model, RefusedModel
from .pictures import model_picture
from .refusals import checked, visitor_error
from .sigmas import largest, sigma_for


SHOWN_COPIES = 4
PICTURE_SIZE = (256, 256)
"""Size of the pictures of a model that takes any size."""

Frame = tuple[str, str, str, str, dict, Any]
"""Status, figure, copies, download link, the certificate so far, and the certified picture."""


def in_words(handler):
    """Turn the expected errors of a generator into messages for the visitor, and hide the unexpected ones."""

    @wraps(handler)
    def guarded(*args):
        try:
            yield from handler(*args)
        except gr.Error:
            raise
        except ValueError as error:  # RefusedModel, and arguments that the model cannot take
            raise visitor_error(str(error)) from None
        except Exception:
            logging.exception("%s failed", handler.__name__)
            raise visitor_error("The computation failed. You can try again.") from None

    return guarded


def prepare(model: Model, image: PIL.Image.Image | None) -> PIL.Image.Image:
    """The picture to certify, made from a visitor's image; raises a `ValueError` if that is impossible."""
    if image is None:
        raise ValueError("The picture is empty: draw or choose one first.")
    return model_picture(image, model.channels, model.size or PICTURE_SIZE)


def chosen_sigma(model: Model, wanted: float, copies: int, own: bool, sigma: Any) -> float:
    """The noise for a radius, or the visitor's own; it is settled before any vote."""
    if own is True:
        return checked("Sigma", sigma, *SIGMAS)
    return sigma_for(wanted, model.sigmas, copies)


def sigma_in_words(key: str, wanted: Any, copies: Any, own: Any, sigma: Any) -> str:
    """A sentence on the noise that a radius leads to, for the line below the slider."""
    wanted = checked("The radius to prove", wanted, *RADII)
    copies = int(checked("The number of copies", copies, *COPIES))
    try:
        used = chosen_sigma(MODELS.find(key), wanted, copies, own, sigma)
    except RefusedModel as error:
        return str(error)
    why = "your choice" if own is True else "chosen for this radius before any vote"
    most = largest(used, copies)
    text = f"Noise of the copies: **sigma {used:g}** ({why})."
    if wanted > most:
        text += f" {copies:,} copies prove a radius of at most {floored(most)} with it, **less than you want**."
    return text


def seconds_to_certify(key: str, image: Any, wanted: Any, copies: Any, *_: Any) -> float:
    """Time for which a certification may need a GPU: a few copies a second at the least, and the models' start."""
    number = copies if isinstance(copies, (int, float)) and 0 < copies <= COPIES[1] else COPIES[1]
    return min(SECONDS, 15 + number / 20)


@on_gpu(seconds_to_certify)
@in_words
def certify(
    key: str,
    image: PIL.Image.Image | None,
    wanted: Any,
    copies: Any,
    own: Any,
    sigma: Any,
    seconds: float | None = None,
) -> Iterator[Frame]:
    """Certify a picture; after each step yield what the page shows.

    Args:
        key: Key of the model.
        image: A visitor's picture.
        wanted: l2 radius to prove.
        copies: Noisy copies, at most.
        own: Whether `sigma` is used; else the noise follows from the radius.
        sigma: The visitor's noise.
        seconds: Time limit. Default: `limits.SECONDS`.
    """
    wanted = checked("The radius to prove", wanted, *RADII)
    copies = int(checked("The number of copies", copies, *COPIES))
    model = MODELS.find(key)
    sigma = chosen_sigma(model, wanted, copies, own, sigma)
    picture = prepare(model, image)
    most = largest(sigma, copies)
    if wanted > most:
        gr.Warning(f"{copies:,} copies at sigma {sigma:g} prove at most a radius of {floored(most)}.")
    shown = ""
    for progress in certifying.certify(model, picture, sigma, wanted, copies, seconds):
        certificate = progress.certificate
        if not shown:
            shown = copies_figure(*certifying.first_copies(model, picture, certificate, SHOWN_COPIES))
        record = certificate.to_dict()
        figure = progress_figure(progress.radii, wanted, progress.votes, certificate.candidate, model.names)
        status = status_of(progress, wanted, copies, model.names)
        yield status, figure, shown, download_link(json.dumps(record, indent=2)), record, picture


def status_of(progress: Progress, wanted: float, copies: int, names: dict[int, str]) -> str:
    """The state of a certification as a heading and a sentence."""
    certificate, done = progress.certificate, progress.radii[-1][0]
    end = ""
    if certificate.radius >= wanted:
        end = "The radius you want is proved."
    elif done == copies:
        end = "All copies have voted; the radius you want is not proved."
    elif progress.out_of_time:
        end = "The time limit is reached; this is what is proved."
    result = "not proved yet" if certificate.abstained else f"proved within radius {floored(certificate.radius)}"
    name = plain(names.get(certificate.candidate, str(certificate.candidate)))
    return (
        f"## {name}: {result}\n"
        f"sigma {certificate.sigma:g}, {done:,} noisy copies, {certificate.evaluations:,} network evaluations. {end}"
    )


def attacked(key: str, record: Any, picture: Any) -> tuple[Model, Certificate, torch.Tensor]:
    """Model, certificate and image of an attack; raises a `ValueError` if there is nothing to attack."""
    model = MODELS.find(key)
    certificate = Certificate.from_dict(record) if isinstance(record, dict) else None
    if certificate is None or not isinstance(picture, PIL.Image.Image):
        raise ValueError("There is no certificate yet: certify a picture first.")
    if certificate.radius <= 0:
        raise ValueError("Nothing is proved for this picture, so there is nothing to break.")
    return model, certificate, as_tensor(model, picture)


@on_gpu(lambda *_: SECONDS)
@in_words
def break_it(key: str, record: Any, picture: Any) -> Iterator[tuple[str, list]]:
    """Attack the certified picture inside and outside its radius; yield the table so far, and the pictures found.

    Args:
        key: Key of the model.
        record: The certificate.
        picture: The certified picture.
    """
    model, certificate, image = attacked(key, record, picture)
    for attempts in attacking.attack(model, image, certificate):
        found = [(one.multiple, one.image.numpy()) for one in attempts if one.outcome is not None]
        yield attempts_figure(image, attempts, model.names), found


def show_size(
    key: str, record: Any, picture: Any, found: Sequence[tuple[float, np.ndarray]] | None, size: Any
) -> tuple[str, str]:
    """The picture with a random change and with the worst one found, and a sentence on their size.

    Args:
        key: Key of the model.
        record: The certificate.
        picture: The certified picture.
        found: What `break_it` found.
        size: Size of the change, in certified radii.
    """
    size = checked("The size of the change", size, *SIZES)
    try:
        _, certificate, image = attacked(key, record, picture)
    except ValueError as error:
        return "", str(error)
    norm = size * certificate.radius
    tensors = [(multiple, torch.from_numpy(values)) for multiple, values in found or []]
    direction = changes.worst_direction(tensors, image, size)
    worst = None if direction is None else changes.with_norm(image, direction, norm)
    noisy = changes.with_norm(image, changes.random_direction(image), norm)
    return changes_figure(image, noisy, worst, norm), size_in_words(size, certificate.radius)
