"""A run of the evaluation: the images of a data set, shared by all processes, each certified once and recorded."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
from ..certification.stopping import largest_provable
from ..common.json import differences
from .claims import Claims
from .data import FAULTS
from .model_card import fill_card, push_to_hub
from .records import RUN_FILE, RecordWriter, read_records, read_run, write_run
from .report import Report, write_report
from .settings import Settings
from .subject import load_subject


LOCK_FILE = "run.lock"


def evaluate(settings: Settings) -> Report | None:
    """Do what is left of a run, with as many processes as there are, and write its report.

    Each process claims images one by one and writes its own records; the main process waits for all of them. A run
    that ended early, in whatever way, is continued by the same call with any number of processes.

    Args:
        settings: What to do.

    Returns:
        The report, on the main process; `None` on the others.

    Raises:
        TypeError, ValueError: A setting is not as described; the model, the data set and the settings do not go
            together; or the folder holds another run.
        OSError: The folder cannot be written, or another run is at work in it; or the disk is full.
        RuntimeError: Another process of the run is gone.
        FloatingPointError: A loss is not finite, as by an overflow in half precision.
    """
    settings.check()
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
        with ExitStack() as stack:
            return _Run(settings, accelerator, stack).finish()
    except dist.DistError as error:
        raise RuntimeError(
            f"another process of the run is gone ({str(error).splitlines()[0]}). What is finished is kept: run the "
            "same command again."
        ) from error


class _Run:
    """One process's part of a run; made on all processes at the same time, all or none of which go on."""

    def __init__(self, settings: Settings, accelerator: Accelerator, stack: ExitStack):
        self.settings, self.accelerator, self.folder = settings, accelerator, Path(settings.output)
        self._together(lambda: self._lock(stack))
        runs = self._together(self._load)
        self._together(lambda: self._open_folder(runs))
        known = {index: counts for part in self._together(self._done) for index, counts in part.items()}
        self.known = list(known.values())
        self.todo = [number for number, index in enumerate(self.subject.data.indices) if index not in known]
        self.claims = Claims(len(self.todo), settings.patience)

    def _together(self, step: Callable[[], object]) -> list:
        """What the step returns on all processes; an error on one of them ends all, and the main one says it."""
        result = problem = None
        try:
            result = step()
        except (OSError, TypeError, ValueError) as error:
            problem = error
        results, problems = zip(*gather_object([(result, problem and str(problem))]), strict=True)
        if any(problems):
            if not self.accelerator.is_main_process:
                sys.exit(1)
            raise problem or ValueError(next(filter(None, problems)))
        return list(results)

    def _lock(self, stack: ExitStack) -> None:
        """Refuse a folder in which another run is at work; the lock goes with this process, however it ends."""
        if not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FileLock(self.folder / LOCK_FILE, timeout=0))
        except Timeout:
            raise OSError(f"--output {self.folder}: another run is at work in this folder.") from None

    def _load(self) -> str:
        """The model and the images; returns the run's id."""
        settings = self.settings
        self.subject = load_subject(settings, self.accelerator)
        if settings.certifies:
            self.smoothed = SmoothedClassifier(self.subject.base, settings.sigma, settings.grid)
        self.radii = None
        if settings.stop_early:  # larger radii than can be proved are reported, not pursued
            share = settings.alpha if settings.n0 else settings.alpha / self.subject.base.num_classes
            provable = largest_provable(settings.sigma, share, "mixture", settings.n)
            self.radii = [radius for radius in settings.radii if radius <= provable]
            if not self.radii:
                raise ValueError(
                    f"--radii are {settings.radii}; accepted with --n {settings.n} are some <= {provable:.4g}."
                )
        return self.subject.id

    def _open_folder(self, runs: list[str]) -> None:
        """The folder of each machine, or the one that they share, says which run it holds; all have the same one."""
        if len(set(runs)) > 1:
            raise ValueError("the weights, the images or the library versions are not the same on all machines.")
        if not self.accelerator.is_local_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.settings.overwrite:
            for path in (*self.folder.glob("*.jsonl"), self.folder / RUN_FILE):
                path.unlink(missing_ok=True)
        if not (self.folder / RUN_FILE).exists():
            write_run(self.folder, {"id": self.subject.id, **self.subject.described})
        elif differing := differences(read_run(self.folder), {"id": self.subject.id, **self.subject.described}):
            differing.pop("id", None)
            listed = "".join(f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items())
            raise ValueError(
                f"--output {self.folder} holds a run with other settings; accepted are the same ones, another folder, "
                f"or --overwrite, which deletes that run.{listed}"
            )

    def _done(self) -> dict[int, dict]:
        """What the images that are finished add to the counters; those that failed are tried again."""
        if not self.accelerator.is_local_main_process:
            return {}
        records = read_records(self.folder)
        strange = [index for index, record in records.items() if record.get("run") != self.subject.id]
        if strange:
            raise ValueError(
                f"--output {self.folder} holds records of another run, of the images {strange[:5]}; accepted are "
                "those of the run that its run.json describes."
            )
        return {index: self._counts(record) for index, record in records.items() if "failed" not in record}

    def _counts(self, record: dict) -> dict[str, int]:
        """What a record adds to the counters that all processes see."""
        if "failed" in record:
            return {"failed": 1}
        result = record.get("certificate", record)
        right = result.get("label" if "certificate" in record else "predicted") == record["label"]
        return {f"{radius:g}": int(right and result.get("radius", 0.0) >= radius) for radius in self._watched}

    @property
    def _watched(self) -> list[float]:
        return sorted({0.0, *self.settings.radii})

    def finish(self) -> Report | None:
        """The images that are left, and the report where this is the main process."""
        accelerator, settings = self.accelerator, self.settings
        if settings.report_to:
            shown = {name: str(value) for name, value in settings.to_dict().items()}
            accelerator.init_trackers("diffusers-ndc", config=shown)
        total, main = len(self.subject.data), accelerator.is_main_process
        with (
            tqdm(total=total, initial=len(self.known), unit="image", disable=not main) as self.bar,
            RecordWriter(self.folder, accelerator.process_index) as self.writer,
            accelerator.autocast(),
        ):
            self.started = time.perf_counter()
            for record in self._certified() if settings.certifies else self._classified():
                self._keep(record)
            if main:
                self.claims.wait(self._look)
        accelerator.end_training()
        return self._report() if main else None

    def _images(self, opened: list[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Images as they are claimed, and of each one its index and label, added to `opened`."""
        for claimed in self.claims:
            number = self.todo[claimed]
            index, label = self.subject.data.indices[number], self.subject.labels[number]
            try:
                if label is None:
                    raise ValueError("it has no label.")
                image = self.subject.image(number)
            except FAULTS as error:
                self._keep({"index": index, "failed": f"{type(error).__name__}: {error}"})
                continue
            opened.append((index, label))
            yield image

    def _certified(self) -> Iterator[dict]:
        settings = self.settings
        opened: list[tuple[int, int]] = []
        certificates = self.smoothed.certify_each(
            self._images(opened),
            settings.n0,
            settings.n,
            settings.alpha,
            settings.seed,
            radii=self.radii,
            on_copies=lambda _: self._beat(),
        )
        for place, certificate in certificates:
            index, label = opened[place]
            yield {
                "index": index,
                "image_hash": certificate.image_hash,
                "label": label,
                "certificate": certificate.to_dict(),
                "seconds": self._seconds(certificate.evaluations or 0),
            }

    def _classified(self) -> Iterator[dict]:
        opened: list[tuple[int, int]] = []
        for place, result in self.subject.base.classify_each(self._images(opened), self.settings.seed):
            index, label = opened[place]
            self._beat()
            yield {
                "index": index,
                "image_hash": result.image_hash,
                "label": label,
                "predicted": result.logits.argmax().item(),
                "evaluations": result.evaluations,
                "seconds": self._seconds(result.evaluations),
            }

    def _seconds(self, evaluations: int) -> float:
        """An image's share of this process's time, by network evaluations: batches are shared."""
        return (time.perf_counter() - self.started) * evaluations / self.subject.base.evaluations

    def _keep(self, record: dict) -> None:
        self.writer.write({**record, "run": self.subject.id})
        self.claims.finish(self._counts(record))
        self._look()

    def _beat(self) -> None:
        self.claims.beat()
        self._look()

    def _look(self) -> None:
        """The one progress bar, and the trackers, from the counters of all processes."""
        if not self.accelerator.is_main_process:
            return
        finished = len(self.known) + self.claims.finished
        if finished > self.bar.n:
            counts = {
                f"{radius:g}": sum(known[f"{radius:g}"] for known in self.known) + self.claims.count(f"{radius:g}")
                for radius in self._watched
            }
            failed = self.claims.count("failed")
            shares = {radius: count / max(1, finished - failed) for radius, count in counts.items()}
            self.bar.set_postfix({f"at {radius}": f"{share:.1%}" for radius, share in shares.items()}, refresh=False)
            if self.settings.report_to:
                values = {f"certified_accuracy/{radius}": share for radius, share in shares.items()}
                self.accelerator.log({**values, "failed": failed}, step=finished)
        self.bar.update(finished - self.bar.n)

    def _report(self) -> Report:
        if missing := len(self.subject.data) - len(read_records(self.folder)):
            warnings.warn(
                f"the records of {missing} images are on other machines: copy their *.jsonl files to {self.folder} "
                f"and make the report again: python -m diffusers_ndc.evaluation.report {self.folder}",
                stacklevel=2,
            )
        _, (report,) = write_report([self.folder], self.folder)
        card = self.folder / "README.md"
        fill_card([report], card)
        if self.settings.push_to_hub:
            push_to_hub([self.folder], self.settings.push_to_hub, card)
        return report
