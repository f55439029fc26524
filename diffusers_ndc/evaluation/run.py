"""A run of the evaluation: all processes share the images of a data set, certify each one once, and record it."""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import datasets
import diffusers
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..certification.smoothing import SmoothedClassifier
from ..common.json import differences
from .claims import Claims
from .data import FAULTS
from .figures import Report
from .model_card import fill_card, push_to_hub
from .records import RUN_FILE, RecordWriter, list_differences, read_records, read_run, write_run
from .report import write_report
from .settings import Settings
from .subject import Subject, load_subject


LOCK_FILE = "run.lock"


def evaluate(settings: Settings) -> Report | None:
    """Do what is left of a run, with as many processes as there are, and write its report.

    Each process claims images one by one and writes its own records; the main process waits for all of them. If a run
    ended early, for whatever reason, the same call continues it, with any number of processes.

    Args:
        settings: Settings of the run.

    Returns:
        The report on the main process, `None` on the others.

    Raises:
        TypeError, ValueError: A setting is invalid; the model, the data set and the settings do not go together; or
            the folder holds another run.
        OSError: The folder cannot be written, another run is at work in it, or the disk is full.
        RuntimeError: Another process of the run is gone.
        FloatingPointError: A loss is not finite, for example after an overflow in half precision.
    """
    settings.check()
    settings.check_places()
    if settings.plan:
        raise ValueError("`--plan` must be left out for a run, got it: `plan_run` makes the plan.")
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=settings.patience))
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=settings.mixed_precision,
        log_with=settings.report_to,
        project_dir=settings.output,
        kwargs_handlers=[patience],
    )
    if not accelerator.is_local_main_process:  # one set of bars on each screen
        datasets.disable_progress_bars()
        diffusers.utils.logging.disable_progress_bar()
    try:
        return _Run(settings, accelerator).evaluate()
    except dist.DistError as error:
        raise RuntimeError(
            f"another process of the run is gone ({str(error).splitlines()[0]}). What is finished is kept: run the "
            "same command again."
        ) from error


