"""The subject of a run: its images, its base classifier, and a description of everything its records depend on."""

import hashlib
import json
import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from .. import __version__
from ..common.checks import checked_batch_size
from ..common.images import check_pixel_range
from ..diffusion.denoised import DenoisedClassifier
from ..diffusion.image_classifier import ImageClassifier
from ..diffusion.thread_trial import choose_threads_for
from ..pipelines.base import DiffusionClassifier
from ..pipelines.inputs import to_pixel_batch
from ..pipelines.latent import LatentDiffusionClassifierPipeline
from ..pipelines.loading import Pipeline as Pipeline
from ..pipelines.loading import load_pipeline as load_pipeline
from .configurations import config_hash
from .data import LabelledImages, load_labelled_images
from .settings import Settings


NOT_DESCRIBED = ("output", "plan", "plan_images", "overwrite", "patience", "report_to", "push_to_hub")
"""Settings that no record depends on."""

LIBRARIES = ("accelerate", "datasets", "diffusers", "numpy", "pillow", "scipy", "torch", "transformers")
"""Libraries whose versions a run records."""

Classifier = DiffusionClassifier | DenoisedClassifier | ImageClassifier


@dataclass(frozen=True)
class Subject:
    """The networks and the images of a run.

    Args:
        data: The chosen images, still encoded.
        labels: Class of each image in the model's numbering, `None` for an image without a label.
        base: The base classifier, on the run's device.
        description: Settings, weights, images and library versions, as plain values.
    """

    data: LabelledImages
    labels: list[int | None]
    base: Classifier
    description: dict

    @property
    def id(self) -> str:
        """Hash of the description. A record with another one belongs to another run."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]

    def as_in(self, run: dict) -> "Subject":
        """The same subject as a recorded run describes it.

        The batch size may be another one: no record depends on it. Runs of earlier versions have no `config_hash`.

        Args:
            run: The settings of the run (`run.json`).
        """
        description = {**self.description, "batch_size": run.get("batch_size")}
        if "config_hash" not in run:
            del description["config_hash"]
        return replace(self, description=description)

    def image(self, number: int) -> torch.Tensor:
        """An image for the network, pixel units, shape `(C, H, W)`. Raises one of `data.FAULTS` if it is damaged."""
        return read_image(self.data, number, self.base)


def read_image(data: LabelledImages, number: int, base: Classifier) -> torch.Tensor:
    """An image for a classifier, pixel units, shape `(C, H, W)`. Raises one of `data.FAULTS` if it is damaged."""
    batch, _ = to_pixel_batch(data.image(number), base.image_channels, base.image_size)
    base.check_images(batch)
    check_pixel_range(batch)
    return batch[0].to(base.device)


def load_subject(settings: Settings, accelerator: Accelerator) -> Subject:
    """Load the images and the model of a run.

    Args:
        settings: Settings of the run.
        accelerator: Device and precision of the model.

    Raises:
        OSError, TypeError, ValueError: Images or model cannot be loaded, or they do not go together.
    """
    data = load_labelled_images(settings)
    pipe = load_model(settings, accelerator) if settings.has_model else None
    base, id2label = load_classifier(settings, pipe, accelerator)
    labels = data.labels(base.num_classes, id2label)
    with accelerator.autocast():
        base_settings = base.settings
    description = {name: value for name, value in settings.to_dict().items() if name not in NOT_DESCRIBED}
    description |= {
        "dataset": _unambiguous(settings.dataset),
        "mixed_precision": accelerator.mixed_precision,
        "id2label": None if id2label is None else dict(id2label),
        "base_classifier": base_settings,
        "images": len(data),
        "weight_hash": weight_hash(base),
        "config_hash": config_hash(base),
        "data_hash": data.content_hash(),
        "versions": _versions(),
    }
    return Subject(data, labels, base, description)


def load_model(settings: Settings, accelerator: Accelerator) -> Pipeline:
    """Load the pipeline of a run.

    Raises:
        ValueError: The model cannot be loaded, or does not go with the method.
    """
    try:
        pipe = load_pipeline(str(settings.model)).to(accelerator.device)
    except (OSError, ValueError) as error:
        raise ValueError(f"`--model` must be a model that can be loaded, got {settings.model}: {error}") from error
    _check_external_classifier(settings, pipe)
    with accelerator.autocast():
        choose_threads_for(pipe.denoiser)
    return pipe


def load_classifier(
    settings: Settings, pipe: Pipeline | None, accelerator: Accelerator
) -> tuple[Classifier, dict[int, str] | None]:
    """The base classifier of a run and the names of its classes.

    Args:
        settings: Settings of the run.
        pipe: Its diffusion model; `None` for a classifier by itself.
        accelerator: Device of the networks.

    Raises:
        OSError, TypeError, ValueError: It cannot be made with these settings.
    """
    batch_size = checked_batch_size(settings.batch_size)
    if pipe is None:
        assert settings.classifier is not None  # `Settings.check` has seen to it
        alone = ImageClassifier.from_pretrained(settings.classifier, batch_size).to(accelerator.device)
        return alone, alone.id2label
    if settings.classifier is None:
        sift = False if settings.sift == "none" else settings.sift
        classifier = pipe.classifier(settings.sigma, settings.method, batch_size=batch_size, sift=sift)
        return classifier, pipe.config.id2label
    external = DenoisedClassifier.from_pretrained(pipe.denoiser, settings.classifier, settings.sigma, batch_size)
    external = external.to(accelerator.device)
    return external, external.id2label


def _check_external_classifier(settings: Settings, pipe: Pipeline) -> None:
    """Raise a `ValueError` unless dds has a `--classifier`, or a latent model, which classifies by itself."""
    if settings.method != "dds":
        return
    model = f"--model {settings.model}, a {type(pipe).__name__}"
    latent = isinstance(pipe, LatentDiffusionClassifierPipeline)
    if latent and settings.classifier is not None:
        raise ValueError(
            f"`--classifier` must be left out for --method dds with {model}, which classifies by itself, got "
            f"{settings.classifier}."
        )
    if not latent and settings.classifier is None:
        raise ValueError(f"`--classifier` must be given for --method dds with {model}, got none.")


def weight_hash(module: nn.Module) -> str:
    """Hash of a module's weights and buffers: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _unambiguous(dataset: str) -> str:
    """The name of a data set, with `./` before a local folder, so that it is never taken for a Hub id."""
    return os.path.join(".", os.path.normpath(dataset)) if Path(dataset).is_dir() else dataset


def _versions() -> dict[str, str]:
    versions = {library: version(library) for library in LIBRARIES}
    return {"python": platform.python_version(), "diffusers-ndc": __version__, **versions}
