"""Loading a model for a command."""

import os

import torch

from ..diffusion.thread_trial import choose_threads_for
from ..pipelines.loading import Pipeline, load_pipeline


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
    if device is None and torch.accelerator.is_available():
        device = str(torch.accelerator.current_accelerator())
    pipe = pipe.to(device or "cpu")
    choose_threads_for(pipe.denoiser)
    return pipe
