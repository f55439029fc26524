"""Certifiably robust classifiers out of diffusers models: Noised Diffusion Classifiers (arXiv:2402.02316)."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .certificate import Certificate as Certificate
    from .classifier import NoisedDiffusionClassifier as NoisedDiffusionClassifier
    from .denoised_smoothing import DenoisedClassifier as DenoisedClassifier
    from .denoiser import Denoiser as Denoiser
    from .noise_levels import NoiseLevels as NoiseLevels
    from .pipeline import (
        ClassifierOutput as ClassifierOutput,
    )
    from .pipeline import (
        NoisedDiffusionClassifierPipeline as NoisedDiffusionClassifierPipeline,
    )
    from .smoothing import Prediction as Prediction
    from .smoothing import SmoothedClassifier as SmoothedClassifier


__version__ = "0.1.0"

_FILES = {
    "Certificate": "certificate",
    "ClassifierOutput": "pipeline",
    "DenoisedClassifier": "denoised_smoothing",
    "Denoiser": "denoiser",
    "NoiseLevels": "noise_levels",
    "NoisedDiffusionClassifier": "classifier",
    "NoisedDiffusionClassifierPipeline": "pipeline",
    "Prediction": "smoothing",
    "SmoothedClassifier": "smoothing",
}

__all__ = sorted(_FILES)


def __getattr__(name: str):
    # When it is asked for: certificates are checked where no torch is installed.
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
