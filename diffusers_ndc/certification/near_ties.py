"""Votes that may move on other hardware: those of copies whose two leading logits nearly tie.

The noise of a replay is the same everywhere, but networks round differently: in other batches, with other kernels,
with TF32 convolutions on CUDA. Where two logits are closer than that, the vote may honestly fall either way.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


TOLERANCES = {"float64": 2.0**-40, "float32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative gaps of logits up to which two classes nearly tie, by the dtype that the network computes in.

For half precision twice its unit round-off; for float32 that of TF32, to which CUDA rounds the inputs of convolutions.
The gaps of 300 noisy digits (embedded model, sigma 1) changed by 5e-7 at most with the batch size in float32, and by
1e-3 (median) to 8e-3 (99%) from float32 to bfloat16. Of 1,245 copies of five digits at that sigma 3 were near-ties in
float32, and of 300 copies about 1% in bfloat16.
"""


class Ranked(NamedTuple):
    """The two leading classes of a noisy copy.

    Args:
        label: The class with the largest logit, which has the vote.
        other: The class with the next one; `label` again if there is only one class.
        gap: How much smaller that is.
        size: The larger magnitude of the two logits.
    """

    label: int
    other: int
    gap: float
    size: float


@dataclass(frozen=True)
class NearTie:
    """A noisy copy whose vote other hardware may cast otherwise.

    Args:
        stage: "select" (the copies that choose the candidate) or "estimate" (those that the bound rests on).
        number: Number of the draw in its stage, from 0.
        label: The class that has its vote here.
        other: The class that nearly has.
        gap: Difference of their logits, relative to the scale of logits, which is the root mean square over all copies
            of the larger of the two leading ones.
    """

    stage: str
    number: int
    label: int
    other: int
    gap: float


def near_tie_tolerance(settings: Mapping) -> float:
    """Relative gap up to which two logits of a classifier nearly tie: that of its coarsest dtype.

    Args:
        settings: Settings of the base classifier, which name dtypes under keys that end in `dtype`, as "float32" or
            "autocast bfloat16". Without any: float32.
    """
    tolerances = [TOLERANCES[name] for name in _dtypes(settings) if name in TOLERANCES]
    return max(tolerances, default=TOLERANCES["float32"])


def _dtypes(settings: Mapping) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dtypes(value)
        elif isinstance(value, str) and name.endswith("dtype"):
            yield value.split()[-1]


def find_near_ties(ranked: Mapping[str, Sequence[Ranked]], tolerance: float) -> tuple[NearTie, ...]:
    """The near-ties among all copies of a certificate.

    Args:
        ranked: By stage, the leading classes of each copy, in the order of the draws.
        tolerance: Largest relative gap of a near-tie.
    """
    sizes = np.array([copy.size for copies in ranked.values() for copy in copies])
    scale = float(np.sqrt(np.mean(sizes**2)))
    ties = []
    for stage, copies in ranked.items():
        for number, copy in enumerate(copies):
            if copy.other != copy.label and copy.gap <= tolerance * scale:
                ties.append(NearTie(stage, number, copy.label, copy.other, copy.gap / scale if scale > 0 else 0.0))
    return tuple(ties)
