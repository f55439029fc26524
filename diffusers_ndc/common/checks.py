"""Checks of arguments that many functions share; free of torch."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np


EXACT = 2**53
"""Largest whole number up to which each one is a float."""


def check_number(name: str, value: object, accepted: str) -> None:
    """Refuse what is no real number, or a whole one beyond the range of floats; NaN and infinity pass.

    Args:
        name: What the caller calls it.
        value: What was given.
        accepted: For the message, what would be accepted.

    Raises:
        TypeError: It is no number.
        ValueError: No float is as large.
    """
    if isinstance(value, (bool, np.bool)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` is {value!r}, a {type(value).__name__}; accepted is {accepted}.")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"`{name}` is a whole number beyond the range of floats; accepted is {accepted}.")


def check_kind(name: str, value: object, *kinds: type) -> None:
    """Refuse what is an instance of none of these classes.

    Raises:
        TypeError: It is another one.
    """
    if not isinstance(value, kinds):
        accepted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"`{name}` is a {type(value).__name__}; accepted is a {accepted}.")


def check_whole(name: str, value: object, least: int, most: int, what: str = "a whole number") -> None:
    """Refuse what is no `int` from `least` to `most`.

    Raises:
        ValueError: It is another type or number.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"`{name}` is {value!r}; accepted is {what} from {least:,} to {most:,}.")


def plain_numbers(name: str, values: Any, accepted: str) -> tuple[float, ...]:
    """A sequence, array or tensor of numbers as a tuple of floats.

    Raises:
        TypeError: It is none, or one of them is no number.
        ValueError: One of them is beyond the range of floats.
    """
    try:
        plain = values.tolist() if hasattr(values, "tolist") else values
        listed: list[Any] = [None] if isinstance(plain, (str, bytes, Mapping)) else list(plain)
    except (TypeError, RuntimeError):  # of a tensor without values
        raise TypeError(f"`{name}` is {values!r}, a {type(values).__name__}; accepted are {accepted}.") from None
    for value in listed:
        check_number(name, value, accepted)
    return tuple(float(value) for value in listed)
