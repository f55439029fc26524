"""Checkpoints of a training, as `Accelerator.save_state` numbers them: which are whole, and which come next."""

import re
import shutil
import zipfile
from pathlib import Path


LAST_FILE = "custom_checkpoint_0.pkl"
"""What is written last, if one object is registered for checkpointing."""


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, in ascending order.

    Args:
        folder: The folder `checkpoints` of a training; it may be missing.
    """
    return [path for path in _checkpoints(folder) if zipfile.is_zipfile(path / LAST_FILE)]


def next_number(folder: Path) -> int:
    """The number of the checkpoint after the newest one."""
    return max((_number(path) for path in _checkpoints(folder)), default=-1) + 1


def remove_torn(folder: Path) -> None:
    """Remove checkpoints that a kill left without their end. Their numbers are free then."""
    for path in set(_checkpoints(folder)) - set(whole_checkpoints(folder)):
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint_*") if re.fullmatch(r"checkpoint_\d+", path.name)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.rpartition("_")[2])
