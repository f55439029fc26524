"""Certifiably robust classifiers out of diffusers models: Noised Diffusion Classifiers (arXiv:2402.02316)."""

from .certificate import Certificate
from .classifier import NoisedDiffusionClassifier
from .denoised_smoothing import DenoisedClassifier
from .denoiser import Denoiser
from .edm import EDMUNet2DModel
from .noise_levels import NoiseLevels
from .pipeline import ClassifierOutput, NoisedDiffusionClassifierPipeline
from .smoothing import Prediction, SmoothedClassifier


__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "ClassifierOutput",
    "DenoisedClassifier",
    "Denoiser",
    "EDMUNet2DModel",
    "NoiseLevels",
    "NoisedDiffusionClassifier",
    "NoisedDiffusionClassifierPipeline",
    "Prediction",
    "SmoothedClassifier",
]
