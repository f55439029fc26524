"""Gaussian noise that depends on its seed and the kind of device, never on batches, call order or processes.

A seed gives other noise on a GPU than on a CPU.
"""

import hashlib
import math
import secrets
from collections.abc import Sequence

import numpy as np
import torch

from .checks import check_number


def check_sigma(sigma: float) -> None:
    """Refuse a noise level that is no finite number of at least 0."""
    check_number("sigma", sigma, "a number (pixel units)")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"`sigma` is {sigma}; accepted is a finite noise level of at least 0 (pixel units).")


FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_floating(tensor: object, name: str = "images") -> None:
    """Refuse what is no dense tensor of floating-point numbers, or one without values (`meta`)."""
    if not isinstance(tensor, torch.Tensor):
        given = f"a {type(tensor).__name__}"
    elif tensor.dtype in FLOATING and tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested):
        return
    else:
        given = f"a tensor of {tensor.dtype} ({tensor.layout}, {tensor.device})"
    raise TypeError(f"`{name}` is {given}; accepted is a dense floating-point tensor.")


def check_noisy_range(images: torch.Tensor, sigma: float) -> None:
    """Refuse values that no image in [0, 1] with Gaussian noise of standard deviation `sigma` has, NaN among them."""
    low, high = images.min().item(), images.max().item()
    margin = 10 * sigma
    if not (low >= -margin and high <= 1 + margin):
        noise = f" give or take noise of sigma={sigma}" if sigma else ""
        raise ValueError(
            f"`images` has values from {low:.4g} to {high:.4g}; accepted are values in [0, 1]{noise}, no NaN."
        )


def check_seed(seed: int | None) -> None:
    """Refuse a seed that is neither `None` nor a whole number of 63 bits."""
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise ValueError(f"`seed` is {seed!r}; accepted is a whole number from 0 to 2**63 - 1, or None.")


def check_seeds(seeds: Sequence[int], count: int) -> None:
    """Refuse what is not one seed of 63 bits for each of so many images."""
    if not isinstance(seeds, Sequence) or len(seeds) != count or any(type(seed) is not int for seed in seeds):
        given = f"{len(seeds)} values" if isinstance(seeds, Sequence) else f"a {type(seeds).__name__}"
        raise ValueError(f"`seeds` is {given} for {count} images; accepted is one whole number for each.")
    for seed in seeds:
        check_seed(seed)


def fresh_seed(generator: torch.Generator | None = None) -> int:
    """A seed from the generator, or from the operating system's entropy where there is none."""
    if generator is None:
        return secrets.randbits(63)
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def resolve_seed(generator: torch.Generator | None, seed: int | None) -> int:
    """One seed from a generator, a given seed, or the operating system's entropy."""
    if generator is not None and seed is not None:
        raise ValueError(f"`generator` and `seed` ({seed}) are both given; accepted is one of them.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"`generator` is a {type(generator).__name__}; accepted is a torch.Generator or None.")
    check_seed(seed)
    return fresh_seed(generator) if seed is None else seed


def content_hash(image: torch.Tensor) -> str:
    """Hash of an image's values (as float32) and shape, the same on every device: 32 hexadecimal digits."""
    values = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]


def standard_normal(
    shape: tuple[int, ...], seeds: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Standard normal noise, one array of this shape for each 63-bit seed, made on the device that uses it.

    On the CPU it comes from numpy: torch's CPU generator keeps 32 bits of a seed, so that among the 10^5 streams
    behind one certificate two are likely to be equal, and the draws not independent.
    """
    if device.type != "cpu":
        noise = torch.empty((len(seeds), *shape), dtype=dtype, device=device)
        generator = torch.Generator(device)
        for array, seed in zip(noise, seeds, strict=True):
            array.normal_(generator=generator.manual_seed(seed))
        return noise
    kind = np.float64 if dtype == torch.float64 else np.float32
    values = np.empty((len(seeds), *shape), dtype=kind)
    for array, seed in zip(values, seeds, strict=True):
        np.random.default_rng(seed).standard_normal(dtype=kind, out=array)
    return torch.from_numpy(values).to(dtype)
