"""Seeds of 63 bits, derived by hashing; free of torch, so that whoever checks a record can derive them too."""

import hashlib


def derive_seeds(key: tuple[int | str, ...], count: int) -> list[int]:
    """`count` seeds of 63 bits from a key; fewer of them are a prefix of more, unequal keys give unrelated ones."""
    digest = hashlib.shake_256(repr(key).encode()).digest(8 * count)
    return [int.from_bytes(digest[i : i + 8], "little") >> 1 for i in range(0, len(digest), 8)]


def uniform_number(seed: int, image_hash: str) -> float:
    """The uniform random number in [0, 1] of the randomized bound, for an image and the seed of its draws."""
    return derive_seeds((seed, image_hash, "u"), 1)[0] / 2**63
