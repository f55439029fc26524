"""Work shared by the processes of a run: each claims the next image when it has room, and counts what it has done."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import torch.distributed as dist
from accelerate.utils import broadcast_object_list


class Claims:
    """Counters that all processes of a run share.

    They are in the store of torch.distributed, on one machine or several, or in memory for a single process. There is
    no barrier and no message between processes: a process that is done ends, and only the main process waits for slow
    ones, for the report.

    Every process of the run creates its `Claims` at the same time.

    Args:
        total: Number of images to share, numbered from 0.
        patience: Seconds without a sign of life from any process after which `wait` gives up.
    """

    _store: dist.Store

    def __init__(self, total: int, patience: float):
        self.total = total
        self.patience = patience
        if dist.is_available() and dist.is_initialized():
            (name,) = broadcast_object_list([uuid.uuid4().hex])  # a run in the same processes has its own counters
            # older versions of torch have no public way to the store
            self._store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())
            self._store.set_timeout(timedelta(seconds=patience))
        else:
            self._store = dist.HashStore()

    def __iter__(self) -> Iterator[int]:
        """The images for this process, each claimed when it is asked for."""
        while True:
            number = self._store.add("claimed", 1) - 1
            if number >= self.total:
                return
            yield number

    def beat(self) -> None:
        """Give a sign of life. This fails if the other processes are gone, which ends an orphan."""
        self._store.add("beats", 1)

    def finish(self, counts: Mapping[str, int]) -> None:
        """Count one more finished image.

        Args:
            counts: What the image adds to the counters, by name.
        """
        for name, count in counts.items():
            self._store.add(f"count/{name}", count)
        self._store.add("finished", 1)
        self.beat()

    @property
    def finished(self) -> int:
        """Number of images that all processes together have finished."""
        return self._store.add("finished", 0)

    def count(self, name: str) -> int:
        """The value of a counter of `finish`, over all processes."""
        return self._store.add(f"count/{name}", 0)

    def wait(self, look: Callable[[], object], pause: float = 0.5) -> None:
        """Wait until all images are finished, by any process.

        Args:
            look: Called now and then, to show progress.
            pause: Seconds between two looks.

        Raises:
            TimeoutError: No process has given a sign of life for `patience` seconds.
        """
        beats = self._store.add("beats", 0)
        last_beat = time.monotonic()
        unfinished = self.total - self.finished
        while unfinished > 0:
            look()
            latest = self._store.add("beats", 0)
            if latest != beats:
                beats = latest
                last_beat = time.monotonic()
            elif time.monotonic() - last_beat > self.patience:
                raise TimeoutError(
                    f"{unfinished} images are not finished, and no process has given a sign of life for "
                    f"{self.patience:g} seconds. What is finished is kept: run the same command again."
                )
            time.sleep(pause)
            unfinished = self.total - self.finished
        look()
