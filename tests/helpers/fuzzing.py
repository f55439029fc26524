"""What the property tests share: how many cases they run, hostile values, and what counts as a documented error."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from diffusers_ndc import Certificate, LipschitzCertificate
from diffusers_ndc.certification.bounds import MAX_N
from helpers.acceptable import Rule


def cases(number: int) -> settings:
    """Settings of a property test that runs `number` cases under the profile `ci`, and a share or a multiple of them
    under the other profiles (see conftest.py)."""
    return settings(max_examples=max(1, number * settings.default.max_examples // 100))


HUGE = 1.7e308

ENDLESS = MAX_N + 1
"""More noisy copies than may be asked for: a test that gets them would wait for ever."""

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

FAILED = object()
"""What `attempt` returns for a call that met another documented exception, which may depend on the data."""


def attempt(
    call: Callable[[], object],
    network: Network | None = None,
    also: type[Exception] | tuple = (),
    late: str | None = None,
):
    """Make a call that may be refused.

    Args:
        call: Without arguments.
        network: Where no call of it may precede a refusal.
        also: Other documented exceptions, which may follow upon work.
        late: Part of the message of a ValueError that can only follow upon work, and depends on its outcome.

    Returns:
        What the call returns; `REFUSED` for a TypeError or ValueError that names the argument, before any work;
        `FAILED` for the exceptions of `also` and `late`.
    """
    before = network and network.calls
    try:
        return call()
    except (TypeError, ValueError) as error:
        message = str(error)
        assert type(error) in (TypeError, ValueError) and "`" in message, repr(error)
        if late is not None and late in message:
            return FAILED
        assert network is None or network.calls == before, f"refused only after work: {message}"
        return REFUSED
    except also:
        return FAILED


def anything_goes(arguments: dict) -> bool:
    """Arguments that are acceptable one by one are acceptable together."""
    return True


@dataclass(frozen=True)
class Subject:
    """A callable under test, with the documentation of its arguments.

    Args:
        call: Takes the arguments by name.
        valid: Arguments that are valid together.
        rules: For each argument that is to be spoilt, which values are acceptable (`helpers.acceptable`).
        together: Whether arguments that are acceptable one by one must be accepted together (`None`: left open).
        extra: Further values for some of the arguments, beside the hostile ones.
        left_out: For some arguments, which values are not tried because a test of its own shows what they do.
    """

    call: Callable[..., object]
    valid: dict[str, object]
    rules: dict[str, Rule]
    together: Callable[[dict], bool | None] = anything_goes
    extra: dict[str, list] = field(default_factory=dict)
    left_out: dict[str, Callable[[object], bool]] = field(default_factory=dict)

    def values(self, name: str) -> list:
        """All values that are tried for an argument."""
        left_out = self.left_out.get(name, lambda value: False)
        return [value for value in (*self.extra.get(name, ()), *HOSTILE) if not left_out(value)]

    def acceptable_values(self, name: str) -> list:
        """Those of them that its rule accepts."""
        return [value for value in self.values(name) if self.rules[name](value)]

    def spoilt(self, most: int = 3):
        """A strategy: what to put in the place of up to `most` arguments, acceptable in about half of the cases."""
        names = sorted(self.rules)

        def substitutes(chosen):
            return st.fixed_dictionaries(
                {
                    name: st.sampled_from(self.acceptable_values(name) or self.values(name))
                    | st.sampled_from(self.values(name))
                    for name in chosen
                }
            )

        return st.lists(st.sampled_from(names), max_size=most, unique=True).flatmap(substitutes)

    def verdict(self, arguments: dict) -> bool | None:
        """Whether these arguments must be accepted (`True`), refused (`False`), or either (`None`)."""
        verdicts = [rule(arguments[name]) for name, rule in self.rules.items()]
        if False in verdicts:
            return False
        return None if None in verdicts else self.together(arguments)

    def run(
        self,
        changes: dict,
        network: Network | None = None,
        also: type[Exception] | tuple = (),
        late: str | None = None,
    ):
        """Call with some arguments changed; fail unless that is accepted or refused as documented.

        Args:
            changes: Arguments in the place of valid ones.
            network: As for `attempt`, and so `also` and `late`.

        Returns:
            What `attempt` returns.
        """
        arguments = {**self.valid, **changes}
        result = attempt(lambda: self.call(**arguments), network, also, late)
        wanted = self.verdict(arguments)
        if wanted is True:
            assert result is not REFUSED, f"valid arguments are refused: {changes}"
        elif wanted is False:
            assert result is REFUSED, f"invalid arguments are accepted: {changes}"
        return result

    def single_substitutions(self) -> list[dict]:
        """Changes to the valid arguments: none, and every acceptable value of every argument by itself."""
        return [{}, *({name: value} for name in sorted(self.rules) for value in self.acceptable_values(name))]

    def wrong_substitutions(self) -> list[dict]:
        """Changes to the valid arguments: every value of every argument by itself that its rule refuses."""
        return [
            {name: value} for name, rule in self.rules.items() for value in self.values(name) if rule(value) is False
        ]


def is_result(outcome: object) -> bool:
    """Whether `attempt` returned what the call did, and no refusal or failure."""
    return outcome is not REFUSED and outcome is not FAILED


def check_sound(certificate: Certificate | LipschitzCertificate, plain: bool = True) -> None:
    """Fail unless a certificate verifies, claims no more than it may, and (if `plain`) survives JSON."""
    assert certificate.flaw is None, certificate.flaw
    assert math.isfinite(certificate.radius) and certificate.radius >= 0
    assert (certificate.label is None) == certificate.abstained
    if getattr(certificate, "num_classes", None) is not None and not certificate.abstained:
        assert 0 <= certificate.label < certificate.num_classes
    if plain:
        assert type(certificate).from_dict(json.loads(json.dumps(certificate.to_dict()))) == certificate
