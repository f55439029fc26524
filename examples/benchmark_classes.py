"""The part of `benchmark.py` about the number of classes: what a noisy copy costs with more and more of them."""

import numpy as np
import torch
from benchmark_shared import Benchmark
from diffusers import UNet2DModel
from labelled_images import load_labelled_images

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.pipelines.base import Sift
from diffusers_ndc.pipelines.inputs import to_pixel_batch


WAYS: dict[str, Sift | None] = {"sifter": "candidates", "scores as level 0": "scores", "losses": False}
"""What the sifter does."""

TRAINING_IMAGES = 40
"""Training images of each class that the sifter and the levels are fitted on."""


def classes(bench: Benchmark) -> None:
    """A noisy copy with subsets of the model's classes, sifted in each way."""
    args, total = bench.args, bench.pipe.denoiser.num_classes
    copies, per_class = (10, 4) if args.quick else (500, TRAINING_IMAGES)
    bench.say(f"## The number of classes: one noisy copy of each of {copies} test images\n")
    try:
        train, image_column, label_column = load_labelled_images(str(args.dataset), "train")
    except ValueError as error:
        bench.say(f"This part fits sifters, and needs training images ({error}).\n")
        return
    train_images, train_labels = train[image_column], np.array(train[label_column])
    test_labels = np.array(bench.labels)
    levels = bench.pipe.classifier(args.sigma).levels
    fitted = bench.pipe.sifter and bench.pipe.sifter.find(args.sigma)
    order = np.random.default_rng(args.seed).permutation(total)
    rows = []
    for number in [number for number in args.classes if number <= total]:
        subset = np.sort(order[:number])
        pipe = with_classes(bench.pipe, subset)
        chosen = np.concatenate([np.flatnonzero(train_labels == label)[:per_class] for label in subset])
        pipe.calibrate(
            [train_images[int(row)] for row in chosen],
            np.searchsorted(subset, train_labels[chosen]),
            args.sigma,
            len(levels),
            candidates=NoiseLevels(levels.sigmas, levels.weights),
            quantile=args.quantile,
            sift_quantile=args.sift_quantile,
            scores_quantile=args.scores_quantile,
            batch_size=args.batch_size,
            num_copies=1,
            cells=fitted.cells if fitted else (1, 1),
        )
        places = np.resize(np.flatnonzero(np.isin(test_labels, subset)), copies)
        rows.append(
            row_of(bench, pipe, [bench.images[int(p)] for p in places], np.searchsorted(subset, test_labels[places]))
        )
    bench.table(rows)


def with_classes(pipe: NoisedDiffusionClassifierPipeline, subset: np.ndarray) -> NoisedDiffusionClassifierPipeline:
    """A pipeline that knows some of the classes only: the network with their rows of the class embedding."""
    kept = [*map(int, subset), pipe.config.null_class]
    unet = UNet2DModel.from_config(dict(pipe.unet.config, num_class_embeds=len(kept)))
    state = pipe.unet.state_dict()
    state["class_embedding.weight"] = state["class_embedding.weight"][kept]
    unet.load_state_dict(state)
    names = {place: str(label) for place, label in enumerate(subset)}
    part = NoisedDiffusionClassifierPipeline(unet, pipe.scheduler, id2label=names, null_class=len(subset))
    part.set_progress_bar_config(disable=True)
    return part.to(pipe.device)


def row_of(bench: Benchmark, pipe: NoisedDiffusionClassifierPipeline, images: list, labels: np.ndarray) -> dict:
    """Accuracy and evaluations of one noisy copy of each image, sifted in each way and not at all."""
    args, number = bench.args, pipe.denoiser.num_classes
    pixels, _ = to_pixel_batch(images, pipe.unet.config.in_channels, pipe.denoiser.image_size)
    generator = torch.Generator().manual_seed(args.seed)
    noisy = (pixels + args.sigma * torch.randn(pixels.shape, generator=generator)).to(pipe.device)
    row: dict = {"classes": number}
    fitted, levels = pipe.sifter.find(args.sigma), pipe.classifier(args.sigma).levels
    ways: dict[str, dict] = {name: {"sift": sift} for name, sift in WAYS.items()}
    ways["all classes at all levels"] = {"levels": NoiseLevels(levels.sigmas, levels.weights)}
    for name, settings in ways.items():
        if settings.get("sift") == "scores" and fitted.level_zero is None:
            row |= {f"{name}: accuracy": "-", f"{name}: evaluations a copy": "-"}  # the scores did not help
            continue
        classifier = pipe.classifier(args.sigma, batch_size=args.batch_size, **settings)
        with classifier.inference():
            right = classifier(noisy, seeds=range(len(images))).argmax(dim=1).cpu().numpy() == labels
        row |= {
            f"{name}: accuracy": f"{right.mean():.1%}",
            f"{name}: evaluations a copy": classifier.evaluations / len(images),
        }
    row["candidates"] = fitted.expected_classes
    row["reference"] = f"{number * len(bench.reference_levels) + 1:,}"
    return row
