"""Gaussian noise that depends on its seed and the kind of device, never on batches, call order or processes.

The same seed gives other noise on a GPU than on a CPU.
"""

import secrets
from collections.abc import Sequence

import numpy as np
import torch

from .checks import MAX_SEED, check_seed


def fresh_seed(generator: torch.Generator | None = None) -> int:
    """Draw a seed from `generator`, or from the operating system's entropy if it is `None`."""
    if generator is None:
        return secrets.randbits(63)
    return int(torch.randint(MAX_SEED, (), generator=generator, device=generator.device))


def resolve_seed(generator: torch.Generator | None, seed: int | None) -> int:
    """The seed itself, or one drawn from `generator`, or from the operating system's entropy.

    Raises:
        TypeError: `generator` is not a `torch.Generator`.
        ValueError: `seed` is not an integer of 63 bits, or both arguments are given.
    """
    if generator is not None and seed is not None:
        raise ValueError(f"`seed` must be None if `generator` is given, got {seed!r}.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"`generator` must be a torch.Generator or None, got {type(generator).__name__}.")
    check_seed(seed)
    return fresh_seed(generator) if seed is None else seed


def standard_normal(
    shape: tuple[int, ...], seeds: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Standard normal noise, one array of this shape per 63-bit seed, made on the device that uses it.

    On the CPU it comes from numpy. torch's CPU generator keeps only 32 bits of a seed, so that among the 10^5 streams
    behind one certificate two are likely to be equal, and the draws would not be independent.
    """
    if device.type != "cpu":
        noise = torch.empty((len(seeds), *shape), dtype=dtype, device=device)
        generator = torch.Generator(device)
        for array, seed in zip(noise, seeds, strict=True):
            array.normal_(generator=generator.manual_seed(seed))
        return noise
    numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
    values = np.empty((len(seeds), *shape), dtype=numpy_dtype)
    for array, seed in zip(values, seeds, strict=True):
        np.random.default_rng(seed).standard_normal(dtype=numpy_dtype, out=array)
    return torch.from_numpy(values).to(dtype)
