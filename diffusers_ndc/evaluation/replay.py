"""Cast the votes of a run's certificates again, with its model and on its images."""

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
from .records import list_differences, read_records, read_run
from .settings import OPTIONAL, Settings
from .subject import NOT_DESCRIBED, Subject, load_subject
from .task import Task


MAY_DIFFER = ("id", "model", "dataset", "versions")
"""What may differ in a replay: the places of model and images, and the versions of libraries.

In a run without a diffusion model the place of the classifier may differ too; its weights are compared.
"""


@dataclass(frozen=True)
class Replay:
    """A recorded certificate, and the certificate that the same noisy copies give now.

    Args:
        index: Index of the image in the data set.
        certificate: The recorded certificate, or `None` if it cannot be read.
        again: The certificate of the same noisy copies, classified again; `None` if that is impossible.
        problem: Why it is impossible.
    """

    index: int
    certificate: Certificate | None
    again: Certificate | None = None
    problem: str | None = None


def replay(
    folder: str | Path, count: int | None = None, model: str | None = None, dataset: str | None = None
) -> Iterator[Replay]:
    """Cast the votes of a run's certificates again.

    Args:
        folder: The run's folder.
        count: Number of certificates, chosen at random by the operating system's entropy. Default: all.
        model: Folder or Hub id of the model, if it has moved since the run; of the classifier, in a run without a
            diffusion model.
        dataset: Folder or Hub id of the data set, if it has moved since the run.

    Yields:
        A replay for each certificate.

    Raises:
        FileNotFoundError: The folder has no `run.json`.
        OSError, TypeError, ValueError: Model or images cannot be loaded or are not those of the run, or `count` is
            larger than the number of certificates.
    """
    run = read_run(folder)
    settings = _settings(run, folder, model, dataset)
    records = _choose_records(folder, count)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=settings.mixed_precision)
    subject = load_subject(settings, accelerator)
    _check_subject(run, subject, folder)
    smoothed = SmoothedClassifier(subject.base, settings.sigma, settings.grid)
    for record in records:
        certificate = None
        try:
            certificate = Certificate.from_dict(record["certificate"])
            _check_procedure(certificate, settings)
            image = _image(record, subject)
            with accelerator.autocast():
                again = smoothed.replay(image, certificate)
        except (*FAULTS, FloatingPointError) as error:
            yield Replay(record["index"], certificate, problem=str(error))
        else:
            yield Replay(record["index"], certificate, again)


def _settings(run: dict, folder: str | Path, model: str | None, dataset: str | None) -> Settings:
    """The settings of a recorded run, with model and data set where they are now."""
    names = [f.name for f in fields(Settings) if f.name not in NOT_DESCRIBED]
    values = {name: run[name] for name in names if name in run}
    values |= {name: run.get(name) for name in OPTIONAL}
    if values["task"] is not None:
        values["task"] = Task.from_dict(values["task"])
    values["output"] = str(folder)
    if model is not None:
        values["classifier" if values.get("method") == "gaussian" else "model"] = model
    if dataset is not None:
        values["dataset"] = dataset
    try:
        settings = Settings(**values)
    except TypeError as error:
        raise ValueError(f"run.json in {folder} must have the settings of a run, got {sorted(run)}: {error}") from None
    settings.check()
    settings.check_places()
    return settings


def _choose_records(folder: str | Path, count: int | None) -> list[dict]:
    """Records with certificates, in random order."""
    records = [record for record in read_records(folder).values() if "certificate" in record]
    if not records:
        raise ValueError(f"`folder` must hold certificates, got {folder}, which holds none.")
    if count is None:
        count = len(records)
    if not 1 <= count <= len(records):
        raise ValueError(f"`count` must be from 1 to {len(records)}, the certificates in {folder}, got {count}.")
    return random.SystemRandom().sample(records, count)


def _check_subject(run: dict, subject: Subject, folder: str | Path) -> None:
    """Raise a `ValueError` unless model and images are those of the run."""
    differing = {}
    may_differ = (*MAY_DIFFER, "classifier") if run.get("method") == "gaussian" else MAY_DIFFER
    for name, values in differences(run, subject.as_in(run).description).items():
        if name.partition(".")[0] not in may_differ:
            differing[name] = values
    if differing:
        raise ValueError(
            f"`folder` must hold a run of this model on these images, got {folder}, whose run differs:"
            f"{list_differences(differing)}"
        )


def _check_procedure(certificate: Certificate, settings: Settings) -> None:
    """Raise a `ValueError` unless a certificate was made as its run says.

    Otherwise one could choose the luckiest number among votes that were really cast.
    """
    expected: dict[str, object] = {"n0": settings.n0, "alpha": settings.alpha, "seed": settings.seed}
    if settings.stop_early:
        expected["bound"] = "mixture"
    else:
        expected["bound"] = "clopper-pearson"
        expected["n"] = settings.n
    for name, value in expected.items():
        recorded = getattr(certificate, name)
        if recorded != value:
            raise ValueError(f"`{name}` of the certificate must be that of the run, {value}, got {recorded}.")
    if certificate.n > settings.n:
        raise ValueError(f"`n` of the certificate must be at most that of the run, {settings.n}, got {certificate.n}.")


def _image(record: dict, subject: Subject) -> torch.Tensor:
    """The image of a record, whose label must be that of the data set."""
    number = subject.data.indices.index(record["index"])
    label = record.get("label")
    if label != subject.labels[number]:
        raise ValueError(f"`label` of the record must be that of the data set, {subject.labels[number]}, got {label}.")
    return subject.image(number)
