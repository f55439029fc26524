"""What all certificates share as records: plain values, a digest of them, and a check of what they claim."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from ..common.checks import EXACT, check_integer, check_kind, check_seed, plain_number
from ..common.json import differences


Self = TypeVar("Self", bound="Record")

RADIUS_ROUND_OFF = 0.01
"""Largest relative difference of the radii from the same scores on other hardware or in other batches."""

ROUND_OFF = 1e-4
"""Largest difference between the mean scores of the same draws on other hardware or in other batches."""


@dataclass(frozen=True)
class Record:
    """A certificate of plain values, which is written as JSON and checked from its own values.

    Args:
        seed: Seed of all random numbers.
        image_hash: Content hash of the image, which enters the seeds of its noise.
        evaluations: Network evaluations spent.
        device: Kind of device that the network ran on, as torch names it (`"cpu"`, `"cuda"`), for information: the
            noise is the same on every device. Version 0.1.0 drew it on that device. `None` if unknown.
        base_classifier: Settings of the classifier, for the record.
    """

    labelled: ClassVar[tuple[str, ...]]
    """Names of the fields that are dictionaries by class label."""

    numbers: ClassVar[tuple[str, ...]]
    """Names of the fields that are numbers, or dictionaries of them, and need not be integers."""

    seed: int | None = field(default=None, kw_only=True)
    image_hash: str | None = field(default=None, kw_only=True)
    evaluations: int | None = field(default=None, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    base_classifier: dict = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for name in self.numbers:
            value = getattr(self, name)
            if isinstance(value, dict):
                plain = {label: plain_number(number) for label, number in value.items()}
            else:
                plain = plain_number(value)
            object.__setattr__(self, name, plain)

    def verify(self) -> bool:
        """Whether label and radius follow from the recorded numbers, and these are no more than was planned."""
        return self.flaw is None

    @property
    def flaw(self) -> str | None:
        """What is wrong with the record, or `None`.

        No record can prove by itself that its numbers were observed: that takes a replay.
        """
        return first_flaw(self._flaw_of_draws, self._flaw_of_result)

    @property
    def seed_of_draws(self) -> int:
        """The seed from which the record's numbers can be computed again.

        Raises:
            ValueError: The record is flawed, or has no seed.
        """
        if self.flaw is not None:
            raise ValueError(f"`certificate` must be sound, got a flawed one: {self.flaw}.")
        if self.seed is None:
            raise ValueError("`certificate` must state the seed of its noise, got one with the seed None.")
        return self.seed

    def check_origin(self, origin: dict[str, Any]) -> None:
        """Raise unless the record comes from the same image, noise and classifier.

        Args:
            origin: Names and values of the fields that must be equal. `device` may differ: the noise is the same.

        Raises:
            ValueError: One of the fields has another value.
        """
        expected = {name: value for name, value in origin.items() if name != "device"}
        differing = differences({name: getattr(self, name) for name in expected}, expected)
        if differing:
            listed = "; ".join(f"{name} {old!r} instead of {new!r}" for name, (old, new) in differing.items())
            raise ValueError(f"`certificate` must be from this image, noise and classifier, got one with {listed}.")

    def _check_kinds(self) -> None:
        """Raise if one of the shared fields has a value of a wrong kind."""
        check_seed(self.seed)
        if self.evaluations is not None:
            check_integer("evaluations", self.evaluations, 0, EXACT)
        check_kind("image_hash", self.image_hash, str, type(None))
        check_kind("device", self.device, str, type(None))
        check_kind("base_classifier", self.base_classifier, dict)

    def _flaw_of_draws(self) -> str | None:
        """What is wrong with the observed numbers, or `None`."""
        raise NotImplementedError

    def _flaw_of_result(self) -> str | None:
        """What is wrong with label and radius, given sound numbers, or `None`."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        """The record as plain values for JSON, with a `digest` of them that reveals damage.

        Whoever alters a record on purpose can compute a new digest. What they cannot do is make a replay give their
        numbers.
        """
        values = asdict(self)
        values = {f.name: values[f.name] for f in self._recorded_fields()}
        return {**values, "digest": _digest(values)}

    @classmethod
    def _recorded_fields(cls) -> list[Field]:
        """The fields of the written record: all but those that say of themselves that they are none."""
        return [f for f in fields(cls) if f.metadata.get("recorded", True)]

    @classmethod
    def from_dict(cls: type[Self], data: dict) -> Self:
        """Read a record that `to_dict` wrote, also from JSON, where class labels have become strings.

        Args:
            data: The record's fields. A `digest`, if there is one, is compared with them.

        Raises:
            ValueError: A field is missing or unknown, a dictionary by class label has a key that is not an integer or
                stands for the same label as another key, or the digest is not that of the values.
        """
        if not isinstance(data, dict):
            raise ValueError(f"`data` must be a dictionary, got {type(data).__name__}.")
        values = {name: value for name, value in data.items() if name != "digest"}
        if "digest" in data and not _has_digest(values, data["digest"]):
            raise ValueError(f"`data` must have the digest of its unaltered values, got {data['digest']!r}.")
        recorded = cls._recorded_fields()
        known = {f.name for f in recorded}
        required = {f.name for f in recorded if f.default is MISSING and f.default_factory is MISSING}
        if not required <= set(values) <= known:
            optional = sorted(known - required)
            raise ValueError(
                f"`data` must have the fields {sorted(required)} and may have {optional}, "
                f"got {sorted(map(repr, values))}."
            )
        by_label = {name: _by_label(name, values[name]) for name in cls.labelled}
        return cls(**{**values, **by_label})


def first_flaw(*checks: Callable[[], str | None]) -> str | None:
    """Run checks in order and return the first flaw that one reports, or `None`.

    A check that raises has met a value of a wrong type or range, which is a flaw as well.
    """
    try:
        for check in checks:
            flaw = check()
            if flaw is not None:
                return flaw
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        return f"a field has an invalid value: {error}"
    return None


def _by_label(name: str, values: Any) -> dict[int, Any]:
    """A dictionary with class labels as keys, which JSON has made strings, as integers again."""
    try:
        by_label = {int(label): value for label, value in values.items()}
        # unequal for keys such as 1.5, or for 3 beside "03"
        unambiguous = sorted(map(str, by_label)) == sorted(map(str, values))
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        unambiguous = False
    if not unambiguous:
        raise ValueError(f"`{name}` must be a dictionary by class label, got {values!r}.")
    return by_label


def _has_digest(values: dict, digest: object) -> bool:
    try:
        return digest == _digest(values)
    except (TypeError, RecursionError):
        return False  # values that JSON cannot hold


def _digest(values: dict) -> str:
    """Hash of a record's values as JSON has them: with labels as strings, sorted."""
    plain = json.loads(json.dumps(values))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]