class _Run:
    """One process's part of a run. Every process of the run makes one, at the same time."""

    subject: Subject

    def __init__(self, settings: Settings, accelerator: Accelerator):
        self.settings = settings
        self.accelerator = accelerator
        self.folder = Path(settings.output)
        self.lock = FileLock(self.folder / LOCK_FILE, timeout=0)
        self.watched = sorted({0.0, *settings.radii})  # radii of the progress bar
        self.submitted: list[tuple[int, int]] = []  # index and label of each image that the classifier got, in order

    def evaluate(self) -> Report | None:
        """Prepare, process the images that are left, and report."""
        try:
            self._prepare()
            self._process_images()
            self.accelerator.end_training()
            if self.accelerator.is_main_process:
                return self._report()
            return None
        finally:
            self.lock.release()

    def _prepare(self) -> None:
        """Load everything and share out what is left. All processes take every step, and all go on or all end."""
        with self._all_or_none():
            self._lock_folder()
        recorded: dict | None = None
        with self._all_or_none():
            self._load()
            recorded = self._recorded_run()
        recorded = next((run for run in gather_object([recorded]) if run is not None), None)
        if recorded is not None:
            self.subject = self.subject.as_in(recorded)
        ids = gather_object([self.subject.id])
        with self._all_or_none():
            self._open_folder(ids)
        counts: dict[int, dict[str, int]] = {}
        with self._all_or_none():
            counts = self._read_finished()
        finished: dict[int, dict[str, int]] = {}
        for machine in gather_object([counts]):
            finished.update(machine)
        self.finished = list(finished.values())
        self.todo = [number for number, index in enumerate(self.subject.data.indices) if index not in finished]
        self.claims = Claims(len(self.todo), self.settings.patience)

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Wait for a step of all processes. An error in one of them ends all, and the main process raises it."""
        problem = None
        try:
            yield
        except (OSError, TypeError, ValueError) as error:
            problem = error
        messages = gather_object([None if problem is None else str(problem)])
        messages = [message for message in messages if message is not None]
        if not messages:
            return
        if not self.accelerator.is_main_process:
            sys.exit(1)
        if problem is not None:
            raise problem
        raise ValueError(messages[0])

    def _lock_folder(self) -> None:
        """Raise an `OSError` if another run is at work in the folder. The lock ends with this process."""
        if not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout:
            raise OSError(
                f"`--output` must be a folder without a run at work, got {self.folder}: another run is at work in it."
            ) from None

    def _load(self) -> None:
        """Load the model and the images."""
        settings = self.settings
        self.subject = load_subject(settings, self.accelerator)
        if settings.certifies:
            self.smoothed = SmoothedClassifier(self.subject.base, settings.sigma, settings.grid)
        self.radii = settings.provable_radii(self.subject.base.num_classes) if settings.stop_early else None

    def _recorded_run(self) -> dict | None:
        """The run in the folder, if there is one and it is to go on."""
        if self.settings.overwrite or not (self.folder / RUN_FILE).exists():
            return None
        return read_run(self.folder)

    def _open_folder(self, ids: list[str]) -> None:
        """Write which run the folder holds, or check that it holds this run.

        Each machine has a folder, or all share one; the run is the same on all machines.
        """
        if len(set(ids)) > 1:
            raise ValueError("weights, images and library versions must be the same on all machines, got others.")
        if not self.accelerator.is_local_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.settings.overwrite:
            for path in self.folder.glob("*.jsonl"):
                path.unlink(missing_ok=True)
            (self.folder / RUN_FILE).unlink(missing_ok=True)
        run = {"id": self.subject.id, **self.subject.description}
        if not (self.folder / RUN_FILE).exists():
            write_run(self.folder, run)
            return
        differing = differences(read_run(self.folder), run)
        if differing:
            differing.pop("id", None)
            raise ValueError(
                f"`--output` must be a new folder or the folder of this run, got {self.folder}, whose run has other "
                f"settings. --overwrite deletes that run.{list_differences(differing)}"
            )

    def _read_finished(self) -> dict[int, dict[str, int]]:
        """What each finished image adds to the counters, by index. Images that failed are tried again."""
        if not self.accelerator.is_local_main_process:
            return {}
        records = read_records(self.folder)
        foreign = [index for index, record in records.items() if record.get("run") != self.subject.id]
        if foreign:
            raise ValueError(
                f"`--output` must hold only records of this run, got {self.folder} with records of another run, of "
                f"the images {foreign[:5]}."
            )
        return {index: self._counts(record) for index, record in records.items() if "failed" not in record}

    def _process_images(self) -> None:
        """Claim images one by one, classify or certify them, and record each one as soon as it is done."""
        accelerator, settings = self.accelerator, self.settings
        if settings.report_to:
            shown = {name: str(value) for name, value in settings.to_dict().items()}
            accelerator.init_trackers("diffusers-ndc", config=shown)
        is_main = accelerator.is_main_process
        hidden = {} if is_main else {"disable": True}  # TQDM_DISABLE decides about the bar of the main process
        with (
            tqdm(total=len(self.subject.data), initial=len(self.finished), unit="image", **hidden) as self.bar,
            RecordWriter(self.folder, accelerator.process_index) as self.writer,
            accelerator.autocast(),
        ):
            self.started = time.perf_counter()
            records = self._certified() if settings.certifies else self._classified()
            for record in records:
                self._record(record)
            if is_main:
                self.claims.wait(self._show_progress)

    def _images(self) -> Iterator[torch.Tensor]:
        """Claim and read images. Those that cannot be read are recorded as failed."""
        for claimed in self.claims:
            number = self.todo[claimed]
            index, label = self.subject.data.indices[number], self.subject.labels[number]
            try:
                if label is None:
                    raise ValueError("`label` must be a class, got none.")
                image = self.subject.image(number)
            except FAULTS as error:
                self._record({"index": index, "failed": f"{type(error).__name__}: {error}"})
                continue
            self.submitted.append((index, label))
            yield image

    def _certified(self) -> Iterator[dict]:
        """Certify images, and yield their records as they are done."""
        settings = self.settings
        certificates = self.smoothed.certify_each(
            self._images(),
            n0=settings.n0,
            n=settings.n,
            alpha=settings.alpha,
            seed=settings.seed,
            radii=self.radii,
            on_copies=lambda _: self._beat(),
            max_copies_per_radius=settings.max_copies_per_radius,
            max_evaluations=settings.max_evaluations,
        )
        for place, certificate in certificates:
            index, label = self.submitted[place]
            yield {
                "index": index,
                "image_hash": certificate.image_hash,
                "label": label,
                "certificate": certificate.to_dict(),
                "seconds": self._seconds(certificate.evaluations or 0),
                "batch_size": self.subject.base.network_batch,
            }

    def _classified(self) -> Iterator[dict]:
        """Classify clean images, and yield their records as they are done."""
        for place, result in self.subject.base.classify_each(self._images(), self.settings.seed):
            index, label = self.submitted[place]
            self._beat()
            yield {
                "index": index,
                "image_hash": result.image_hash,
                "label": label,
                "predicted": result.logits.argmax().item(),
                "evaluations": result.evaluations,
                "seconds": self._seconds(result.evaluations),
                "batch_size": self.subject.base.network_batch,
            }

    def _seconds(self, evaluations: int) -> float:
        """An image's share of this process's time, by network evaluations, because images share batches."""
        return (time.perf_counter() - self.started) * evaluations / self.subject.base.evaluations

    def _record(self, record: dict) -> None:
        """Write a record, and count its image."""
        self.writer.write({**record, "run": self.subject.id})
        self.claims.finish(self._counts(record))
        self._show_progress()

    def _counts(self, record: dict) -> dict[str, int]:
        """What a record adds to the counters that all processes share: one counter per radius, and `failed`."""
        if "failed" in record:
            return {"failed": 1}
        if "certificate" in record:
            label, radius = record["certificate"].get("label"), record["certificate"].get("radius", 0.0)
        else:
            label, radius = record.get("predicted"), 0.0
        counts = {}
        for watched in self.watched:
            proved = label == record["label"] and radius >= watched
            counts[f"{watched:g}"] = 1 if proved else 0
        return counts

    def _beat(self) -> None:
        """Give a sign of life, while an image takes long."""
        self.claims.beat()
        self._show_progress()

    def _show_progress(self) -> None:
        """Update the progress bar and the trackers from the counters of all processes."""
        if not self.accelerator.is_main_process:
            return
        finished = len(self.finished) + self.claims.finished
        if finished > self.bar.n:
            failed = self.claims.count("failed")
            shares = {}
            for radius in (f"{watched:g}" for watched in self.watched):
                count = self.claims.count(radius) + sum(counts[radius] for counts in self.finished)
                shares[radius] = count / max(1, finished - failed)
            self.bar.set_postfix({f"at {radius}": f"{share:.1%}" for radius, share in shares.items()}, refresh=False)
            if self.settings.report_to:
                values = {f"certified_accuracy/{radius}": share for radius, share in shares.items()}
                self.accelerator.log({**values, "failed": failed}, step=finished)
        self.bar.update(finished - self.bar.n)

    def _report(self) -> Report:
        """Write report and model card, and push them if the settings say so."""
        missing = len(self.subject.data) - len(read_records(self.folder))
        if missing:
            warnings.warn(
                f"the records of {missing} images are on other machines: copy their *.jsonl files to {self.folder} "
                f"and write the report again: python -m diffusers_ndc.evaluation.report {self.folder}",
                stacklevel=2,
            )
        _, (report,) = write_report([self.folder], self.folder)
        card = self.folder / "README.md"
        fill_card([report], card)
        if self.settings.push_to_hub:
            push_to_hub([self.folder], self.settings.push_to_hub, card)
        return report
