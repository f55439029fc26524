"""Margins of the diffusion classifier, estimated: the draws behind a `LipschitzCertificate`."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ..certification.bounds import MAX_N, check_alpha
from ..certification.lipschitz import LipschitzCertificate, largest_loss
from ..common.checks import check_integer, check_kind, check_seed
from ..common.images import content_hash
from ..common.seeds import derive_seeds
from .classifier import NoisedDiffusionClassifier
from .noise_levels import NoiseLevels


CALL_SIZE = 100
"""Draws in one call of the classifier."""


def with_bounded_losses(levels: NoiseLevels) -> NoiseLevels:
    """The same levels with all classes at each one, and clipped where there is no `cap`."""
    check_kind("levels", levels, NoiseLevels)
    return replace(levels, sifting=None, cap=levels.cap or 4.0)


def check_margin_settings(classifier: NoisedDiffusionClassifier, n0: int, n: int, alpha: float, seed: int) -> None:
    """Refuse what `certify_margin` does not take.

    Raises:
        TypeError, ValueError: An argument is not as described there.
    """
    if classifier.denoiser.encoder is not None:
        raise ValueError(
            "`sigma` is 0 with a latent model; accepted is noise, with a `pixel_unet`: an encoder may be arbitrarily "
            "steep, and the constant is that of losses on pixels."
        )
    check_alpha(alpha)
    check_seed(seed)
    for name, value in (("n0", n0), ("n", n)):
        check_integer(name, value, 1, MAX_N, "without smoothing a whole number of draws")


def certify_margin(
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
        classifier: With the method `dc`, in pixel space, and levels as `with_bounded_losses` makes them. Each draw
            scores all classes at all levels with fresh noise.
        image: Shape `(C, H, W)`, values in [0, 1].
        n0: Number of draws that choose the candidate, at least 1.
        n: Number of further draws, at least 1.
        alpha: Error probability.
        seed: Seed of all draws.
        on_draws: Called with a number of draws whenever so many more are done.

    Raises:
        TypeError, ValueError: An argument is not as described.
        FloatingPointError: A loss is not finite.
    """
    check_margin_settings(classifier, n0, n, alpha, seed)
    origin, pixels = _origin(classifier, image, seed), image.numel()
    before, largest = classifier.evaluations, largest_loss(classifier.levels)

    def losses(purpose, count):
        """Of each draw and class, model units per value; a few draws at a time."""
        for first in range(0, count, CALL_SIZE):
            numbers = range(first, min(first + CALL_SIZE, count))
            seeds = [derive_seeds((seed, origin["image_hash"], purpose, number), 1)[0] for number in numbers]
            with classifier.inference():
                logits = classifier(image.expand(len(seeds), *image.shape), seeds=seeds)
            if on_draws is not None:
                on_draws(len(seeds))
            yield -logits.double().cpu() / pixels

    selected = sum(part.sum(0) for part in losses("select-margin", n0)) / n0
    candidate = int(selected.argmin())
    sums = torch.zeros(2, len(selected), dtype=torch.double)
    for part in losses("margin", n):
        scores = ((part - part[:, [candidate]]) / largest + 1) / 2
        scores = scores.clamp(0, 1)  # round-off
        sums += torch.stack([scores.sum(0), scores.square().sum(0)])
    rivals = [label for label in range(len(selected)) if label != candidate]
    return LipschitzCertificate.from_scores(
        alpha=alpha,
        n0=n0,
        n=n,
        selection_losses=dict(enumerate(selected.tolist())),
        score_sums={label: sums[0, label].item() for label in rivals},
        score_squares={label: sums[1, label].item() for label in rivals},
        num_classes=len(selected),
        evaluations=classifier.evaluations - before,
        **origin,
    )


def replay_margin(
    classifier: NoisedDiffusionClassifier,
    image: torch.Tensor,
    certificate: LipschitzCertificate,
    on_draws: Callable[[int], object] | None = None,
) -> LipschitzCertificate:
    """Make the draws of a certificate again: the one that they give now, to be compared by `agrees`.

    Args:
        classifier: As for `certify_margin`.
        image: Likewise.
        certificate: What is said of it.
        on_draws: Called with a number of draws whenever so many more are done.

    Raises:
        ValueError: `certificate` does not follow from its own scores, names no seed, or is about another image or
            classifier, or of draws on another kind of device.
    """
    seed = certificate.seed_of_draws
    certificate.check_origin(_origin(classifier, image, seed))
    return certify_margin(classifier, image, certificate.n0, certificate.n, certificate.alpha, seed, on_draws)


def _origin(classifier: NoisedDiffusionClassifier, image: torch.Tensor, seed: int) -> dict:
    """What a certificate says of where its draws come from."""
    return {
        "seed": seed,
        "image_hash": content_hash(image),
        "device": image.device.type,
        "pixels": image.numel(),
        "base_classifier": classifier.settings,
    }
