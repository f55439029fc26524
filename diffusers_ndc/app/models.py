"""The models of an app: the one that it was started with, and a few that links of visitors name.

A visitor names ids of the Hub alone. From these only weights in safetensors and JSON files are fetched: no program and
no pickle reaches this machine, and no folder of it is looked at.
"""

import json
import logging
import re
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import filter_repo_objects

from ..diffusion.thread_trial import choose_threads_for
from ..pipelines.loading import Pipeline, default_device, load_pipeline
from .gpu import on_zero_gpu
from .sigmas import usable_sigmas


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
FETCHED = ("*.json", "*.safetensors", "*.txt")
LIBRARIES = {"diffusers", "transformers", "diffusers_ndc_component", None}
"""What the parts of a visitor's model may belong to. Loading imports their libraries by name."""

LARGEST = 4_000_000_000
"""Bytes of a visitor's model, at most."""

LARGEST_SIDE = 1024
"""Pixels of a side of the pictures of a visitor's model, at most."""

KEPT = 2
"""Models of visitors that stay loaded."""


class RefusedModel(ValueError):
    """A model that a visitor's link names and that is not loaded; the message is for the visitor."""


@dataclass(frozen=True)
class Model:
    """A model that is ready to certify.

    Args:
        place: The folder or Hub id that it was loaded from.
        pipe: Its pipeline.
        names: Names of its classes by index.
        channels: Channels of its pictures: 1 (grey) or 3 (RGB).
        size: Height and width of its pictures, `None` for any.
        sigmas: Noise levels that it is used with, pixel units, ascending.
    """

    place: str
    pipe: Pipeline
    names: dict[int, str]
    channels: int
    size: tuple[int, int] | None
    sigmas: list[float]

    @property
    def sketches(self) -> bool:
        """Whether visitors may draw: pictures for grey models are treated as digits."""
        return self.channels == 1

    @property
    def device(self) -> torch.device:
        return self.pipe.unet.device


def load_model(place: str, device: str | None = None) -> Model:
    """Load the model of a folder or Hub id.

    Raises:
        OSError, ValueError: There is no such model, or it cannot be loaded.
    """
    return _prepared(place, load_pipeline(place), device)


def _prepared(place: str, pipe: Pipeline, device: str | None, largest_side: int | None = None) -> Model:
    pipe.set_progress_bar_config(disable=True)
    if device is None:
        device = "cuda" if on_zero_gpu() else default_device()  # on ZeroGPU it is there as soon as a GPU is lent
    pipe.to(device)
    sigmas = usable_sigmas(pipe)
    if not sigmas:
        raise ValueError(f"The model {place} was trained for no noise that this app uses.")
    classifier = pipe.classifier(sigmas[0])
    denoiser = classifier.denoiser
    side = max(denoiser.image_size or (0,))  # a number in a file, which could be any
    if largest_side is not None and side > largest_side:
        raise RefusedModel(f"The pictures of the model {place} are too large for this page.")
    choose_threads_for(denoiser)
    names = pipe.config.id2label or {label: str(label) for label in range(classifier.num_classes)}
    return Model(place, pipe, dict(names), denoiser.image_channels, denoiser.image_size, sigmas)


class Models:
    """The models by their keys: the empty key is the app's own model, others are Hub ids."""

    def __init__(self) -> None:
        self.own: Model | None = None
        self.linked: dict[str, Model] = {}  # the one that was asked for last is the last
        self.device: str | None = None
        self.loading, self.keeping = threading.Lock(), threading.Lock()

    def load_own(self, place: str, device: str | None) -> str:
        """Load the app's own model. Returns an empty string, or a message for the page if that is impossible."""
        self.own, self.device = None, device
        try:
            self.own = load_model(place, device)
        except Exception:  # a wrong id, a damaged file, no connection: the page starts and says so
            logging.exception("The model %s cannot be loaded", place)
            return f"The model `{place}` cannot be loaded. Files can still be verified and compared."
        return ""

    def find(self, key: str) -> Model:
        """The model of a key that was loaded.

        Raises:
            RefusedModel: It is not loaded.
        """
        found = self.linked.get(key) if key else self.own
        if found is None:
            if key:
                raise RefusedModel(f"The model {key} is not loaded any more: open its link again.")
            raise RefusedModel("The model of this page could not be loaded, so nothing can be certified.")
        return found

    def load_linked(self, hub_id: str) -> str:
        """Load the model that a visitor's link names, once, and keep it. Returns its key.

        Raises:
            RefusedModel: It is no Hub id, or its model is too large, or it cannot be loaded here, or another one is
                being loaded.
        """
        if self.own is not None and hub_id == self.own.place:
            return ""
        if not HUB_ID.fullmatch(hub_id) or ".." in hub_id:
            raise RefusedModel("A link may only name a model on the Hugging Face Hub, as NAMESPACE/NAME.")
        with self.keeping:
            if hub_id in self.linked:
                self.linked[hub_id] = self.linked.pop(hub_id)
                return hub_id
        # one at a time, and nobody waits: waiting visitors would use up the threads that open the page for others
        if not self.loading.acquire(blocking=False):
            raise RefusedModel("Another model is being loaded. Open the link again in a minute.")
        try:
            model = self._load(hub_id)
        finally:
            self.loading.release()
        with self.keeping:
            self.linked[hub_id] = model
            while len(self.linked) > KEPT:
                del self.linked[next(iter(self.linked))]
        return hub_id

    def _load(self, hub_id: str) -> Model:
        try:
            # the files are deleted once they are read, so that visitors cannot fill the disk
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                fetch(hub_id, folder)
                check_parts(Path(folder))
                return _prepared(hub_id, load_pipeline(folder), self.device, LARGEST_SIDE)
        except RefusedModel:
            raise
        except Exception:
            logging.exception("The model %s of a link cannot be loaded", hub_id)
            raise RefusedModel(f"The model {hub_id} cannot be loaded.") from None


def fetch(hub_id: str, folder: str) -> None:
    """Download the harmless files of a model on the Hub to a folder.

    Raises:
        RefusedModel: They are too large.
        OSError, ValueError: There is no such model, or the Hub cannot be reached.
    """
    # without a token: a visitor must not see what only the owner of this app may see
    info = HfApi(token=False).model_info(hub_id, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    size = sum(sizes[name] for name in filter_repo_objects(sizes, allow_patterns=list(FETCHED)))
    if size > LARGEST:
        raise RefusedModel(f"The model {hub_id} is too large for this page: {size / 1e9:.1f} GB.")
    # the revision whose size was checked
    snapshot_download(hub_id, revision=info.sha, allow_patterns=list(FETCHED), local_dir=folder, token=False)


def check_parts(folder: Path) -> None:
    """Raise unless all parts of a saved pipeline belong to the libraries that are expected.

    Raises:
        RefusedModel: One does not.
        OSError, ValueError: There is no pipeline in the folder.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, value in index.items():
        if isinstance(value, list) and name != "_class_name" and (not value or value[0] not in LIBRARIES):
            raise RefusedModel("This model has parts that this page does not load.")


MODELS = Models()
"""The models of this process. On ZeroGPU a function finds its model here, since no model can be handed over."""
