"""What the parts of `benchmark.py` share: the model, its images, the certificates made so far, and the report."""

import json
import time

import numpy as np
import torch
from labelled_images import load_labelled_images
from torch import nn
from tqdm.auto import tqdm

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.common.markdown import table
from diffusers_ndc.evaluation.subject import weight_hash
from diffusers_ndc.pipelines.inputs import to_pixel_batch


IMAGES_PER_CALL = 8


class Benchmark:
    """The model, the images and the report that the parts share.

    Args:
        args: Options of `benchmark.py`.
    """

    def __init__(self, args):
        self.args = args
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.pipe = NoisedDiffusionClassifierPipeline.from_pretrained(args.model).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        sifter = self.pipe.sifter
        self.weights = weight_hash(self.pipe.unet if sifter is None else nn.ModuleList([self.pipe.unet, sifter]))
        dataset, image_column, label_column = load_labelled_images(str(args.dataset), "test")
        self.images, self.labels = dataset[image_column], dataset[label_column]
        self.radii = ((args.sigma,), (args.sigma, 2 * args.sigma))
        self.tau = 2 * args.sigma  # model units
        self.reference_levels = NoiseLevels.reference_grid(self.tau, 126)
        # network evaluations that the reference procedure spends on a noisy copy
        self.reference_per_copy = self.pipe.denoiser.num_classes * len(self.reference_levels) + 1
        args.output.mkdir(parents=True, exist_ok=True)
        self.report = open(args.output / "benchmark.md", "w")
        self.kept = open(args.output / "certificates.jsonl", "a+")
        self.done: dict[str, list[tuple[Certificate, float]]] = {}
        self.kept.seek(0)
        for line in map(json.loads, self.kept):
            certificate = Certificate.from_dict(line["certificate"])
            self.done.setdefault(line["settings"], []).append((certificate, line["seconds"]))

    def say(self, text: str = "") -> None:
        """Print a text and write it to the report."""
        print(text, flush=True)
        print(text, file=self.report, flush=True)

    def table(self, rows: list[dict]) -> None:
        """Say a Markdown table; the keys of the first row are its heads."""
        cells = [[f"{value:,.4g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
        self.say(table(list(rows[0]), cells) + "\n")

    def batch(self, count: int) -> torch.Tensor:
        """The first images, pixel units, on the model's device."""
        pipe = self.pipe
        images, _ = to_pixel_batch(list(self.images[:count]), pipe.unet.config.in_channels, pipe.denoiser.image_size)
        return images.to(pipe.device)

    def certify(self, count: int, **settings) -> tuple[list[Certificate], np.ndarray]:
        """Certificates of the first images, a few at a time, and the seconds of each; none is computed twice."""
        args = self.args
        settings = {
            "sigma": args.sigma,
            "alpha": args.alpha,
            "seed": args.seed,
            "n0": args.n0,
            "n": args.n,
            "batch_size": args.batch_size,
            **settings,
        }
        key = repr((self.weights, args.dataset, sorted(settings.items(), key=lambda item: item[0])))
        done = self.done.setdefault(key, [])
        for first in tqdm(range(len(done), count, IMAGES_PER_CALL), leave=False):
            images, start = list(self.images[first : min(first + IMAGES_PER_CALL, count)]), time.perf_counter()
            certificates = self.pipe.certify(images, **settings)
            seconds = (time.perf_counter() - start) / len(images)
            for certificate in certificates:
                done.append((certificate, seconds))
                line = {"settings": key, "seconds": seconds, "certificate": certificate.to_dict()}
                print(json.dumps(line), file=self.kept, flush=True)
        certificates = [certificate for certificate, _ in done[:count]]
        return certificates, np.array([seconds for _, seconds in done[:count]])

    def say_each(self, certificates: list[Certificate], seconds: np.ndarray, radii: tuple[float, ...]) -> None:
        """One line for each image."""
        for index, (certificate, wall) in enumerate(zip(certificates, seconds, strict=True)):
            proved = [f"{r:g} {'proved' if self.correct(certificate, index, r) else 'not'}" for r in radii]
            self.say(
                f"    {index:3}: {self.labels[index]} -> {certificate.label}, radius {certificate.radius:.3f} "
                f"({', '.join(proved)}), {certificate.votes:,} copies, {certificate.evaluations:,} evaluations, "
                f"{wall:.1f} s"
            )
        self.say()

    def correct(self, certificate: Certificate, index: int, radius: float) -> bool:
        """Whether the certificate of an image has the true label and proves this radius."""
        return certificate.label == self.labels[index] and certificate.radius >= radius

    def certified(self, certificates: list[Certificate], radius: float) -> int:
        """Number of images that are correct and certified at this radius."""
        return sum(self.correct(certificate, index, radius) for index, certificate in enumerate(certificates))

    def average_radius(self, certificates: list[Certificate]) -> float:
        """Average certified radius (ACR); a wrong label or an abstention counts as 0."""
        return float(np.mean([self.correct(c, index, 0) * c.radius for index, c in enumerate(certificates)]))


class NetworkClock:
    """Seconds spent inside a network, on the CPU, where a call returns when it is done."""

    def __init__(self, network: torch.nn.Module):
        self.seconds = 0.0
        self._started = 0.0
        self._handles = [network.register_forward_pre_hook(self._start), network.register_forward_hook(self._stop)]

    def close(self) -> None:
        """Remove the clock from the network."""
        for handle in self._handles:
            handle.remove()

    def _start(self, *_) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_) -> None:
        self.seconds += time.perf_counter() - self._started
