"""Load the pipeline of a folder or Hub id, whichever of the two kinds it is."""

import torch

from .latent import LatentDiffusionClassifierPipeline
from .pixel import NoisedDiffusionClassifierPipeline


Pipeline = NoisedDiffusionClassifierPipeline | LatentDiffusionClassifierPipeline


def default_device() -> str:
    """The accelerator, if there is one, else the CPU."""
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def load_pipeline(model: str) -> Pipeline:
    """Load the pipeline of a folder or Hub id: a latent one if the model has a `vae`.

    Raises:
        OSError, ValueError: There is no such model, or it cannot be loaded.
    """
    index = LatentDiffusionClassifierPipeline.load_config(model)
    kind = LatentDiffusionClassifierPipeline if "vae" in index else NoisedDiffusionClassifierPipeline
    return kind.from_pretrained(model)
