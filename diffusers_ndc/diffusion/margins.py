"""Margins of the diffusion classifier at a clean image, estimated from draws of its noise.

`dc` scores a class by an expected loss (Li et al. 2023, arXiv:2303.16203); the margin of two classes is the difference
of their losses. `draw_margins` returns the numbers that a certificate without smoothing rests on (Chen et al.,
arXiv:2402.02316): it knows nothing of certificates itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from ..common.checks import check_kind
from ..common.images import content_hash
from ..common.seeds import derive_seeds
from .classifier import NoisedDiffusionClassifier
from .noise_levels import NoiseLevels


UNSMOOTHED_LEVELS = NoiseLevels((4.0,), (1.0,), cap=0.3)
"""Default levels without smoothing.

At low noise levels the losses of the classes differ by far less than the Lipschitz constant grows. A cap not far above
the losses that occur makes the constant small and leaves the margins as they are.
"""

CALL_SIZE = 100
"""Draws in one call of the classifier."""


@dataclass(frozen=True)
class MarginScores:
    """Losses and margins of the K classes at one image, summed over the draws.

    Args:
        selection_losses: Mean loss of each class over the selection draws, model units per value. The candidate is
            the class with the smallest one.
        score_sums: For each rival, the sum of its scores: margins over the candidate, mapped from [-W cap, W cap] to
            [0, 1], with W the sum of the weights.
        score_squares: For each rival, the sum of the squares of its scores.
        num_classes: Number of classes K.
        evaluations: Network evaluations spent.
    """

    selection_losses: dict[int, float]
    score_sums: dict[int, float]
    score_squares: dict[int, float]
    num_classes: int
    evaluations: int


def with_bounded_losses(levels: NoiseLevels) -> NoiseLevels:
    """The same levels without sifting, and with the cap 4 if they have none: denoised images are clipped then."""
    check_kind("levels", levels, NoiseLevels)
    return replace(levels, sifting=None, cap=4.0 if levels.cap is None else levels.cap)


def draw_margins(
    classifier: NoisedDiffusionClassifier,
    image: torch.Tensor,
    n0: int,
    n: int,
    alpha: float,
    seed: int,
    on_draws: Callable[[int], object] | None = None,
) -> MarginScores:
    """Draw the margins of all classes over the one that leads a first few draws.

    Each draw scores all classes at all levels with fresh noise, from a seed of the key (seed, image, purpose, n0, n,
    alpha, number of the draw). The draws that choose the candidate are not used again. The bound on the margins is one
    for an n fixed beforehand: with n in the key, the best prefix of a longer run does not replay.

    Args:
        classifier: With the method `dc`, and levels as `with_bounded_losses` returns them.
        image: Shape `(C, H, W)`, values in [0, 1].
        n0: Number of draws that choose the candidate, at least 1.
        n: Number of further draws, at least 1.
        alpha: Error probability of the bound; it enters the seeds only.
        seed: Seed of all draws.
        on_draws: Called with the number of new draws after each call of the classifier.

    Returns:
        The scores, as plain numbers.

    Raises:
        ValueError: The levels of `classifier` have no cap.
        FloatingPointError: A loss is not finite.
    """
    levels, num_classes = classifier.levels, classifier.num_classes
    if levels.cap is None:
        raise ValueError("`classifier` must have levels with a cap, got levels without one.")
    largest = levels.cap * sum(levels.weights)
    before = classifier.evaluations
    plan = f"n0={n0}, n={n}, alpha={float(alpha)!r}"

    totals = torch.zeros(num_classes, dtype=torch.double)
    for losses in _losses(classifier, image, n0, seed, f"select-margin, {plan}", on_draws):
        totals += losses.sum(0)
    selection_losses = totals / n0
    candidate = int(selection_losses.argmin())

    sums = torch.zeros(num_classes, dtype=torch.double)
    squares = torch.zeros(num_classes, dtype=torch.double)
    for losses in _losses(classifier, image, n, seed, f"margin, {plan}", on_draws):
        margins = losses - losses[:, [candidate]]
        scores = ((margins / largest + 1) / 2).clamp(0, 1)  # round-off
        sums += scores.sum(0)
        squares += scores.square().sum(0)
    rivals = [label for label in range(num_classes) if label != candidate]
    return MarginScores(
        selection_losses=dict(enumerate(selection_losses.tolist())),
        score_sums={label: sums[label].item() for label in rivals},
        score_squares={label: squares[label].item() for label in rivals},
        num_classes=num_classes,
        evaluations=classifier.evaluations - before,
    )


def _losses(
    classifier: NoisedDiffusionClassifier,
    image: torch.Tensor,
    count: int,
    seed: int,
    purpose: str,
    on_draws: Callable[[int], object] | None,
) -> Iterator[torch.Tensor]:
    """Losses of `count` draws, model units per value: tensors of shape (draws, classes), a few draws at a time."""
    image_hash = content_hash(image)
    for first in range(0, count, CALL_SIZE):
        numbers = range(first, min(first + CALL_SIZE, count))
        seeds = [derive_seeds((seed, image_hash, purpose, number), 1)[0] for number in numbers]
        with classifier.inference():
            logits = classifier(image.expand(len(seeds), *image.shape), seeds=seeds)
        if on_draws is not None:
            on_draws(len(seeds))
        yield -logits.double().cpu() / image.numel()
