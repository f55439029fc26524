"""Strict JSON, and the differences between two sets of settings."""

import json
from typing import Any, NoReturn


def loads(text: str) -> Any:
    """Parse a JSON text that means the same to every reader.

    Raises:
        ValueError: The text is not JSON, contains NaN, infinity or a duplicate key, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_raise_not_finite)
    except RecursionError:
        raise ValueError("`text` must not be nested this deeply.") from None


def _object(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"`text` must have unique keys in each object, got a duplicate among {sorted(values)}.")
    return values


def _raise_not_finite(constant: str) -> NoReturn:
    raise ValueError(f"`text` must have finite numbers, got {constant}.")


def differences(a: dict, b: dict) -> dict[str, tuple[object, object]]:
    """Settings that differ between two dictionaries: name -> (value in `a`, value in `b`).

    Nested names are joined by dots (`outer.inner`); an absent value is `None`. Values are compared as JSON has them: a
    tuple equals a list, and keys that are integers equal their strings.
    """
    flat_a, flat_b = (_flatten(json.loads(json.dumps(values))) for values in (a, b))
    names = sorted({*flat_a, *flat_b})
    return {name: (flat_a.get(name), flat_b.get(name)) for name in names if flat_a.get(name) != flat_b.get(name)}


def _flatten(values: dict, prefix: str = "") -> dict:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
