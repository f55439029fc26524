"""All votes behind a certificate in the order of their draws, as a short text for its record."""

import base64
import zlib
from collections.abc import Sequence

import numpy as np


LABEL = np.dtype("<u4")
"""How one vote is written before compression."""


def pack_votes(labels: Sequence[int]) -> str:
    """Write votes as a text: 4 bytes each, compressed by zlib, in base64.

    10,000 votes take 88 characters if all are for one class, 600 if 2% are for others, and 8,500 if ten
    classes have as many each.

    Args:
        labels: Class of each vote, in the order of the draws.
    """
    return base64.b64encode(zlib.compress(np.asarray(labels, LABEL).tobytes())).decode()


def unpack_votes(packed: str, count: int) -> list[int]:
    """The votes in such a text.

    Args:
        packed: What `pack_votes` returned.
        count: Number of votes that it must have; no more is unpacked.

    Raises:
        ValueError: The text is not one of so many votes.
    """
    size = count * LABEL.itemsize
    unpacking = zlib.decompressobj()
    try:
        votes = unpacking.decompress(base64.b64decode(packed, validate=True), size + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"`vote_sequence` must be votes that `pack_votes` wrote, got others: {error}.") from None
    if len(votes) != size or not unpacking.eof or unpacking.unused_data:
        raise ValueError(f"`vote_sequence` must have {count} votes, got another number.")
    return np.frombuffer(votes, LABEL).tolist()
