"""What the property tests share: how many cases they run, hostile values, and what counts as a documented error."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from diffusers_ndc import Certificate, LipschitzCertificate
from diffusers_ndc.certification.bounds import MAX_N


def cases(number: int) -> settings:
    """Settings of a property test that runs `number` cases under the profile `ci`, and a share or a multiple of them
    under the other profiles (see conftest.py)."""
    return settings(max_examples=max(1, number * settings.default.max_examples // 100))


HUGE = 1.7e308

ENDLESS = MAX_N + 1
"""Fewer draws are accepted, and would be waited for."""

SCALARS = [
    *(None, True, False, Ellipsis, object()),
    *(0, 1, -1, 2, 3, ENDLESS, 2**63, -(2**63), 10**400, -(10**400)),
    *(0.0, -0.0, 0.25, 0.5, 1.0, -1.0, 2.5, 1e-60, 1e-300, 5e-324, 1e30, HUGE, math.nan, math.inf, -math.inf),
    *(np.float32(0.25), np.float64("nan"), np.float16(0.25), np.int64(3), np.uint8(1), np.bool_(True)),
    *(Fraction(1, 4), Decimal("0.25"), 1 + 2j),
    *("", "0.25", "apndc", "dc", "epndc", "mixture", "runner-up", "elbo", "\ud800", "\0", "cuda:99", b"x"),
]

CONTAINERS = [
    *([], [0.25], [0.5, 0.25], [None], ["a"], [True], [math.nan], [10**400], [0, 1], [0, 1, 2, 0], [[0.25], [0.5, 1]]),
    *((), (1.0,), ((),), {}, {"a": 1}, {0: "a"}, {math.inf: "a"}, {"0": "a", "1": "b", "2": "c"}, {0.25}, frozenset()),
    *(np.array(0.25), np.array([0.25, 0.5]), np.array([None]), np.zeros((2, 0)), np.array("a"), range(3), range(0)),
    *(torch.tensor(0.25), torch.tensor([0.25, 0.5]), torch.zeros(0), torch.zeros(2, 2), torch.zeros(1, device="meta")),
]

HOSTILE = [*SCALARS, *CONTAINERS]
"""Values of which hardly any argument accepts more than a few."""


def spoilt(valid, hostile=HOSTILE, most: int = 3):
    """Hostile values for up to so many of the arguments that `valid` names: what to put in their place."""
    return st.dictionaries(st.sampled_from(sorted(valid)), st.sampled_from(hostile), max_size=most)


class Network:
    """Counts the calls of a network, so that a test can ask whether any was made."""

    def __init__(self, *modules):
        self.calls = 0
        for module in modules:
            module.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.calls += 1


REFUSED = object()
"""What `attempt` returns for a call that was refused as the documentation says."""


def attempt(call, network: Network | None = None, also: type[Exception] | tuple = (), late: str = "tell the classes"):
    """What a call returns, or `REFUSED`: by a TypeError or ValueError that names the argument, before any work.

    Args:
        call: Without arguments.
        network: Where no call of it may precede a refusal.
        also: Other documented exceptions, which may follow upon work.
        late: What is said by the one refusal that can only follow upon work, that of `calibrate`.
    """
    before = network and network.calls
    try:
        return call()
    except (TypeError, ValueError) as error:
        said = str(error)
        assert type(error) in (TypeError, ValueError) and "`" in said, repr(error)
        assert network is None or network.calls == before or late in said, "refused only after work"
        return REFUSED
    except also:
        return REFUSED


def check_sound(certificate: Certificate | LipschitzCertificate) -> None:
    """Whatever made it: a certificate verifies, says what it may, and survives JSON."""
    assert certificate.flaw is None, certificate.flaw
    assert math.isfinite(certificate.radius) and certificate.radius >= 0
    assert (certificate.label is None) == certificate.abstained
    if getattr(certificate, "num_classes", None) is not None and not certificate.abstained:
        assert 0 <= certificate.label < certificate.num_classes
