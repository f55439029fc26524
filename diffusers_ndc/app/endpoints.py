"""The public interface for programs: endpoints of the API, which are tools of the MCP server too."""

import json

import gradio as gr
import PIL.Image

from ..certification.certificate import Certificate
from ..certification.smoothing import SmoothedClassifier
from . import certifying
from .attacking import JUDGES, attempt_at, surrogate
from .certifying import STEP, as_tensor
from .files import verdict
from .gpu import on_gpu
from .handlers import prepare, seconds_to_certify
from .limits import ALPHA, COPIES, RADII, SECONDS, VISITORS
from .models import MODELS
from .refusals import checked, visitor_error
from .sigmas import sigma_for


def certify_picture(picture: PIL.Image.Image, radius: float = 0.45, copies: int = 500) -> dict:
    """Classify a picture and prove an l2 radius within which no change of it alters the class.

    A diffusion model classifies noisy copies of the picture, and their votes prove the radius (randomized smoothing).
    The proof is wrong with a probability of at most 0.001. It is about the picture in the model's size, with pixels
    from 0 to 1. It does not say that the class is correct.

    Args:
        picture: The picture. For a model of digits, dark ink on a light ground or the other way round.
        radius: The l2 radius to prove, from 0.05 to 2. The noise is chosen by it, and the votes end when it is proved.
        copies: Number of noisy copies that vote, at most, from 100 to 2000.

    Returns:
        Name of the class, proved radius (0: nothing is proved), and the certificate for `verify_certificate`.
    """
    return _certify(picture, radius, copies)


@on_gpu(lambda picture, radius, copies: seconds_to_certify("", picture, radius, copies))
def _certify(picture, radius, copies):
    radius = checked("The radius to prove", radius, *RADII)
    copies = int(checked("The number of copies", copies, *COPIES))
    try:
        model = MODELS.find("")
        ready = prepare(model, picture)
        sigma = sigma_for(radius, model.sigmas, copies)
        *_, last = certifying.certify(model, ready, sigma, radius, copies)
    except ValueError as error:
        raise visitor_error(str(error)) from None
    certificate = last.certificate
    name = None if certificate.label is None else model.names[certificate.label]
    record = json.loads(json.dumps(certificate.to_dict()))  # votes by class get the texts that JSON has for keys
    return {"class": name, "radius": certificate.radius, "certificate": record}


def attack_picture(picture: PIL.Image.Image, distance: float = 1.0) -> dict:
    """Look for a change of a picture, of at most an l2 distance, that alters the class of the smoothed classifier.

    Projected gradient steps look for the change; then fresh noisy copies vote on the picture that was found. A picture
    that withstands this attack is not proved robust by that: only a certificate proves it.

    Args:
        picture: The picture.
        distance: Largest l2 distance of the change, from 0.05 to 2, pixels from 0 to 1.

    Returns:
        Classes before and after, outcome (kept, abstained or fallen), l2 distance, and votes.
    """
    return _attack(picture, distance)


@on_gpu(lambda *_: SECONDS)
def _attack(picture, distance):
    distance = checked("The distance", distance, *RADII)
    try:
        model = MODELS.find("")
        image = as_tensor(model, prepare(model, picture)).to(model.device)
    except ValueError as error:
        raise visitor_error(str(error)) from None
    sigma = model.sigmas[0]
    smoothed = SmoothedClassifier(model.pipe.classifier(sigma), sigma)
    with STEP:
        (before,) = smoothed.predict(image[None], JUDGES, ALPHA)
    if before.label is None:
        raise visitor_error("The model is not sure about this picture itself, so there is nothing to attack.")
    *_, found = attempt_at(smoothed, surrogate(model, sigma), image, before.label, distance)
    return {
        "class": model.names[before.label],
        "outcome": found.outcome,
        "class_after": None if found.label is None else model.names[found.label],
        "distance": found.distance,
        "votes": {model.names[label]: count for label, count in found.votes.items()},
    }


def verify_certificate(certificate: dict) -> str:
    """Check a certificate: recompute its class and radius from its votes.

    This detects edited certificates. It does not cast the votes again.

    Args:
        certificate: The certificate that `certify_picture` returned, as JSON.

    Returns:
        A verdict in words.
    """
    try:
        return verdict(Certificate.from_dict(certificate))
    except (ValueError, TypeError, AttributeError):
        return "**Not valid.** This is no certificate, or it was altered."


def add_endpoints() -> None:
    """Add the endpoints to the page under construction. Their components are not shown."""
    with gr.Row(visible=False):
        picture, answer = gr.Image(type="pil", image_mode=None), gr.JSON()
        radius, distance = gr.Number(0.45), gr.Number(1.0)
        copies, certificate, said = gr.Number(500, precision=0), gr.JSON(), gr.Textbox()
        button = gr.Button()
    limit = {"concurrency_limit": VISITORS}
    button.click(certify_picture, [picture, radius, copies], answer, api_name="certify_picture", **limit)
    button.click(attack_picture, [picture, distance], answer, api_name="attack_picture", **limit)
    button.click(verify_certificate, certificate, said, api_name="verify_certificate")
