"""Work on a ZeroGPU Space: there a GPU is lent for a function call, for a number of seconds that is named before."""

from collections.abc import Callable
from typing import Any


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
