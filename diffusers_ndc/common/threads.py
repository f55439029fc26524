"""Threads of the CPU, for programs: those that wait must not take the cores from others, nor be waited for in vain.

OpenMP's threads wait for the next piece of work by spinning. Where other programs use the cores too, the threads of
one batch then wait for each other, and can be slower by far than a single thread. Free of torch until a trial.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable


WAITING = ("OMP_WAIT_POLICY", "GOMP_", "KMP_")
"""Beginnings of environment variables by which people choose how threads wait."""

COUNTING = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_", "GOMP_", "KMP_")
"""Beginnings of those by which they choose how many there are. `accelerate launch` sets one for several processes."""

ROUNDS = 3
"""Most runs with each number of threads. The median counts: other programs may slow a run down."""

CLEAR = 2.0
"""Factor between two numbers of threads after which there are no more runs."""

LONG = 1.0
"""Seconds of one run after which there is no trial: so much work is for all threads."""

_asked = False


def share_cores() -> None:
    """Let threads sleep while they wait, and `choose_threads` choose their number; for a program's first lines.

    The environment of the user wins. How threads wait is settled when torch is loaded: after that it stays.
    """
    global _asked
    _asked = True
    if "torch" not in sys.modules and not _is_given(WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def choose_threads(run: Callable[[], object]) -> None:
    """Use one thread or all of them for the rest of this process, whichever is faster in a short trial.

    There is no trial unless the program has called `share_cores`, nor if the environment says how many threads to use.
    No result depends on the number of threads, up to round-off.

    Args:
        run: A short piece of the work to come.

    Raises:
        Exception: What `run` raises. All threads are used then, as before.
    """
    import torch

    most = torch.get_num_threads()
    if not _asked or most == 1 or _is_given(COUNTING):
        return
    if _seconds(run) > LONG or _seconds(run) > LONG:  # the first run warms up
        return
    seconds: dict[int, list[float]] = {most: [], 1: []}
    chosen = most
    try:
        for _ in range(ROUNDS):
            for count, runs in seconds.items():
                torch.set_num_threads(count)
                runs.append(_seconds(run))
            middle = {count: statistics.median(runs) for count, runs in seconds.items()}
            if max(middle.values()) > CLEAR * min(middle.values()):
                break
        chosen = min(middle, key=middle.__getitem__)
    finally:
        torch.set_num_threads(chosen)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _is_given(beginnings: tuple[str, ...]) -> bool:
    return any(name.startswith(beginnings) for name in os.environ)
