"""Squared errors of the candidates that a sifter leaves, on labelled images: what levels are chosen by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..common.copies import Copy
from ..common.images import ImageRows
from .classifier import NoisedDiffusionClassifier
from .open_copies import Triples
from .sifter_fitting import GROUP, CrossFit, noisy_copies


MOST_CANDIDATES = 32
"""Candidates of an image by whose errors levels are chosen."""


@dataclass(frozen=True)
class CandidateErrors:
    """Squared errors of the candidate classes of N noisy copies, at L levels.

    Args:
        errors: Shape `(N, L, C)`, summed over pixels, model units, in the precision in which they were computed. C is
            K, or fewer if all have fewer candidates.
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
        return cls(
            _filled_up([part.errors for part in parts]),
            np.concatenate([part.labels for part in parts]),
            _filled_up([part.kept for part in parts]),
            _filled_up([part.scores for part in parts]),
        )

    def gaps(self) -> np.ndarray:
        """How far the true class's score is behind the best one, nats, shape `(N,)`."""
        return self._behind_best()[np.arange(len(self.labels)), self.labels]

    def within(self, gap: float, min_classes: int) -> "CandidateErrors":
        """The same with the candidates of a smaller gap; copies whose true class is none of them are left out.

        Args:
            gap: Distance to the best score within which a class stays a candidate, nats.
            min_classes: Least number of candidates.
        """
        behind = self._behind_best()
        rank = behind.argsort(axis=1).argsort(axis=1)
        kept = self.kept & ((behind <= gap) | (rank < min_classes))
        known = kept[np.arange(len(self.labels)), self.labels]
        return CandidateErrors(self.errors[known], self.labels[known], kept[known], self.scores[known])

    def _behind_best(self) -> np.ndarray:
        """How far the score of each class is behind the best one, nats, shape `(N, C)`; infinite if it is not kept."""
        scores = np.where(self.kept, self.scores, np.inf)
        return scores - scores.min(axis=1, keepdims=True)


def _filled_up(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays one after the other, those with a shorter last axis filled up with zeros."""
    most = max(array.shape[-1] for array in arrays)
    joined = np.zeros((sum(map(len, arrays)), *arrays[0].shape[1:-1], most), arrays[0].dtype)
    first = 0
    for array in arrays:
        joined[first : first + len(array), ..., : array.shape[-1]] = array
        first += len(array)
    return joined


def as_array(values: torch.Tensor) -> np.ndarray:
    """Values as an array of numpy in the same precision; those in half precision in float32."""
    return values.to("cpu", torch.promote_types(values.dtype, torch.float32)).numpy()


def candidate_errors(
    classifier: NoisedDiffusionClassifier,
    images: ImageRows,
    labels: np.ndarray,
    fit: CrossFit,
    num_copies: int,
    seed: int,
    on_images: Callable[[int], object] | None = None,
) -> CandidateErrors:
    """Squared errors of the candidates of noisy copies; copies whose true class is none of them are left out.

    Args:
        classifier: Its `sigma` is the noise that is added to the images; its levels are scored.
        images: Clean images, pixel units: a tensor `(N, C, H, W)`, or what makes its rows when they are read.
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
            clean = images[rows]
            for copy in range(num_copies):
                parts.append(_errors_of_candidates(sifted, clean, rows, copy, labels[rows], seed))
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
        values = classifier.squared_errors_of(copies, triples).cpu()
        classifier.require_finite(bool(values.isfinite().all()))
    errors = values.new_zeros(len(images), len(classifier.levels), classifier.num_classes)
    errors[triples.row, triples.level, triples.label] = values
    chosen, kept = chosen.cpu(), kept.cpu()
    place = (chosen == torch.from_numpy(labels)[:, None]) & kept
    known = place.any(dim=1).numpy()
    return CandidateErrors(
        as_array(errors.gather(2, chosen[:, None].expand(-1, len(classifier.levels), -1)))[known],
        place.long().argmax(dim=1).numpy()[known],
        kept.numpy()[known],
        as_array(scores.masked_fill(~scores.isfinite(), 0))[known],
    )
