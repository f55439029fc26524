"""JSON that says one thing to every reader."""

import json
from typing import Any, NoReturn


def loads(text: str) -> Any:
    """The value of a JSON text, of which other readers would make the same.

    Raises:
        ValueError: It is not JSON, has NaN, an infinity or a key that stands twice, or is nested beyond all use.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, object]]) -> dict:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError(f"a key of {sorted(values)} stands twice")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
