"""Work shared by the processes of a run: each claims the next image when it has room, and counts what it has done."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import torch.distributed as dist
from accelerate.utils import broadcast_object_list


class Claims:
    """Counters in the store of torch.distributed, on one machine or several; in memory for a single process.

    There is no barrier and no message between processes: whoever is done goes, and nobody waits for a slow one but
    the main process, for the report.

    Every process of the run makes one, at the same time.

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
        """The images that this process is to do, each claimed when it is asked for."""
        while (number := self._store.add("claimed", 1) - 1) < self.total:
            yield number

    def beat(self) -> None:
        """Give a sign of life. It also fails where the other processes are gone, which ends an orphan."""
        self._store.add("beats", 1)

    def finish(self, counts: Mapping[str, int]) -> None:
        """One more image is finished.

        Args:
            counts: What it adds to the counters of these names.
        """
        for name, count in counts.items():
            self._store.add(f"count/{name}", count)
        self._store.add("finished", 1)
        self.beat()

    @property
    def finished(self) -> int:
        """Images that all processes together have finished."""
        return self._store.add("finished", 0)

    def count(self, name: str) -> int:
        """A counter of `finish`, over all processes."""
        return self._store.add(f"count/{name}", 0)

    def wait(self, look: Callable[[], object], pause: float = 0.5) -> None:
        """Wait until all images are finished, by whichever process.

        Args:
            look: Called now and then.
            pause: Seconds between two looks.

        Raises:
            TimeoutError: Nobody has given a sign of life for `patience` seconds.
        """
        beats, since = None, time.monotonic()
        while (finished := self.finished) < self.total:
            look()
            if (now := self._store.add("beats", 0)) != beats:
                beats, since = now, time.monotonic()
            elif time.monotonic() - since > self.patience:
                raise TimeoutError(
                    f"{self.total - finished} images are not finished, and no process has given a sign of life for "
                    f"{self.patience:g} seconds. What is finished is kept: run the same command again."
                )
            time.sleep(pause)
        look()
