"""Work on a ZeroGPU Space: there a GPU is lent for a function call, for a number of seconds that is named before."""

import os
from collections.abc import Callable
from typing import Any


def on_zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space: models are placed before the start, and nothing computes outside of calls."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def on_gpu(seconds: Callable[..., float]) -> Callable[[Callable], Callable]:
    """Decorate a function, or a generator function, that computes with a model.

    Without the package `spaces` the function stays as it is, and with it everywhere but on ZeroGPU. On ZeroGPU it runs
    in another process: what it is given and what it returns must be picklable, and models are found by their key.

    Args:
        seconds: From the arguments of a call, the time for which a GPU is needed.
    """
    try:
        import spaces
    except ImportError:
        return lambda function: function

    def duration(*args: Any, **kwargs: Any) -> int:
        return max(1, round(seconds(*args, **kwargs)))

    return spaces.GPU(duration=duration)
