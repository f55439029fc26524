"""What a run is about: its images, its base classifier, and a description of all that its records depend on."""

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from .. import __version__
from ..common.images import check_pixel_range
from ..diffusion.classifier import NoisedDiffusionClassifier
from ..diffusion.denoised import DenoisedClassifier
from ..diffusion.denoised_diffusion import DenoisedDiffusionClassifier
from ..pipelines.inputs import to_pixel_batch
from ..pipelines.latent import LatentDiffusionClassifierPipeline
from ..pipelines.pixel import NoisedDiffusionClassifierPipeline
from .data import LabelledImages, load_labelled_images
from .settings import Settings


OUTSIDE = ("output", "overwrite", "patience", "report_to", "push_to_hub")
"""Settings that no record depends on."""

BaseClassifier = NoisedDiffusionClassifier | DenoisedClassifier | DenoisedDiffusionClassifier


@dataclass(frozen=True)
class Subject:
    """The model and the images of a run.

    Args:
        data: The images that were chosen, still encoded.
        labels: The class of each one as the model numbers it, `None` where it has none.
        base: The base classifier, on the run's device.
        described: Settings, weights, images and library versions, as plain values.
    """

    data: LabelledImages
    labels: list[int | None]
    base: BaseClassifier
    described: dict

    @property
    def id(self) -> str:
        """Hash of the description; records with another one belong to another run."""
        return hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()[:16]

    def image(self, number: int) -> torch.Tensor:
        """An image as the network takes it, shape `(C, H, W)`; raises one of `data.FAULTS` where it cannot."""
        denoiser = self.base.denoiser
        batch, _ = to_pixel_batch(self.data.image(number), denoiser.image_channels, denoiser.image_size)
        denoiser.check_images(batch)
        check_pixel_range(batch)
        return batch[0].to(denoiser.unet.device)


def load_subject(settings: Settings, accelerator: Accelerator) -> Subject:
    """Load the images and the model that the settings name.

    Args:
        settings: Those of a run.
        accelerator: The device for the model, and its precision.

    Raises:
        OSError, TypeError, ValueError: One of them cannot be loaded, or they do not go together.
    """
    data = load_labelled_images(settings)
    try:
        pipe = load_pipeline(settings.model).to(accelerator.device)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {settings.model} cannot be loaded: {error}") from error
    latent = isinstance(pipe, LatentDiffusionClassifierPipeline)
    if settings.method == "dds" and latent == (settings.classifier is not None):
        accepted = "without --classifier (it classifies itself)" if latent else "with a --classifier"
        raise ValueError(
            f"--method dds with --model {settings.model}, a {type(pipe).__name__}, is accepted {accepted}."
        )
    base: BaseClassifier
    if settings.classifier is not None:
        base = DenoisedClassifier.from_pretrained(
            pipe.denoiser, settings.classifier, settings.sigma, batch_size=settings.batch_size
        ).to(accelerator.device)
        id2label = base.id2label
    else:
        base = pipe.classifier(settings.sigma, settings.method, batch_size=settings.batch_size)
        id2label = pipe.config.id2label
    labels = data.labels(base.num_classes, id2label)
    with accelerator.autocast():
        base_settings = base.settings
    described = {
        **{name: value for name, value in settings.to_dict().items() if name not in OUTSIDE},
        "dataset": _told_from_hub_ids(settings.dataset),
        "mixed_precision": accelerator.mixed_precision,
        "id2label": id2label and dict(id2label),
        "base_classifier": base_settings,
        "images": len(data),
        "weight_hash": weight_hash(base),
        "data_hash": data.content_hash(),
        "versions": _versions(),
    }
    return Subject(data, labels, base, described)


def load_pipeline(model: str) -> NoisedDiffusionClassifierPipeline | LatentDiffusionClassifierPipeline:
    """The pipeline of a folder or Hub id, by what is in it: of a latent model where there is a `vae`.

    Raises:
        OSError, ValueError: There is none, or it cannot be loaded.
    """
    index = LatentDiffusionClassifierPipeline.load_config(model)
    kind = LatentDiffusionClassifierPipeline if "vae" in index else NoisedDiffusionClassifierPipeline
    return kind.from_pretrained(model)


def weight_hash(module: nn.Module) -> str:
    """Hash of a module's weights and buffers: their names, types and values."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _told_from_hub_ids(dataset: str) -> str:
    """A data set, with `./` before the name of a local folder."""
    return os.path.join(".", os.path.normpath(dataset)) if Path(dataset).is_dir() else dataset


def _versions() -> dict[str, str]:
    libraries = ("accelerate", "datasets", "diffusers", "numpy", "pillow", "scipy", "torch", "transformers")
    versions = {library: version(library) for library in libraries}
    return {"python": platform.python_version(), "diffusers-ndc": __version__, **versions}
