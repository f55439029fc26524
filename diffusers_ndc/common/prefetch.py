"""Standard normal noise that is made in the background, while an accelerator runs the network."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from .noise import normal_arrays, on_device, standard_normal


SHARED = 50_000
"""Values of an array from which on several threads make arrays faster than one.

Setting up a generator takes 10 us and holds Python's lock. On two cores an array took, in one thread and in two:
1 x 28 x 28, 17 us and 29 us; 3 x 32 x 32, 56 us and 60 us; 3 x 64 x 64, 128 us and 125 us; 3 x 256 x 256, 3.8 ms and
2.3 ms.
"""

THREADS = min(8, os.cpu_count() or 1)
"""Threads that make large arrays."""


def gains_from_prefetching(device: torch.device) -> bool:
    """Whether the CPU has time to make noise while the network runs: on accelerators.

    On the CPU there is nothing to gain: of a certificate of the embedded digits model, noise takes 0.3% of the time.
    Beside a network that leaves the CPU idle, nearly all of the noise's time is saved (measured with a sleep of 50 ms
    for a network: batches of 8 arrays of 3 x 256 x 256 took 54 ms instead of 82 ms).
    """
    return device.type != "cpu"


class NoiseAhead:
    """`standard_normal` with arrays that background threads have made since they were expected.

    An array depends on its seed alone, so it is the same whether it was expected or not.

    Example:
        >>> ahead = NoiseAhead()
        >>> ahead.expect((1, 8, 8), [1, 2, 3], torch.float32)
        >>> ahead.standard_normal((1, 8, 8), [2, 4], torch.float32, torch.device("cpu")).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "noise")  # no thread starts before an array is expected
        self._made: dict[tuple, tuple[Future[np.ndarray], int]] = {}  # by array: a batch, and its row there

    def expect(self, shape: tuple[int, ...], seeds: Sequence[int], dtype: torch.dtype) -> None:
        """Start to make arrays, the first ones first. Those that were expected before and are not now are dropped."""
        known = {}
        new = []
        for seed in seeds:
            key = (seed, shape, dtype)
            if key in self._made:
                known[key] = self._made[key]
            else:
                new.append(seed)
        threads = THREADS if math.prod(shape) >= SHARED else 1
        size = max(1, math.ceil(len(new) / threads))
        for first in range(0, len(new), size):
            part = new[first : first + size]
            batch = self._executor.submit(normal_arrays, shape, part, dtype)
            known |= {(seed, shape, dtype): (batch, row) for row, seed in enumerate(part)}
        self._made = known

    def standard_normal(
        self, shape: tuple[int, ...], seeds: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """The noise of these seeds, as `common.noise.standard_normal` returns it."""
        made = [self._made.get((seed, shape, dtype)) for seed in seeds] if self._made else []
        if not any(made):
            return standard_normal(shape, seeds, dtype, device)
        missing = [seed for seed, found in zip(seeds, made, strict=True) if found is None]
        others = iter(normal_arrays(shape, missing, dtype))
        arrays = [next(others) if found is None else found[0].result()[found[1]] for found in made]
        return on_device(np.stack(arrays), dtype, device)
