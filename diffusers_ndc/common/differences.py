"""Settings compared by name."""

import json


def differences(a: dict, b: dict) -> dict[str, tuple[object, object]]:
    """Values that differ: their names, those of nested ones as `outer.inner`, and both of them.

    They are compared as JSON has them: a tuple is a list, a label that is a key is a string. An absent one
    is `None`.
    """
    a, b = (_flat(json.loads(json.dumps(values))) for values in (a, b))
    return {name: (a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)}


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
