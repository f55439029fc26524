"""Try to break a certificate: attack its image inside the radius and outside, and show each step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..certification.attacks import SmoothAdv
from ..certification.bounds import majority_pvalue
from ..certification.certificate import Certificate, plurality
from ..certification.smoothing import SmoothedClassifier
from ..common.noise import fresh_seed
from ..diffusion.noise_levels import NoiseLevels
from ..diffusion.units import model_sigma
from ..pipelines.base import DiffusionClassifier
from . import limits
from .certifying import STEP
from .models import Model


MULTIPLES = (1.0, 1.5, 2.0, 3.0, 4.0)
FURTHER = (6.0, 8.0)
"""Distances in radii; those further out are tried only if nothing fell before them."""

STEPS, DRAWS = 20, 4
"""Gradient steps, and noisy copies for each gradient."""

JUDGES, JUDGES_AT_A_TIME = 24, 4
"""Noisy copies that vote on the image that was found: few, and a few at a time, so that each step is short."""

LEVELS = (6.0, 12.0)
"""Noise levels of the gradient, as multiples of sigma, for a model without a sifter."""


@dataclass(frozen=True)
class Attempt:
    """An attack at one distance, as far as it has come.

    Args:
        multiple: The distance that it may use, in certified radii; 1 means just inside.
        image: The image so far, shape `(C, H, W)`, pixel units, on the CPU.
        distance: Its l2 distance from the certified image, pixel units.
        step: Gradient steps so far, of `STEPS`.
        votes: Votes on noisy copies of the image, of `JUDGES` in the end.
        outcome: `kept`, `abstained` or `fallen`; `None` before all votes are there.
        label: The class that the smoothed classifier predicts, `None` if it abstains or is not asked yet.
    """

    multiple: float
    image: torch.Tensor
    distance: float
    step: int
    votes: dict[int, int]
    outcome: str | None = None
    label: int | None = None


def surrogate(model: Model, sigma: float) -> DiffusionClassifier:
    """The classifier whose gradients the attack follows; the smoothed one judges.

    A sifter's features need one pass of the network for all classes. Without a sifter it is the likelihood at two high
    noise levels, for all classes.
    """
    sifter = model.pipe.sifter
    if sifter is not None and sifter.find(sigma) is not None:
        return model.pipe.classifier(sigma, "features")
    low, high = (factor * model_sigma(sigma) for factor in LEVELS)
    return model.pipe.classifier(sigma, levels=NoiseLevels.log_grid(low, high, 2))


def attack(model: Model, image: torch.Tensor, certificate: Certificate) -> Iterator[list[Attempt]]:
    """Attack a certified image just inside its radius and at multiples of it, until one falls beyond the last.

    Args:
        model: The model.
        image: The certified image, shape `(C, H, W)`, pixel units.
        certificate: Its certificate, with a radius above 0.

    Yields:
        All attempts so far, after each gradient step and each few votes.

    Raises:
        ValueError: The model has no gradient, or the image is not the certified one.
    """
    end = time.monotonic() + limits.SECONDS
    image = image.to(model.device)
    smoothed = SmoothedClassifier(model.pipe.classifier(certificate.sigma), certificate.sigma)
    follows = surrogate(model, certificate.sigma)
    done: list[Attempt] = []
    for multiple in (*MULTIPLES, *FURTHER):
        if multiple in FURTHER and any(attempt.outcome == "fallen" for attempt in done):
            return
        radius = multiple * certificate.radius
        for attempt in attempt_at(smoothed, follows, image, certificate.candidate, radius, multiple):
            yield [*done, attempt]
            if time.monotonic() > end:
                return
        done.append(attempt)


def attempt_at(
    smoothed: SmoothedClassifier,
    follows: DiffusionClassifier,
    image: torch.Tensor,
    label: int,
    radius: float,
    multiple: float = 1.0,
) -> Iterator[Attempt]:
    """The attack at one distance, step by step, then its judgement.

    Args:
        smoothed: The classifier that judges.
        follows: The classifier whose gradients are followed.
        image: The image, shape `(C, H, W)`, pixel units.
        label: Its class.
        radius: The distance that the attack stays below, pixel units.
        multiple: The same in certified radii, for the page.
    """
    seed = fresh_seed()
    with STEP:  # never held across a yield
        ascent = SmoothAdv(smoothed, follows, image, label, radius, "backprop", DRAWS, DRAWS, seed)
    path = ascent.path(STEPS, 0)
    for step in range(1, STEPS + 1):
        with STEP:
            found = next(path)
        distance = (found.double() - image.double()).norm().item()
        attempt = Attempt(multiple, found.cpu(), distance, step, {})
        yield attempt
    # The number of votes is fixed: they are judged once, when all are there.
    votes: dict[int, int] = {}
    for _ in range(JUDGES // JUDGES_AT_A_TIME):
        with STEP:
            (some,) = smoothed.predict(found[None], JUDGES_AT_A_TIME, limits.ALPHA, seed=fresh_seed())
        votes = {voted: votes.get(voted, 0) + some.counts.get(voted, 0) for voted in {*votes, *some.counts}}
        yield replace(attempt, votes=votes)
    predicted = judged(votes)
    outcome = "abstained" if predicted is None else "kept" if predicted == label else "fallen"
    yield replace(attempt, votes=votes, outcome=outcome, label=predicted)


def judged(votes: dict[int, int]) -> int | None:
    """The class that PREDICT of Cohen et al. 2019 returns for these votes, `None` for an abstention."""
    top, runner_up = [*sorted(votes.values(), reverse=True), 0][:2]
    return plurality(votes) if majority_pvalue(top, runner_up) <= limits.ALPHA else None
