"""The pipelines that people load: they classify, certify, save and push."""

from .base import ClassifierOutput
from .latent import LatentDiffusionClassifierPipeline
from .pixel import NoisedDiffusionClassifierPipeline


__all__ = ["ClassifierOutput", "LatentDiffusionClassifierPipeline", "NoisedDiffusionClassifierPipeline"]
