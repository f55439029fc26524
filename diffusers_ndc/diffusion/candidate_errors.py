"""Squared errors of the candidates that a sifter leaves, on labelled images: what levels are chosen by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..common.copies import Copy
from .classifier import NoisedDiffusionClassifier
from .open_copies import Triples
from .sifter_fitting import GROUP, CrossFit, noisy_copies


MOST_CANDIDATES = 32
"""Candidates of an image by whose errors levels are chosen."""


@dataclass(frozen=True)
class CandidateErrors:
    """Squared errors of the candidate classes of N noisy copies, at L levels.

    Args:
        errors: Shape `(N, L, C)`, float64, summed over pixels, model units. C is K, or fewer if all have fewer
            candidates.
        labels: Place of the true class among the C, shape `(N,)`.
        kept: Which of the C are candidates, shape `(N, C)`.
        scores: Minus the scores of the sifter, shape `(N, C)`; zeros without one.
    """

    errors: np.ndarray
    labels: np.ndarray
    kept: np.ndarray
    scores: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[CandidateErrors]") -> "CandidateErrors":
        """All these images; those with fewer candidates are filled up with classes that are not kept."""
        most = max(part.kept.shape[1] for part in parts)

        def fill(array: np.ndarray) -> np.ndarray:
            width = [(0, 0)] * (array.ndim - 1) + [(0, most - array.shape[-1])]
            return np.pad(array, width)

        return cls(
            np.concatenate([fill(part.errors) for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([fill(part.kept) for part in parts]),
            np.concatenate([fill(part.scores) for part in parts]),
        )


def candidate_errors(
    classifier: NoisedDiffusionClassifier,
    images: torch.Tensor,
    labels: np.ndarray,
    fit: CrossFit,
    num_copies: int,
    seed: int,
    on_images: Callable[[int], object] | None = None,
) -> CandidateErrors:
    """Squared errors of the candidates of noisy copies; copies whose true class is none of them are left out.

    Args:
        classifier: Its `sigma` is the noise that is added to the images; its levels are scored.
        images: Clean images, shape `(N, C, H, W)`, pixel units.
        labels: Their classes, shape `(N,)`.
        fit: The sifts. An image's candidates are chosen by the one that was fitted without it.
        num_copies: Noisy copies of each image.
        seed: Seed of the noise, 63 bits.
        on_images: Called with the number of images after each group of images.
    """
    parts = []
    for fold, sift in enumerate(fit.folds):
        sifted = NoisedDiffusionClassifier(
            classifier.denoiser,
            classifier.sigma,
            classifier.likelihood.name,
            classifier.levels,
            classifier.batch_size,
            sift=sift.with_rule(loss_weight=1.0),
        )
        (numbers,) = np.nonzero(fit.fold_of == fold)
        for first in range(0, len(numbers), GROUP):
            rows = numbers[first : first + GROUP]
            for copy in range(num_copies):
                parts.append(_errors_of_candidates(sifted, images[rows], rows, copy, labels[rows], seed))
            if on_images is not None:
                on_images(len(rows))
    return CandidateErrors.joined(parts)


def _errors_of_candidates(
    classifier: NoisedDiffusionClassifier,
    images: torch.Tensor,
    rows: np.ndarray,
    copy: int,
    labels: np.ndarray,
    seed: int,
) -> CandidateErrors:
    """Squared errors of one copy of a few images; the best `MOST_CANDIDATES` of each are enough to choose levels."""
    noisy, own_seeds = noisy_copies(images, rows, copy, classifier.sigma, seed)
    with classifier.inference():
        copies = classifier.open_copies(
            [Copy(number, image, own) for number, (image, own) in enumerate(zip(noisy, own_seeds, strict=True))]
        )
        most = min(MOST_CANDIDATES, max(copies.num_in_play))
        scores, chosen = copies.losses.masked_fill(~copies.in_play, torch.inf).topk(most, largest=False)
        kept = scores.isfinite()
        in_play = torch.zeros_like(copies.in_play).scatter(1, chosen, kept)
        triples = Triples.next_levels(in_play.cpu(), len(classifier.levels))
        values = classifier.squared_errors_of(copies, triples).double().cpu()
        classifier.require_finite(bool(values.isfinite().all()))
    errors = torch.zeros(len(images), len(classifier.levels), classifier.num_classes, dtype=torch.double)
    errors[triples.row, triples.level, triples.label] = values
    chosen, kept = chosen.cpu(), kept.cpu()
    place = (chosen == torch.from_numpy(labels)[:, None]) & kept
    known = place.any(dim=1).numpy()
    return CandidateErrors(
        errors.gather(2, chosen[:, None].expand(-1, len(classifier.levels), -1)).numpy()[known],
        place.long().argmax(dim=1).numpy()[known],
        kept.numpy()[known],
        scores.masked_fill(~scores.isfinite(), 0).double().cpu().numpy()[known],
    )
