"""What stands in a run's folder: `run.json` with its settings, and files of JSON lines with a record of each image."""

import json
import os
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from ..common import json as strict_json


RUN_FILE = "run.json"


class RecordWriter:
    """Writes the records of one process to a new file, `<timestamp>-<process index>-<pid>.jsonl` (UTC), line by line.

    A record is on the disk when `write` returns. No file is ever appended to: a line that a killed process left half
    written would swallow the next one.

    Args:
        folder: The run's folder; it is made where it is missing.
        process_index: Rank of this process among those of the run.

    Raises:
        OSError: On entering, the folder or the file cannot be made; on writing, the disk is full.
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
        """Add one record: plain values with the image's `index` in the data set.

        That of a certified image has also `image_hash`, `label` (the true one), `seconds`, and `certificate`
        (`Certificate.to_dict()`); that of a clean image that was classified, in a run whose `alpha` is null, has
        `predicted` and `evaluations` instead of the last; that of an image whose data are at fault has the reason as
        `failed`.
        """
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_records(folder: str | Path) -> dict[int, dict]:
    """The records of all processes and starts of a run, by image index, in ascending order.

    The first record of an image counts, but one of a failure gives way to a later one of success. A last line that is
    no record was cut short when its process died, and is passed over; other such lines are too, with a warning.

    Args:
        folder: The run's folder. One that does not exist has no records.
    """
    records: dict[int, dict] = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for record in _records_of(path):
            known = records.setdefault(record["index"], record)
            if "failed" in known and "failed" not in record:
                records[record["index"]] = record
    return dict(sorted(records.items()))


def _records_of(path: Path) -> Iterator[dict]:
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
        folder: The run's folder; it is made where it is missing.
        settings: Plain values by name, nested dictionaries among them.

    Raises:
        OSError: The file cannot be written; one that was there is still whole.
        TypeError: A value is none that JSON has; likewise.
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
    """The settings that `write_run` wrote; labels that were keys are strings, as JSON has them.

    Raises:
        FileNotFoundError: The folder, or `run.json` in it, does not exist.
        ValueError: `run.json` is no JSON object.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; accepted is the folder of a run.")
    path = folder / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {RUN_FILE}; accepted is the folder of a run.")
    try:
        settings = strict_json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}; accepted is an object of settings.")
    return settings
