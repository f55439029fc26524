"""Checks of arguments that many functions share. Free of torch.

Every message has one form: "`name` must be ..., got ...".
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike


EXACT = 2**53
"""Largest integer up to which every integer is exactly representable as a float."""

MAX_SEED = 2**63 - 1
"""Largest seed: seeds have 63 bits."""

BatchSize = int | Literal["auto"]
"""Images per network evaluation, or "auto" for a number that a short trial finds on the device."""

AUTO: Literal["auto"] = "auto"


def check_number(name: str, value: object, expected: str) -> float:
    """Check a number, and return it as a float: small types of NumPy overflow, or compute in a lower precision.

    Args:
        name: Name of the argument, for the message.
        value: The argument.
        expected: What the argument must be, for the message.

    Returns:
        The number. NaN and infinity pass.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: `value` is too large for a float.
    """
    if isinstance(value, (bool, np.bool)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be {expected}, got {value!r} ({type(value).__name__}).")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"`{name}` must be {expected}, got an integer beyond the range of floats.")
    number = float(value)
    if math.isinf(number) and not np.isinf(value):
        raise ValueError(f"`{name}` must be {expected}, got {value!s}, which is beyond the range of floats.")
    return number


def plain_integer(name: str, value: object) -> int:
    """Convert an integer of Python or NumPy to one of Python, which cannot overflow.

    Args:
        name: Name of the argument, for the message.
        value: The argument.

    Raises:
        TypeError: `value` is not an integer.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r} ({type(value).__name__}).")
    return int(value)


def plain_number(value: Any) -> Any:
    """Convert a number of NumPy to a float, which has double precision and can be written as JSON; else `value`."""
    return float(value) if isinstance(value, (np.integer, np.floating)) else value


def check_kind(name: str, value: object, *kinds: type) -> None:
    """Raise a `TypeError` unless `value` is an instance of one of the classes `kinds`."""
    if not isinstance(value, kinds):
        expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"`{name}` must be of type {expected}, got {type(value).__name__}.")


def check_integer(name: str, value: object, low: int, high: int, expected: str = "an integer") -> None:
    """Raise a `ValueError` unless `value` is an `int` from `low` to `high`, both included."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"`{name}` must be {expected} from {low:,} to {high:,}, got {value!r}.")


def check_sigma(sigma: float) -> float:
    """Return `sigma` as a float; raise unless it is a finite number of at least 0 (a noise level in pixel units)."""
    expected = "a finite noise level of at least 0 (pixel units)"
    sigma = check_number("sigma", sigma, expected)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"`sigma` must be {expected}, got {sigma}.")
    return sigma


def check_seed(seed: int | None, name: str = "seed") -> None:
    """Raise a `ValueError` unless `seed` is `None` or an integer of 63 bits."""
    if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED):
        raise ValueError(f"`{name}` must be an integer from 0 to 2**63 - 1 or None, got {seed!r}.")


def check_seeds(seeds: Sequence[int], num_images: int) -> None:
    """Raise a `ValueError` unless `seeds` has one integer of 63 bits per image."""
    if not isinstance(seeds, Sequence) or len(seeds) != num_images or any(type(seed) is not int for seed in seeds):
        given = f"{len(seeds)} values" if isinstance(seeds, Sequence) else type(seeds).__name__
        raise ValueError(f"`seeds` must be a sequence of one integer per image ({num_images} images), got {given}.")
    for seed in seeds:
        check_seed(seed, "seeds")


def plain_numbers(name: str, values: Any, expected: str) -> tuple[float, ...]:
    """Convert a sequence, array or tensor of numbers to a tuple of floats.

    Args:
        name: Name of the argument, for the message.
        values: The argument.
        expected: What the argument must be, for the message.

    Raises:
        TypeError: `values` is not a sequence, or one of its values is not a number.
        ValueError: One of the values is too large for a float.
    """
    try:
        plain = values.tolist() if hasattr(values, "tolist") else values
        listed: list[Any] = [None] if isinstance(plain, (str, bytes, Mapping)) else list(plain)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without values (meta)
        raise TypeError(f"`{name}` must be {expected}, got {values!r} ({type(values).__name__}).") from None
    return tuple(check_number(name, value, expected) for value in listed)


def class_indices(labels: ArrayLike, num_images: int, num_classes: int) -> np.ndarray:
    """Check labels and return them as an array of int64.

    Args:
        labels: The labels, one per image.
        num_images: Number of images.
        num_classes: Number of classes of the model.

    Raises:
        ValueError: They are not one integer per image, within the model's classes.
    """
    expected = f"one integer for each of the {num_images} images"
    try:
        classes = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`labels` must be {expected}, got {labels!r}.") from None
    if classes.shape != (num_images,) or classes.dtype.kind not in "iu":
        raise ValueError(f"`labels` must be {expected}, got the shape {classes.shape} and type {classes.dtype}.")
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(f"`labels` must be from 0 to {num_classes - 1}, got {classes.min()} to {classes.max()}.")
    return classes.astype(np.int64)  # the type of indices in torch


def checked_batch_size(batch_size: object, name: str = "batch_size") -> BatchSize:
    """The batch size itself.

    Args:
        batch_size: What to check.
        name: Name of the argument, for the message.

    Raises:
        ValueError: It is neither an integer of at least 1 nor "auto".
    """
    if isinstance(batch_size, str) and batch_size == AUTO:
        return AUTO
    if type(batch_size) is int and 1 <= batch_size < 2**31:
        return batch_size
    raise ValueError(f'`{name}` must be a whole number of at least 1 or "auto", got {batch_size!r}.')
