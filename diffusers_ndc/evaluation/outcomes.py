"""The result for one image, from its record: a certificate that is computed again from its votes, or a prediction."""

import sys
from typing import Any, NamedTuple

from ..certification.bound_names import default_bound
from ..certification.certificate import Certificate
from ..common.checks import EXACT


class Outcome(NamedTuple):
    """The result for one image.

    Args:
        label: The true class.
        predicted: The certified class, `None` for an abstention; in a run without certificates, the predicted class.
        radius: Certified radius, pixel units; 0 for an abstention, and in a run without certificates.
        evaluations: Number of network evaluations, `None` if unknown.
        seconds: The image's share of its process's time, `None` if unknown.
        p_lower: The certificate's `p_lower`, from which the radius follows; 0 for an incorrect class or an abstention,
            and in a run without certificates. With the bound `runner-up` it is not a bound on the class's probability.
        bound: Name of the certificate's bound, one of `certification.BOUNDS`; `None` in a run without certificates.
        image_index: Index of the image in the split, `None` if unknown.
        image_hash: Hash of the image as the network gets it, `None` if unknown.
        votes: The certificate's `counts`, votes by class; `None` in a run without certificates.
    """

    label: int
    predicted: int | None
    radius: float
    evaluations: int | None
    seconds: float | None
    p_lower: float = 0.0
    bound: str | None = None
    image_index: int | None = None
    image_hash: str | None = None
    votes: dict[int, int] | None = None

    @property
    def proved(self) -> float:
        """`radius` if the class is correct, else -1."""
        return self.radius if self.predicted == self.label else -1.0


def outcome_of(record: dict, run: dict) -> Outcome:
    """The result that a record holds.

    Raises:
        ValueError: The record is malformed, belongs to another run, or its certificate does not verify.
    """
    if record.get("run") != run.get("id"):
        raise ValueError(f"`run` must be {run.get('id')}, got {record.get('run')}.")
    if type(record.get("label")) is not int:
        raise ValueError(f"`label` must be a class index, got {record.get('label')!r}.")
    seconds = record.get("seconds")
    if seconds is not None and not is_number(seconds):
        raise ValueError(f"`seconds` must be a finite number of at least 0, or null, got {seconds!r}.")
    if run.get("task") is not None:
        _check_index(record["index"], run["task"])
    if run["alpha"] is None:
        return _classified_outcome(record)
    return _certified_outcome(record, run)


def _classified_outcome(record: dict) -> Outcome:
    hashed = record.get("image_hash")
    for name in ("predicted", "evaluations"):
        value = record.get(name)
        if type(value) is not int or not 0 <= value <= EXACT:
            raise ValueError(f"`{name}` must be an integer from 0 to 2**53, got {value!r}.")
    return Outcome(
        record["label"],
        record["predicted"],
        0.0,
        record["evaluations"],
        record.get("seconds"),
        image_index=record["index"],
        image_hash=hashed if isinstance(hashed, str) else None,
    )


def _certified_outcome(record: dict, run: dict) -> Outcome:
    certificate = Certificate.from_dict(record.get("certificate", {}))
    if not certificate.verify():
        raise ValueError("`certificate` must have a label and a radius that follow from its votes, got others.")
    if (certificate.sigma, certificate.alpha) != (run["sigma"], run["alpha"]):
        raise ValueError(
            f"`certificate` must have the run's sigma {run['sigma']} and alpha {run['alpha']}, got sigma "
            f"{certificate.sigma} and alpha {certificate.alpha}."
        )
    if "base_classifier" in run and certificate.base_classifier != run["base_classifier"]:
        raise ValueError("`certificate` must be of the run's base classifier, got one of another.")
    if record.get("image_hash") != certificate.image_hash:
        raise ValueError("`certificate` must be of this image, got one of another image.")
    if run.get("task") is not None:
        _check_evidence(certificate, run["task"])
    correct = certificate.label == record["label"]
    return Outcome(
        record["label"],
        certificate.label,
        certificate.radius,
        certificate.evaluations,
        record.get("seconds"),
        p_lower=certificate.p_lower if correct else 0.0,
        bound=certificate.bound,
        image_index=record["index"],
        image_hash=certificate.image_hash,
        votes=certificate.counts,
    )


def _check_index(index: int, task: dict) -> None:
    """Raise a `ValueError` unless an image is one of those of the task."""
    if index not in range(0, task["skip"] * task["images"], task["skip"]):
        raise ValueError(f"`index` must be that of an image of the task {task['name']}, got {index}.")


def _check_evidence(certificate: Certificate, task: dict) -> None:
    """Raise a `ValueError` unless a certificate rests on the noisy copies and on the bound of the task."""
    n0, n = task["n0"], task["n"]
    bound = default_bound(task["stop_early"])
    as_many = certificate.n <= n if task["stop_early"] else certificate.n == n
    if (certificate.bound, certificate.n0) != (bound, n0) or not as_many:
        raise ValueError(
            f"`certificate` must have the bound {bound}, n0 {n0} and n {n} of the task {task['name']}, got "
            f"{certificate.bound}, {certificate.n0} and {certificate.n}."
        )


def is_number(value: Any) -> bool:
    """Whether this is a finite number of at least 0."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max
