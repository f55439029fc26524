"""Gaussian noise that depends on its seed alone: not on the device, nor on batches, call order or processes."""

import secrets
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .checks import MAX_SEED, check_seed
from .transfer import to_device


NoiseSource = Callable[[tuple[int, ...], Sequence[int], torch.dtype, torch.device], torch.Tensor]
"""Standard normal noise from a shape, one seed per array, dtype and device, such as `standard_normal`."""


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
    """Standard normal noise, one array of this shape per 63-bit seed.

    It is made on the CPU whatever the device, so that a replay meets the same noise on other hardware.
    """
    return on_device(normal_arrays(shape, seeds, dtype), dtype, device)


def normal_arrays(shape: tuple[int, ...], seeds: Sequence[int], dtype: torch.dtype) -> np.ndarray:
    """The noise of `standard_normal` before it is moved: float64 for float64, else float32.

    It comes from numpy. torch's CPU generator keeps only 32 bits of a seed, so that among the 10^5 streams behind one
    certificate two are likely to be equal, and the draws would not be independent.
    """
    numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
    values = np.empty((len(seeds), *shape), dtype=numpy_dtype)
    for array, seed in zip(values, seeds, strict=True):
        np.random.default_rng(seed).standard_normal(dtype=numpy_dtype, out=array)
    return values


def on_device(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Arrays as a tensor of this dtype on this device."""
    return to_device(torch.from_numpy(values).to(dtype), device)
