"""Certifiably robust classifiers out of diffusers models: Noised Diffusion Classifiers (arXiv:2402.02316)."""

from .certificate import Certificate
from .classifier import NoisedDiffusionClassifier
from .denoised_diffusion import DenoisedDiffusionClassifier
from .denoised_smoothing import DenoisedClassifier
from .denoiser import Denoiser
from .latent_pipeline import LatentDiffusionClassifierPipeline
from .noise_levels import NoiseLevels
from .pipeline import ClassifierOutput, NoisedDiffusionClassifierPipeline
from .prompts import embed_prompts
from .smoothing import Prediction, SmoothedClassifier


__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "ClassifierOutput",
    "DenoisedClassifier",
    "DenoisedDiffusionClassifier",
    "Denoiser",
    "LatentDiffusionClassifierPipeline",
    "NoiseLevels",
    "NoisedDiffusionClassifier",
    "NoisedDiffusionClassifierPipeline",
    "Prediction",
    "SmoothedClassifier",
    "embed_prompts",
]
