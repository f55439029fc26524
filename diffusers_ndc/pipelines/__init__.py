"""What people load: pipelines of diffusers that classify, certify, and save themselves."""

from .latent import LatentDiffusionClassifierPipeline
from .pixel import ClassifierOutput, NoisedDiffusionClassifierPipeline


__all__ = ["ClassifierOutput", "LatentDiffusionClassifierPipeline", "NoisedDiffusionClassifierPipeline"]
