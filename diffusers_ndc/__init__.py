"""Certifiably robust classifiers out of diffusers models: Noised Diffusion Classifiers (arXiv:2402.02316)."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .attacks import Attack, attack
    from .certificate import Certificate
    from .classifier import NoisedDiffusionClassifier
    from .denoised_diffusion import DenoisedDiffusionClassifier
    from .denoised_smoothing import DenoisedClassifier
    from .denoiser import Denoiser
    from .edm import EDMUNet2DModel
    from .latent_pipeline import LatentDiffusionClassifierPipeline
    from .lipschitz import LipschitzCertificate
    from .noise_levels import NoiseLevels
    from .pipeline import ClassifierOutput, NoisedDiffusionClassifierPipeline
    from .prompts import embed_prompts
    from .smoothing import Prediction, SmoothedClassifier


__version__ = "0.1.0"

__all__ = [
    "Attack",
    "Certificate",
    "ClassifierOutput",
    "DenoisedClassifier",
    "DenoisedDiffusionClassifier",
    "Denoiser",
    "EDMUNet2DModel",
    "LatentDiffusionClassifierPipeline",
    "LipschitzCertificate",
    "NoiseLevels",
    "NoisedDiffusionClassifier",
    "NoisedDiffusionClassifierPipeline",
    "Prediction",
    "SmoothedClassifier",
    "attack",
    "embed_prompts",
]

_FILES = {
    "attacks": ["Attack", "attack"],
    "certificate": ["Certificate"],
    "classifier": ["NoisedDiffusionClassifier"],
    "denoised_diffusion": ["DenoisedDiffusionClassifier"],
    "denoised_smoothing": ["DenoisedClassifier"],
    "denoiser": ["Denoiser"],
    "edm": ["EDMUNet2DModel"],
    "latent_pipeline": ["LatentDiffusionClassifierPipeline"],
    "lipschitz": ["LipschitzCertificate"],
    "noise_levels": ["NoiseLevels"],
    "pipeline": ["ClassifierOutput", "NoisedDiffusionClassifierPipeline"],
    "prompts": ["embed_prompts"],
    "smoothing": ["Prediction", "SmoothedClassifier"],
}


if not TYPE_CHECKING:  # else every name would seem to exist

    def __getattr__(name: str):
        # When it is asked for: certificates are checked where no torch is installed.
        for file, names in _FILES.items():
            if name in names:
                return getattr(import_module(f".{file}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
