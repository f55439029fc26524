"""Certifiably robust classifiers out of diffusers models: Noised Diffusion Classifiers (arXiv:2402.02316)."""

from typing import TYPE_CHECKING

from .common.lazy import lazy_exports


__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers and editors
    from .certification import Attack as Attack
    from .certification import Certificate as Certificate
    from .certification import LipschitzCertificate as LipschitzCertificate
    from .certification import Prediction as Prediction
    from .certification import SmoothedClassifier as SmoothedClassifier
    from .certification import attack as attack
    from .checkpoints import EDMUNet2DModel as EDMUNet2DModel
    from .checkpoints import OpenAIUNet2DModel as OpenAIUNet2DModel
    from .common.copies import BaseClassifier as BaseClassifier
    from .common.copies import CallableClassifier as CallableClassifier
    from .diffusion import ClassSifter as ClassSifter
    from .diffusion import DenoisedClassifier as DenoisedClassifier
    from .diffusion import DenoisedDiffusionClassifier as DenoisedDiffusionClassifier
    from .diffusion import Denoiser as Denoiser
    from .diffusion import FeatureClassifier as FeatureClassifier
    from .diffusion import ImageClassifier as ImageClassifier
    from .diffusion import NoisedDiffusionClassifier as NoisedDiffusionClassifier
    from .diffusion import NoiseLevels as NoiseLevels
    from .diffusion import SiftingRule as SiftingRule
    from .diffusion import embed_prompts as embed_prompts
    from .pipelines import ClassifierBlock as ClassifierBlock
    from .pipelines import ClassifierOutput as ClassifierOutput
    from .pipelines import LatentDiffusionClassifierPipeline as LatentDiffusionClassifierPipeline
    from .pipelines import NoisedDiffusionClassifierPipeline as NoisedDiffusionClassifierPipeline
else:
    __getattr__, __all__ = lazy_exports(
        __name__,
        {
            "certification": [
                "Attack",
                "Certificate",
                "LipschitzCertificate",
                "Prediction",
                "SmoothedClassifier",
                "attack",
            ],
            "checkpoints": ["EDMUNet2DModel", "OpenAIUNet2DModel"],
            "common.copies": ["BaseClassifier", "CallableClassifier"],
            "diffusion": [
                "ClassSifter",
                "DenoisedClassifier",
                "DenoisedDiffusionClassifier",
                "Denoiser",
                "FeatureClassifier",
                "ImageClassifier",
                "NoiseLevels",
                "NoisedDiffusionClassifier",
                "SiftingRule",
                "embed_prompts",
            ],
            "pipelines": [
                "ClassifierBlock",
                "ClassifierOutput",
                "LatentDiffusionClassifierPipeline",
                "NoisedDiffusionClassifierPipeline",
            ],
        },
    )
