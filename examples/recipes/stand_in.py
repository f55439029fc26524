"""Tiny stand-ins for what a recipe needs: networks on a server of this machine, images, and an image classifier.

The networks are of the published kinds, and lie in files of the published formats. The server knows ranges, so that
downloads go on where they broke off. The images have the columns of the published data set.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import constants
from PIL import Image as PILImage
from recipe import Recipe
from stand_in_networks import make_network

from diffusers_ndc import NoiseLevels
from diffusers_ndc.evaluation import load_task


CLASSES = ("first", "second")
"""Classes of a data set whose names a recipe does not state."""

PER_CLASS = 4
"""Images of each class in each split."""

TASK = {"skip": 1, "images": 3, "n0": 2, "n": 16, "alpha": 0.1}
EVALUATION = {"batch_size": 8, "plan_images": 2}
CALIBRATION = {"num_levels": 1, "num_copies": 1, "candidates": NoiseLevels.log_grid(2.0, 6.0, 3)}


@contextmanager
def stand_in(recipe: Recipe, folder: Path) -> Iterator[Recipe]:
    """A recipe whose networks, images and classifier are stand-ins, and whose runs are small.

    Args:
        recipe: The recipe.
        folder: Folder for the stand-ins.
    """
    if not folder.exists():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        images, labels = make_images(recipe, new / "images")
        (new / "networks").mkdir()
        for seed, published in enumerate((recipe.conditional, recipe.unconditional)):
            make_network(new / "networks" / file_name(published), images, labels, recipe.unconditional_arguments, seed)
        if recipe.classifier:
            make_classifier(recipe, new / "classifier")
        task = load_task(recipe.task)
        place = {"dataset": str(folder.resolve() / "images"), "dataset_config_name": None}
        small = {**asdict(task), **place, **TASK, "name": f"{task.name}-dry-run"}
        (new / "task.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
        new.rename(folder)
    os.environ["NO_PROXY"] = "127.0.0.1"
    constants.HF_HUB_OFFLINE = False
    constants.HF_ASSETS_CACHE = str(folder / "downloads")
    server = serve(folder / "networks", folder / "port")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield replace(
            recipe,
            conditional=address(recipe.conditional, folder, server),
            unconditional=address(recipe.unconditional, folder, server),
            task=str(folder / "task.yaml"),
            classifier=str(folder / "classifier") if recipe.classifier else None,
            per_class=min(recipe.per_class, PER_CLASS),
            calibration=recipe.calibration | CALIBRATION,
            evaluation=recipe.evaluation | EVALUATION,
        )
    finally:
        server.shutdown()
        server.server_close()


def file_name(published: str) -> str:
    return published.rpartition("/")[2]


def address(published: str, folder: Path, server: ThreadingHTTPServer) -> str:
    """Address of the stand-in for a published file, with its SHA-256."""
    name = file_name(published)
    digest = hashlib.sha256((folder / "networks" / name).read_bytes()).hexdigest()
    return f"http://127.0.0.1:{server.server_port}/{name}#sha256={digest}"


def serve(files: Path, port: Path) -> ThreadingHTTPServer:
    """A server of files, on the port of the last time if it is free: a download belongs to an address."""
    handler = partial(Handler, files)
    try:
        return ThreadingHTTPServer(("127.0.0.1", int(port.read_text())), handler)
    except (OSError, ValueError):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        port.write_text(str(server.server_port))
        return server


class Handler(BaseHTTPRequestHandler):
    """Serves files, or the rest of them."""

    def __init__(self, files: Path, *args):
        self.files = files
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def handle_any(self):
        file = self.files / self.path.strip("/")
        if not file.is_file():
            return self.send_error(404)
        content = file.read_bytes()
        version = f'"{hashlib.sha256(content).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.headers.get("If-Range") == version else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", version)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:])

    do_GET = do_HEAD = handle_any


def classes(recipe: Recipe) -> tuple[str, ...]:
    return recipe.class_names or CLASSES


def make_images(recipe: Recipe, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Write training and test images: of each class in its own colour, with noise.

    Returns:
        The training images, in [-1, 1], and their classes.
    """
    folder.mkdir(parents=True)
    generator, names = np.random.default_rng(0), classes(recipe)
    column, size = load_task(recipe.task).image_column or "image", recipe.image_size
    colours = generator.uniform(50, 200, (len(names), 3))
    features = Features({column: Image(), "label": ClassLabel(names=list(names))})
    labels = np.tile(np.arange(len(names)), PER_CLASS)
    pixels = {}
    for split in (load_task(recipe.task).split, recipe.train_split):
        noise = generator.normal(0, 20, (len(labels), size, size, 3))
        pixels[split] = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
        pictures = [PILImage.fromarray(image) for image in pixels[split]]
        rows = Dataset.from_dict({column: pictures, "label": labels.tolist()}, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    images = torch.from_numpy(pixels[recipe.train_split]).permute(0, 3, 1, 2) / 127.5 - 1
    return images, torch.from_numpy(labels)


def make_classifier(recipe: Recipe, folder: Path) -> None:
    """Save an image classifier with the class names."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor  # takes seconds

    names = dict(enumerate(classes(recipe)))
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=recipe.image_size,
        patch_size=recipe.image_size // 4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": recipe.image_size, "width": recipe.image_size}
    ViTImageProcessor(size=size, image_mean=0.5, image_std=0.5).save_pretrained(folder)
