"""The draws of a run's certificates made again, by its model and on its images."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from accelerate import Accelerator

from ..certification.certificate import Certificate
from ..certification.smoothing import SmoothedClassifier
from ..common.json import differences
from .data import FAULTS
from .records import read_records, read_run
from .settings import Settings
from .subject import OUTSIDE, load_subject


FREE = ("id", "model", "dataset", "versions")
"""What may be otherwise in a replay: where model and images lie, and the versions of libraries."""


@dataclass(frozen=True)
class Replay:
    """A certificate, and what its draws give now.

    Args:
        index: Index of the image in the data set.
        certificate: The certificate of the record.
        again: That of the same draws, made again; `None` where they cannot be made.
        problem: Why they cannot.
    """

    index: int
    certificate: Certificate
    again: Certificate | None = None
    problem: str | None = None


def replay(
    folder: str | Path, count: int | None = None, model: str | None = None, dataset: str | None = None
) -> Iterator[Replay]:
    """Make the draws of a run's certificates again.

    Args:
        folder: The run's folder.
        count: How many certificates, chosen at random by the operating system's entropy. Default: all.
        model: Folder or Hub id of the model, if it is not where the run had it.
        dataset: The same of the data set.

    Raises:
        FileNotFoundError: The folder has no `run.json`.
        OSError, TypeError, ValueError: Model or images cannot be loaded or are not those of the run, the draws were
            made on another kind of device than is here, or `count` is more than there are certificates.
    """
    run = read_run(folder)
    known = {f.name: run[f.name] for f in fields(Settings) if f.name in run and f.name not in OUTSIDE}
    moved = {name: value for name, value in (("model", model), ("dataset", dataset)) if value is not None}
    try:
        settings = Settings(**{**known, **moved, "output": str(folder)})
    except TypeError as error:
        raise ValueError(f"{folder} has a run.json without what a run needs: {error}") from None
    settings.check()
    records = [record for record in read_records(folder).values() if "certificate" in record]
    count = len(records) if count is None else count
    if not 1 <= count <= len(records):
        raise ValueError(f"`count` is {count}; accepted for {folder} is 1 to {len(records)}, its certificates.")
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=settings.mixed_precision)
    chosen = random.SystemRandom().sample(records, count)
    certificates = [Certificate.from_dict(record["certificate"]) for record in chosen]
    kinds = {certificate.device or accelerator.device.type for certificate in certificates}
    if kinds != {accelerator.device.type}:
        raise ValueError(
            f"{folder} has certificates of draws on the kinds of devices {sorted(kinds)}; accepted here are those of "
            f"draws on {accelerator.device.type}: the same seed gives other noise elsewhere."
        )
    subject = load_subject(settings, accelerator)
    differing = differences(run, subject.described)
    differing = {name: pair for name, pair in differing.items() if name.partition(".")[0] not in FREE}
    if differing:
        listed = "".join(f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items())
        raise ValueError(f"{folder} is a run of another model, or on other images:{listed}")
    smoothed = SmoothedClassifier(subject.base, settings.sigma, settings.grid)
    for record, certificate in zip(chosen, certificates, strict=True):
        try:
            _check_procedure(certificate, settings)
            number = subject.data.indices.index(record["index"])
            if (label := record.get("label")) != subject.labels[number]:
                raise ValueError(f"the record has the label {label}, the data set {subject.labels[number]}")
            image = subject.image(number)
            with accelerator.autocast():
                yield Replay(record["index"], certificate, smoothed.replay(image, certificate))
        except FAULTS as error:
            yield Replay(record["index"], certificate, problem=str(error))


def _check_procedure(certificate: Certificate, settings: Settings) -> None:
    """Refuse one that was not made as the run says: among votes that were cast, a luckier number could be picked."""
    asked: dict[str, object] = {"n0": settings.n0, "alpha": settings.alpha, "seed": settings.seed}
    asked["bound"] = "mixture" if settings.stop_early else "clopper-pearson"
    if not settings.stop_early:
        asked["n"] = settings.n
    for name, value in asked.items():
        if getattr(certificate, name) != value:
            raise ValueError(f"the certificate has the {name} {getattr(certificate, name)}, the run {value}")
    if certificate.n > settings.n:
        raise ValueError(f"the certificate has the n {certificate.n}, the run at most {settings.n}")
