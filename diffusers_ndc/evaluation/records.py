"""The files in a run's folder: `run.json` with its settings, and JSON lines with a record for each image."""

import json
import os
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from ..common import json as strict_json


RUN_FILE = "run.json"


class RecordWriter:
    """Write the records of one process to a new file, `<timestamp>-<process index>-<pid>.jsonl` (UTC), line by line.

    A record is on the disk when `write` returns. An existing file is never appended to: a line that a killed process
    left half-written would swallow the next one.

    Args:
        folder: The run's folder; it is created if necessary.
        process_index: Rank of this process among those of the run.

    Raises:
        OSError: On entering, the folder or the file cannot be created; on writing, the disk is full.
    """

    def __init__(self, folder: str | Path, process_index: int = 0):
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
        self.path = Path(folder, f"{stamp}-{process_index:03d}-{os.getpid()}.jsonl")

    def __enter__(self) -> "RecordWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "x", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: dict) -> None:
        """Write one record: plain values with the image's `index` in the data set.

        A certified image also has `image_hash`, `label` (the true class), `seconds`, for information the network's
        `batch_size`, and `certificate` (`Certificate.to_dict()`). A classified clean image, in a run whose `alpha` is
        null, has `predicted` and `evaluations` instead of `certificate`. An image that could not be read has the
        reason as `failed`.
        """
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_records(folder: str | Path) -> dict[int, dict]:
    """Read the records that all processes and starts of a run have written.

    The first record of an image counts, but a failure gives way to a later success. A damaged last line was cut short
    when its process died, and is skipped; other damaged lines are skipped with a warning.

    Args:
        folder: The run's folder. A folder that does not exist has no records.

    Returns:
        Records by image index, in ascending order.
    """
    records: dict[int, dict] = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for record in _read_lines(path):
            index = record["index"]
            is_first = index not in records
            if is_first or ("failed" in records[index] and "failed" not in record):
                records[index] = record
    return dict(sorted(records.items()))


def _read_lines(path: Path) -> Iterator[dict]:
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    damaged = []
    for number, line in enumerate(lines, start=1):
        try:
            record = strict_json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and type(record.get("index")) is int:
            yield record
        elif number < len(lines):
            damaged.append(number)
    if damaged:
        warnings.warn(f"{path}: {len(damaged)} damaged lines are ignored: {damaged[:10]}", stacklevel=3)


def write_run(folder: str | Path, settings: dict) -> None:
    """Write the settings of a run to its `run.json`, all or nothing.

    Args:
        folder: The run's folder; it is created if necessary.
        settings: Plain values by name; dictionaries may be nested.

    Raises:
        OSError: The file cannot be written. An existing file is still whole.
        TypeError: JSON has no such value. An existing file is still whole.
    """
    folder = Path(folder)
    text = json.dumps(settings, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{RUN_FILE}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / RUN_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def read_run(folder: str | Path) -> dict:
    """Read the settings that `write_run` wrote. Labels that were keys are strings now, as in JSON.

    Args:
        folder: The run's folder.

    Raises:
        FileNotFoundError: The folder, or `run.json` in it, does not exist.
        ValueError: `run.json` is not a JSON object.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` must be the folder of a run, got {folder}, which is not a folder.")
    path = folder / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"`folder` must be the folder of a run, got {folder}, which has no {RUN_FILE}.")
    try:
        settings = strict_json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got a text that is not: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be a JSON object of settings, got a {type(settings).__name__}.")
    return settings


def list_differences(differing: dict[str, tuple[object, object]]) -> str:
    """The settings that differ between a recorded run and this one, one per line, for error messages."""
    return "".join(f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items())
