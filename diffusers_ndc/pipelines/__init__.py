"""The pipelines that people load: they classify, certify, save and push."""

from .base import ClassifierOutput
from .block import ClassifierBlock
from .latent import LatentDiffusionClassifierPipeline
from .pixel import NoisedDiffusionClassifierPipeline


__all__ = [
    "ClassifierBlock",
    "ClassifierOutput",
    "LatentDiffusionClassifierPipeline",
    "NoisedDiffusionClassifierPipeline",
]
