"""Certifiably robust classifiers out of diffusers models: Noised Diffusion Classifiers (arXiv:2402.02316)."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .certification.attacks import Attack, attack
    from .certification.certificate import Certificate
    from .certification.lipschitz import LipschitzCertificate
    from .certification.smoothing import Prediction, SmoothedClassifier
    from .checkpoints import EDMUNet2DModel
    from .diffusion.classifier import NoisedDiffusionClassifier
    from .diffusion.denoised import DenoisedClassifier
    from .diffusion.denoised_diffusion import DenoisedDiffusionClassifier
    from .diffusion.denoiser import Denoiser
    from .diffusion.noise_levels import NoiseLevels, SiftingRule
    from .diffusion.prompts import embed_prompts
    from .pipelines.base import ClassifierOutput
    from .pipelines.latent import LatentDiffusionClassifierPipeline
    from .pipelines.pixel import NoisedDiffusionClassifierPipeline


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
    "SiftingRule",
    "SmoothedClassifier",
    "attack",
    "embed_prompts",
]

_FILES = {
    "certification.attacks": ["Attack", "attack"],
    "certification.certificate": ["Certificate"],
    "certification.lipschitz": ["LipschitzCertificate"],
    "certification.smoothing": ["Prediction", "SmoothedClassifier"],
    "checkpoints": ["EDMUNet2DModel"],
    "diffusion.classifier": ["NoisedDiffusionClassifier"],
    "diffusion.denoised": ["DenoisedClassifier"],
    "diffusion.denoised_diffusion": ["DenoisedDiffusionClassifier"],
    "diffusion.denoiser": ["Denoiser"],
    "diffusion.noise_levels": ["NoiseLevels", "SiftingRule"],
    "diffusion.prompts": ["embed_prompts"],
    "pipelines.base": ["ClassifierOutput"],
    "pipelines.latent": ["LatentDiffusionClassifierPipeline"],
    "pipelines.pixel": ["NoisedDiffusionClassifierPipeline"],
}


if not TYPE_CHECKING:  # else every name would seem to exist

    def __getattr__(name: str):
        # When it is asked for: certificates are checked where no torch is installed.
        for file, names in _FILES.items():
            if name in names:
                return getattr(import_module(f".{file}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
