"""Any diffusion network as a denoiser, and denoisers as classifiers. It knows nothing of votes and certificates."""

from .class_sifter import ClassSifter, FeatureSift
from .classifier import NoisedDiffusionClassifier
from .denoised import DenoisedClassifier
from .denoised_diffusion import DenoisedDiffusionClassifier
from .denoiser import Denoiser
from .feature_classifier import FeatureClassifier
from .image_classifier import ImageClassifier
from .noise_levels import NoiseLevels
from .prompts import embed_prompts
from .sifting_rule import SiftingRule


__all__ = [
    "ClassSifter",
    "DenoisedClassifier",
    "DenoisedDiffusionClassifier",
    "Denoiser",
    "FeatureClassifier",
    "FeatureSift",
    "ImageClassifier",
    "NoiseLevels",
    "NoisedDiffusionClassifier",
    "SiftingRule",
    "embed_prompts",
]
