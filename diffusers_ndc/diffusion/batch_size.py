"""The network's batch: a number, or "auto" for one that a short trial finds on the device.

A batch that is too small leaves an accelerator idle, and one that is too large does not fit into its memory, or into
the caches of a CPU.
"""

import math
import time
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

import torch
from torch import nn


SECONDS = 1.5
"""Time after which a trial tries no larger batch. A single evaluation may take longer."""

LARGEST_ON_CPU = 256
LARGEST = 4096

GROWTH = 1.05
"""Factor by which a batch of twice the size must be faster, per image, than all smaller ones."""

NEARLY_BEST = 0.9
"""Share of the best throughput with which a smaller batch is preferred."""

RUNS = 3
"""Most runs of one batch. The fastest counts: other programs, or a compilation, may slow a run down."""

SHORT = 0.02
"""Seconds of a run that is always repeated."""


_found: WeakKeyDictionary[nn.Module, dict[Hashable, int]] = WeakKeyDictionary()


def found_batch_size(
    network: nn.Module, key: Hashable, evaluate: Callable[[int], object], device: torch.device
) -> int:
    """The batch size that a trial finds. There is one trial for each network and key in a process.

    No vote depends on it, up to round-off: a vote depends on the noisy copy's own seed, and votes are looked at when
    all copies up to a number have been counted, a number that depends on votes and on each copy's evaluations, not on
    batches. The trial runs on noise of its own, before any copy is classified. What round-off may do to near-ties in
    larger or smaller batches belongs to the classifier as it runs, with "auto" as with a number.

    Args:
        network: The network that is evaluated. The result is forgotten when it is.
        key: Whatever else the result depends on: device, dtype, shape of an image, ...
        evaluate: Evaluates the network on so many images.
        device: Device of the network.

    Raises:
        torch.OutOfMemoryError: There is no memory for one image.
    """
    sizes = _found.setdefault(network, {})
    if key not in sizes:
        with torch.no_grad():  # not `inference_mode`: autocast keeps the weights that it casts here
            sizes[key] = find_batch_size(evaluate, device)
    return sizes[key]


def find_batch_size(evaluate: Callable[[int], object], device: torch.device) -> int:
    """Try batches of 1, 2, 4, ... and choose the smallest with nearly the best throughput.

    The trial ends when two larger batches in a row are not faster per image, when memory or time ends, or at the
    largest size. The first evaluation warms up and is not timed.

    Args:
        evaluate: Evaluates the network on so many images.
        device: Device of the network.

    Raises:
        torch.OutOfMemoryError: There is no memory for one image.
    """
    largest = LARGEST_ON_CPU if device.type == "cpu" else LARGEST
    _seconds(evaluate, 1, device)
    throughputs: dict[int, float] = {}
    size, expected, spent, not_faster = 1, math.inf, 0.0, 0
    while True:
        try:
            seconds, total = _fastest(evaluate, size, device, expected)
        except torch.OutOfMemoryError:
            if not throughputs:
                raise
            break
        grew = size / seconds > GROWTH * max(throughputs.values(), default=0.0)
        throughputs[size] = size / seconds
        not_faster = 0 if grew else not_faster + 1
        size, expected, spent = 2 * size, 2 * seconds, spent + total
        if size > largest or not_faster == 2 or spent + expected > SECONDS:
            break
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the largest batches took, for others
    enough = NEARLY_BEST * max(throughputs.values())
    return min(size for size, throughput in throughputs.items() if throughput >= enough)


def _fastest(
    evaluate: Callable[[int], object], size: int, device: torch.device, expected: float
) -> tuple[float, float]:
    """Seconds of the fastest run of a batch, and of all its runs as if each were as fast.

    A run that takes long, and no longer than `expected`, is not repeated. Compilation does not count.
    """
    fastest, runs = math.inf, 0
    while runs < RUNS:
        fastest = min(fastest, _seconds(evaluate, size, device))
        runs += 1
        if SHORT < fastest <= 1.1 * expected:
            break
    return fastest, runs * fastest


def _seconds(evaluate: Callable[[int], object], size: int, device: torch.device) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    evaluate(size)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return max(time.perf_counter() - start, 1e-9)  # of a clock with a coarse tick
