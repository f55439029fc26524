"""Threads of the CPU, for programs: those that wait must not take the cores from others, nor be waited for in vain.

OpenMP's threads wait for the next piece of work by spinning. Where other programs use the cores too, the threads of
one batch then wait for each other, and can be slower by far than a single thread. Threads that sleep at once lose time
on cores that are free, as a network has many short pieces of work. So they spin for as long as such a piece takes.
Free of torch until a trial.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable


WAITING = ("OMP_WAIT_POLICY", "GOMP_", "KMP_")
"""Beginnings of environment variables by which people choose how threads wait."""

SPINNING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""For how long threads spin before they sleep: turns of GNU's OpenMP (a fraction of a millisecond), milliseconds of
Intel's and LLVM's. Without these lines, about 300,000 turns, and 200 ms."""

COUNTING = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_", "GOMP_", "KMP_")
"""Beginnings of those by which they choose how many there are. `accelerate launch` sets one for several processes."""

ROUNDS = 5
"""Most runs with each number of threads. The median counts: other programs may slow a run down."""

GAIN = 1.1
"""One thread must be so many times faster to be chosen: a short trial is not exact."""

CLEAR = 2.0
"""Factor between two numbers of threads after which there are no more runs."""

LONG = 1.0
"""Seconds of one run after which there is no trial: so much work is for all threads."""

_asked = False


def share_cores() -> None:
    """Let threads sleep if they wait for long, and `choose_threads` choose their number; for a program's first lines.

    The environment of the user wins. How threads wait is settled when torch is loaded: after that it stays.
    """
    global _asked
    _asked = True
    if "torch" not in sys.modules and not _is_given(WAITING):
        os.environ.update(SPINNING)


def choose_threads(run: Callable[[], object]) -> None:
    """Use all threads for the rest of this process, or one if it is clearly faster in a short trial.

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
            one, all_of_them = statistics.median(seconds[1]), statistics.median(seconds[most])
            if max(one, all_of_them) > CLEAR * min(one, all_of_them):
                break
        chosen = 1 if all_of_them > GAIN * one else most
    finally:
        torch.set_num_threads(chosen)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _is_given(beginnings: tuple[str, ...]) -> bool:
    """Whether the environment says something of this that `share_cores` did not say, here or in a parent process."""
    return any(name.startswith(beginnings) and value != SPINNING.get(name) for name, value in os.environ.items())
