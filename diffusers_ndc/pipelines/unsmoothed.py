"""Certificates without smoothing: draws of the diffusion classifier's margins, as a record that can be checked.

`diffusion.margins` draws the margins, `certification.lipschitz` proves a radius from them (Chen et al.,
arXiv:2402.02316); neither knows the other.
"""

from collections.abc import Callable

import torch

from ..certification.bounds import MAX_N, check_alpha
from ..certification.lipschitz import LipschitzCertificate
from ..common.checks import check_integer, check_seed
from ..common.images import content_hash
from ..diffusion.classifier import NoisedDiffusionClassifier
from ..diffusion.margins import draw_margins


def check_unsmoothed(classifier: NoisedDiffusionClassifier, n0: int, n: int, alpha: float, seed: int) -> None:
    """Raise unless `certify_image` accepts these arguments.

    Raises:
        TypeError, ValueError: The classifier is a latent one, or another argument is out of range.
    """
    if classifier.denoiser.encoder is not None:
        raise ValueError(
            "The model of `certify_unsmoothed` must denoise pixels, got a latent model: an encoder may be arbitrarily "
            "steep, and the Lipschitz constant is that of losses on pixels. With a `pixel_unet` call `certify`."
        )
    check_alpha(alpha)
    check_seed(seed)
    check_integer("n0", n0, 1, MAX_N, "a number of draws")
    check_integer("n", n, 1, MAX_N, "a number of draws")


def certify_image(
    classifier: NoisedDiffusionClassifier,
    image: torch.Tensor,
    n0: int,
    n: int,
    alpha: float,
    seed: int,
    on_draws: Callable[[int], object] | None = None,
) -> LipschitzCertificate:
    """Class and radius of the diffusion classifier at a clean image, by the Lipschitz constant of its margins.

    Args:
        classifier: With the method `dc`, in pixel space, and levels as `with_bounded_losses` returns them.
        image: Shape `(C, H, W)`, values in [0, 1].
        n0: Number of draws that choose the candidate, at least 1.
        n: Number of further draws, at least 1.
        alpha: Probability with which the certificate may be wrong.
        seed: Seed of all draws.
        on_draws: Called with the number of new draws after each call of the classifier.

    Raises:
        TypeError, ValueError: An argument is not as described.
        FloatingPointError: A loss is not finite.
    """
    check_unsmoothed(classifier, n0, n, alpha, seed)
    scores = draw_margins(classifier, image, n0, n, alpha, seed, on_draws)
    return LipschitzCertificate.from_scores(
        alpha=float(alpha),
        n0=n0,
        n=n,
        selection_losses=scores.selection_losses,
        score_sums=scores.score_sums,
        score_squares=scores.score_squares,
        num_classes=scores.num_classes,
        evaluations=scores.evaluations,
        **_origin(classifier, image, seed),
    )


def replay_image(
    classifier: NoisedDiffusionClassifier,
    image: torch.Tensor,
    certificate: LipschitzCertificate,
    on_draws: Callable[[int], object] | None = None,
) -> LipschitzCertificate:
    """Make the draws of a certificate again, to compare the result with the certificate by `agrees`.

    Args:
        classifier: With the settings that the certificate states.
        image: The certified image, shape `(C, H, W)`, values in [0, 1].
        certificate: The certificate to replay.
        on_draws: Called with the number of new draws after each call of the classifier.

    Returns:
        The certificate that the draws give now.

    Raises:
        ValueError: `certificate` does not follow from its own scores, has no seed, or is about another image or
            classifier.
        FloatingPointError: A loss is not finite.
    """
    seed = certificate.seed_of_draws
    certificate.check_origin(_origin(classifier, image, seed))
    return certify_image(classifier, image, certificate.n0, certificate.n, certificate.alpha, seed, on_draws)


def _origin(classifier: NoisedDiffusionClassifier, image: torch.Tensor, seed: int) -> dict:
    """The fields of a certificate that say which draws it rests on."""
    return {
        "seed": seed,
        "image_hash": content_hash(image),
        "device": image.device.type,
        "pixels": image.numel(),
        "base_classifier": classifier.settings,
    }
