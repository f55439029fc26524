"""Loading a model for a command."""

import os

from ..diffusion.thread_trial import choose_threads_for
from ..pipelines.loading import Pipeline, default_device, load_pipeline


def load_model(model: str, device: str | None = None) -> Pipeline:
    """Load the pipeline of a folder or Hub id, without progress bars after `--quiet`.

    Args:
        model: The folder or Hub id.
        device: Its device. Default: the accelerator, if there is one, else the CPU.

    Raises:
        ValueError: It cannot be loaded.
    """
    try:
        pipe = load_pipeline(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"`--model` must be a model that can be loaded, got {model}: {error}") from error
    if os.environ.get("TQDM_DISABLE") == "1":  # a pipeline's own bars do not look at it
        pipe.set_progress_bar_config(disable=True)
    pipe = pipe.to(default_device() if device is None else device)
    choose_threads_for(pipe.denoiser)
    return pipe
