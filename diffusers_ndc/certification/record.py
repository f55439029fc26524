"""What the records of certificates share: plain values, a digest of them, and a check of what they claim."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import ClassVar, TypeVar

from ..common.checks import EXACT, check_integer, check_kind
from ..common.json import differences


Self = TypeVar("Self", bound="Record")


@dataclass(frozen=True)
class Record:
    """A dataclass of plain values, written as JSON and checked from its own values."""

    labelled: ClassVar[tuple[str, ...]]
    """Names of the fields that are dictionaries by class label."""

    def verify(self) -> bool:
        """Whether label and radius follow from what was drawn, and this is no more than was to be drawn."""
        return self.flaw is None

    @property
    def flaw(self) -> str | None:
        """What is wrong with the record, or `None`. That its draws were made, no record can show by itself."""
        return found(self._flaw_of_draws) or found(self._flaw_of_result)

    @property
    def seed_of_draws(self) -> int:
        """The seed, by which the draws can be made again.

        Raises:
            ValueError: The record is flawed, or names no seed.
        """
        if self.flaw is not None:
            raise ValueError(f"`certificate` is flawed: {self.flaw}; accepted is a sound one.")
        if (seed := vars(self)["seed"]) is None:
            raise ValueError("`certificate` has the seed None; accepted is one that names the seed of its draws.")
        return seed

    def check_origin(self, origin: dict) -> None:
        """Refuse a record that is not of these draws; what it does not say of its `device` is passed over.

        Raises:
            ValueError: One of these fields has another value.
        """
        mine = {name: vars(self)[name] for name in origin}
        if mine["device"] is None:
            mine["device"] = origin["device"]
        if differing := differences(mine, origin):
            listed = "; ".join(f"{name} {old!r} instead of {new!r}" for name, (old, new) in differing.items())
            raise ValueError(f"`certificate` is of other draws, it has {listed}; accepted is one of these draws.")

    def _check_kinds(self) -> None:
        """Refuse a seed, a hash or settings of a wrong kind; every record has these fields."""
        for name, most in (("seed", 2**63 - 1), ("evaluations", EXACT)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 0, most)
        text = (str, type(None))
        for name, kinds in (("image_hash", text), ("device", text), ("base_classifier", (dict,))):
            check_kind(name, getattr(self, name), *kinds)

    def _flaw_of_draws(self) -> str | None:
        raise NotImplementedError

    def _flaw_of_result(self) -> str | None:
        raise NotImplementedError

    def to_dict(self) -> dict:
        """The record as plain values, for JSON, with a `digest` of them by which damage is found out.

        Who alters a record on purpose can make a new digest: what he cannot do is make the draws give his numbers.
        """
        record = asdict(self)
        return {**record, "digest": _digest(record)}

    @classmethod
    def from_dict(cls: type[Self], data: dict) -> Self:
        """The record that `to_dict` wrote, also after a passage through JSON (where the labels become strings).

        Raises:
            ValueError: A field is missing or unknown, something by label has no whole number for it or a label two
                values, or there is a `digest` and it is that of other values.
        """
        known = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if isinstance(data, dict) and "digest" in data:
            digest, data = data["digest"], {name: value for name, value in data.items() if name != "digest"}
            try:
                unaltered = digest == _digest(data)
            except (TypeError, RecursionError):
                unaltered = False  # no such values can be written
            if not unaltered:
                raise ValueError(f"`data` has the digest {digest!r}; accepted is that of its values, unaltered.")
        if not isinstance(data, dict) or not required <= set(data) <= known:
            given = sorted(map(repr, data)) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"`data` has {given}; accepted is a dictionary with {sorted(required)}, and of {known}.")
        labelled = {}
        for name in cls.labelled:
            try:
                labelled[name] = {int(label): value for label, value in data[name].items()}
                if sorted(map(str, labelled[name])) != sorted(map(str, data[name])):  # 1.5, or 3 beside "03"
                    raise ValueError
            except (ArithmeticError, AttributeError, TypeError, ValueError):
                raise ValueError(f"`{name}` is {data[name]!r}; accepted is a dictionary by class label.") from None
        return cls(**{**data, **labelled})


def found(check: Callable[[], str | None]) -> str | None:
    """What a check finds wrong, also where it stumbles over a value of another type."""
    try:
        return check()
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        return f"a field has no such value as it must: {error}"


def _digest(record: dict) -> str:
    """Hash of a record's values as JSON has them: labels are strings there, and in their order."""
    plain = json.loads(json.dumps(record))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]
