"""Seeds of 63 bits, derived by hashing. Free of torch, so that whoever checks a record can derive them too."""

import hashlib


def derive_seeds(key: tuple[int | str, ...], count: int) -> list[int]:
    """Derive `count` seeds of 63 bits from a key.

    Different keys give unrelated seeds. A smaller `count` gives a prefix of what a larger one gives.
    """
    digest = hashlib.shake_256(repr(key).encode()).digest(8 * count)
    return [int.from_bytes(digest[start : start + 8], "little") >> 1 for start in range(0, len(digest), 8)]


def uniform_number(seed: int, image_hash: str) -> float:
    """The random number in [0, 1] of the randomized Clopper-Pearson bound, for the seed and hash of an image."""
    return derive_seeds((seed, image_hash, "u"), 1)[0] / 2**63
