"""Train a small image classifier of transformers on any labelled image data set, on clean or on noisy images.

    accelerate launch examples/train_image_classifier.py --dataset fashion --output-dir vit --config '{"model_type":
        "vit", "patch_size": 4, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 96}'
    accelerate launch examples/train_image_classifier.py --dataset fashion --sigma 0.25 --output-dir cnn

The folder that it writes is what `diffusers-ndc evaluate` takes as --classifier: trained on clean images (--sigma 0)
for --method dds, behind a denoiser; trained on images with Gaussian noise, for --method gaussian and the same sigma,
by itself (Cohen et al. 2019, arXiv:1902.02918). The noise is in pixel units (images in [0, 1]) and is not clipped.
All images are held in memory, with 8 bits a value.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from datasets import ClassLabel
from labelled_images import load_labelled_images
from PIL import ImageOps
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor

from diffusers_ndc.training.checkpoints import next_number, remove_torn, whole_checkpoints


RESNET = {"model_type": "resnet", "embedding_size": 32, "hidden_sizes": [32, 64], "depths": [2, 2]}
DEFAULT_CONFIG = {**RESNET, "layer_type": "basic"}


def parse_args(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True, help="Hub id or local folder of a data set with an image and a label column")
    add("--split", default="train")
    add("--eval-split", default="test", help="split whose accuracy is printed at the end")
    add("--image-column", help="default: the first column of images")
    add("--label-column", help="default: the first column of class labels")
    add("--config", help="JSON, or a JSON file: `model_type` and arguments of its configuration; default: a ResNet")
    add("--sigma", type=float, default=0.0, help="noise of the training images, pixel units (default: 0)")
    add("--flip", action="store_true", help="augment by mirroring")
    add("--batch-size", type=int, default=128, help="images per step and process")
    add("--epochs", type=int, default=10)
    add("--learning-rate", type=float, default=3e-3, help="the largest one, of a one-cycle schedule")
    add("--weight-decay", type=float, default=0.05)
    add("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: as accelerate is configured")
    add("--resume", action="store_true", help="continue from the newest checkpoint in --output-dir, one each epoch")
    add("--output-dir", type=Path, required=True)
    add("--seed", type=int, default=0)
    return parser.parse_args(args)


def check_args(args):
    """Raise before any work if an option would make the run fail later."""
    if not 0 <= args.sigma < float("inf"):
        raise ValueError(f"`--sigma` must be a finite noise level of at least 0 (pixel units), got {args.sigma}.")
    for name in ("batch_size", "epochs"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, got {getattr(args, name)}.")
    has_checkpoint = any(args.output_dir.glob("checkpoints/checkpoint_*"))
    if args.resume and not has_checkpoint:
        raise ValueError(f"`--resume` must be given with a folder that has a checkpoint, got {args.output_dir}.")
    if not args.resume and has_checkpoint:
        raise ValueError(
            f"`--output-dir` must hold no checkpoints for a new run, got {args.output_dir}. Give `--resume` to "
            "continue from them, or another folder."
        )


def resume(accelerator, args):
    """Load the newest whole checkpoint; if a kill left none, the training begins anew."""
    folder = args.output_dir / "checkpoints"
    if accelerator.is_local_main_process:
        remove_torn(folder)
    accelerator.wait_for_everyone()
    whole = whole_checkpoints(folder)
    if whole:
        accelerator.load_state(str(whole[-1]))
    accelerator.project_configuration.iteration = next_number(folder)


def load_images(args, split: str, size=None, mode=None):
    """A split as tensors, images of 8 bits and labels; with the names of the classes."""
    dataset, image_column, label_column = load_labelled_images(
        args.dataset, split, args.image_column, args.label_column
    )
    feature = dataset.features[label_column]
    labels = torch.tensor(dataset[label_column][:])
    names = feature.names if isinstance(feature, ClassLabel) else [str(n) for n in range(int(labels.max()) + 1)]
    first = dataset[0][image_column]
    size, mode = size or first.size, mode or ("L" if first.mode in ("1", "L") else "RGB")
    images = torch.empty((len(dataset), len(mode), size[1], size[0]), dtype=torch.uint8)
    for number, picture in enumerate(tqdm(dataset[image_column], desc=split, disable=None)):
        pixels = np.array(ImageOps.fit(picture.convert(mode), size))
        images[number] = torch.from_numpy(pixels).reshape(size[1], size[0], -1).permute(2, 0, 1)
    return TensorDataset(images, labels), names, size, mode


def build(args, names, size, mode):
    """The network and its image processor."""
    config = DEFAULT_CONFIG
    if args.config:
        config = json.loads(Path(args.config).read_text() if args.config.endswith(".json") else args.config)
    if "model_type" not in config:
        raise ValueError(f"`--config` must have a `model_type`, got {config}.")
    default = AutoConfig.for_model(config["model_type"])
    unknown = [name for name in config if not hasattr(default, name)]
    if unknown:  # a configuration takes any name, and the network does not look at it
        raise ValueError(f"`--config` must have arguments of a {type(default).__name__}, got {unknown} too.")
    width, height = size
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    settings = {"num_channels": len(mode), **labels, **{k: v for k, v in config.items() if k != "model_type"}}
    if hasattr(default, "image_size"):
        settings.setdefault("image_size", width if width == height else (height, width))
    network = AutoModelForImageClassification.from_config(AutoConfig.for_model(config["model_type"], **settings))
    mean = [0.5] * len(mode)
    processor = ViTImageProcessor(size={"height": height, "width": width}, image_mean=mean, image_std=mean)
    return network, processor


def prepare(images: torch.Tensor, sigma: float, processor) -> torch.Tensor:
    """Noisy images as the network takes them: the noise is added in pixel units, and nothing is clipped."""
    pixels = images.float() / 255
    pixels = pixels + sigma * torch.randn_like(pixels)
    mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixels - mean) / std


@torch.no_grad()
def accuracy(accelerator, network, dataset, sigma: float, processor, batch_size: int) -> float:
    """The share of images that are classified correctly, each with one draw of the noise."""
    network.eval()
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    correct = 0
    for images, labels in DataLoader(dataset, batch_size):
        inputs = prepare(images, sigma, processor).to(accelerator.device)
        with accelerator.autocast():
            correct += (network(pixel_values=inputs).logits.argmax(1).cpu() == labels).sum().item()
    torch.set_rng_state(generator_state)
    return correct / len(dataset)


def run_epochs(accelerator, network, processor, optimizer, schedule, loader, args):
    """Train up to epoch `args.epochs`, with a checkpoint after each."""
    for epoch in range(accelerator.project_configuration.iteration, args.epochs):  # one checkpoint each epoch
        set_seed(args.seed + 1 + epoch, device_specific=True)  # noise differs between processes and epochs
        loader.set_epoch(epoch)
        network.train()
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{args.epochs}", disable=not accelerator.is_main_process)
        for images, labels in bar:
            inputs = prepare(images, args.sigma, processor)
            if args.flip:
                mirrored = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < 0.5
                inputs = torch.where(mirrored, inputs.flip(3), inputs)
            loss = network(pixel_values=inputs, labels=labels).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise FloatingPointError(f"The weights must be finite, got NaN or infinity in epoch {epoch + 1}.")
        accelerator.save_state()


def train(args):
    check_args(args)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(args.output_dir, automatic_checkpoint_naming=True, total_limit=2),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )
    set_seed(args.seed)
    dataset, names, size, mode = load_images(args, args.split)
    network, processor = build(args, names, size, mode)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    loader = DataLoader(dataset, min(args.batch_size, len(dataset)), shuffle=True, drop_last=True)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, epochs=args.epochs, steps_per_epoch=len(loader)
    )
    accelerator.register_for_checkpointing(schedule)
    if args.resume:
        resume(accelerator, args)
    steps = args.epochs * len(loader)
    if schedule.total_steps != steps:  # the checkpoint brought the one with which the training was begun
        raise ValueError(
            f"`--epochs` and `--batch-size` must be those with which the training in {args.output_dir} was begun, "
            f"{schedule.total_steps} steps in all, got {steps} steps."
        )
    run_epochs(accelerator, network, processor, optimizer, schedule, loader, args)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(network)
        trained.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        test, *_ = load_images(args, args.eval_split, size, mode)
        for sigma in sorted({0.0, args.sigma}):
            share = accuracy(accelerator, trained, test, sigma, processor, args.batch_size)
            print(f"accuracy on {args.eval_split}, sigma {sigma:g}: {share:.2%}", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    train(parse_args())
