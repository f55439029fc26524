"""A trial: a few votes on each of some labelled images, to forecast what certificates will prove and cost."""

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .procedures import Ask
from .smoothed_base import SmoothedBase
from .voting import Draws, Votes


@dataclass(frozen=True, eq=False)
class Trial:
    """Votes on noisy copies of N labelled images with one sigma, and what they cost. K is the number of classes.

    Args:
        sigma: Smoothing noise, pixel units.
        copies: Noisy copies of each image.
        labels: True classes, N of them.
        counts: Votes of each class, shape `(N, K)`.
        evaluations: Network evaluations for all copies of each image, shape `(N,)`.
        timed_evaluations: Network evaluations within `seconds`.
        seconds: Time of all images but the first one, with which a network warms up.
        peak_memory: Largest memory of this process so far, bytes: of the GPU if the images are on one, else of the
            whole process. `None` if unknown.
    """

    sigma: float
    copies: int
    labels: tuple[int, ...]
    counts: np.ndarray
    evaluations: np.ndarray
    timed_evaluations: int
    seconds: float
    peak_memory: int | None


class TrialClassifier(SmoothedBase):
    """A smoothed classifier that only counts votes, on noisy copies that no certificate uses."""

    def try_out(
        self,
        images: Sequence[torch.Tensor] | torch.Tensor,
        labels: Sequence[int],
        copies: int,
        seed: int,
        on_copies: Callable[[int], object] | None = None,
    ) -> Trial:
        """Count the votes on some noisy copies of each image.

        Args:
            images: N clean images of shape `(C, H, W)`, values in [0, 1], at least 2.
            labels: Their classes.
            copies: Noisy copies of each image.
            seed: Seed of all draws.
            on_copies: Progress callback, called with the number of noisy copies decided since the last call.

        Raises:
            FloatingPointError: A logit of the base classifier is not finite.
        """

        def votes_on(some: Iterable[torch.Tensor]) -> list[Votes]:
            results = dict(self._collect(some, seed, lambda *_: Ask(Draws("trial", 0, copies)), on_copies))
            return [results[number] for number in sorted(results)]

        votes = votes_on(images[:1])
        start = time.perf_counter()
        timed = votes_on(images[1:])
        seconds = time.perf_counter() - start
        votes += timed
        counts = np.zeros((len(votes), votes[0].num_classes or 1), dtype=int)
        for row, one in zip(counts, votes, strict=True):
            row[list(one.counts)] = list(one.counts.values())
        return Trial(
            sigma=self.sigma,
            copies=copies,
            labels=tuple(labels),
            counts=counts,
            evaluations=np.array([one.evaluations for one in votes]),
            timed_evaluations=sum(one.evaluations for one in timed),
            seconds=seconds,
            peak_memory=peak_memory(images[0].device),
        )


def peak_memory(device: torch.device) -> int | None:
    """Largest memory of this process so far, bytes: allocated on a CUDA device, else resident; `None` if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if platform.system() == "Darwin" else largest * 1024  # bytes there, KiB elsewhere
