"""Train a class-conditional `UNet2DModel` on any labelled image data set and save it as a certifiable classifier.

    accelerate launch examples/train_class_conditional.py --dataset digits --output-dir model

Devices, machines and mixed precision are those that `accelerate` is configured for. The folder that the program writes
loads with `NoisedDiffusionClassifierPipeline.from_pretrained`, and its network and scheduler with any diffusers class.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from datasets import ClassLabel
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from labelled_images import load_labelled_images
from PIL import ImageOps
from tqdm.auto import tqdm

from diffusers_ndc import Denoiser, NoisedDiffusionClassifierPipeline


DEFAULT_UNET = {
    "block_out_channels": [64, 128, 256],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
}

RESOLUTION_HELP = "pixels: side of the images, or height and width; default: the shorter side of the first image"


def parse_args(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True, help="Hub id or local folder of a data set with an image and a label column")
    add("--split", default="train")
    add("--image-column", help="default: the first column of images")
    add("--label-column", help="default: the first column of class labels")
    add("--resolution", type=int, nargs="+", help=RESOLUTION_HELP)
    add("--unet-config", help="JSON, or a JSON file, of `UNet2DModel` arguments; sizes and classes come from the data")
    add("--objective", choices=("edm", "ddpm"), default="edm")
    add("--p-mean", type=float, default=-1.2, help="edm: mean of log sigma in training (model units)")
    add("--p-std", type=float, default=1.2, help="edm: standard deviation of log sigma in training")
    add("--sigma-data", type=float, default=0.5, help="edm: root mean square of the images (model units)")
    add("--prediction-type", choices=("epsilon", "v_prediction", "sample"), default="epsilon", help="ddpm only")
    add("--label-dropout", type=float, default=0.1, help="share of images trained without a class; 0: no null class")
    add("--flip", action="store_true", help="augment by mirroring")
    add("--rotate", type=float, default=0.0, help="augment by rotations of up to this angle, degrees")
    add("--zoom", type=float, default=0.0, help="augment by zooms of up to this factor, 0.1 for 10%%")
    add("--shift", type=float, default=0.0, help="augment by shifts of up to this number of pixels")
    add("--batch-size", type=int, default=128, help="images per step and process")
    add("--max-train-steps", type=int, default=10_000)
    add("--learning-rate", type=float, default=1e-3)
    add("--lr-warmup-steps", type=int, default=200)
    add("--weight-decay", type=float, default=0.01)
    add("--ema-decay", type=float, default=0.999)
    add("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: as accelerate is configured")
    add("--checkpointing-steps", type=int, default=1000)
    add("--resume", action="store_true", help="continue from the newest checkpoint in --output-dir")
    add("--output-dir", type=Path, required=True)
    add("--seed", type=int, default=0)
    add("--num-workers", type=int, default=0, help="processes that decode images")
    return parser.parse_args(args)


def load_images(args):
    """The data set as rows of `images` (C, H, W) in [0, 1] and `labels`, its class names, image size and channels."""
    dataset, image_column, label_column = load_labelled_images(
        args.dataset, args.split, args.image_column, args.label_column
    )
    labels = dataset.features[label_column]
    if isinstance(labels, ClassLabel):
        names = labels.names
    else:
        numbers = sorted(dataset.unique(label_column))
        if numbers != list(range(len(numbers))):
            raise ValueError(f"The classes of `--label-column` {label_column} must be 0, 1, 2, ..., got {numbers}.")
        names = [str(number) for number in numbers]
    first = dataset[0][image_column]
    mode = "L" if first.mode in ("1", "L") else "RGB"
    size = tuple(args.resolution or [min(first.size)])
    height, width = size * 2 if len(size) == 1 else size

    def transform(rows):
        pictures = [ImageOps.fit(picture.convert(mode), (width, height)) for picture in rows[image_column]]
        pixels = [np.asarray(picture, dtype=np.float32).reshape(height, width, -1) / 255 for picture in pictures]
        return {"images": [torch.from_numpy(p).permute(2, 0, 1) for p in pixels], "labels": rows[label_column]}

    sample_size = height if height == width else (height, width)
    return dataset.with_transform(transform), names, sample_size, len(mode)


def check_args(args):
    """Raise before any work if an option would make the run fail later."""
    checkpoints = args.output_dir / "checkpoints"
    has_checkpoint = checkpoints.is_dir() and any(checkpoints.iterdir())
    if args.resume and not has_checkpoint:
        raise ValueError(f"`--resume` must be given with a folder that has a checkpoint, got none in {checkpoints}.")
    if has_checkpoint and not args.resume:
        raise ValueError(
            f"`--output-dir` must hold no checkpoints for a new run, got {args.output_dir}. Give `--resume` to "
            "continue from them, or another folder."
        )
    if not 0 <= args.label_dropout < 1:
        raise ValueError(f"`--label-dropout` must be at least 0 and below 1, got {args.label_dropout}.")
    if args.resolution is not None and (len(args.resolution) > 2 or min(args.resolution) < 1):
        raise ValueError(f"`--resolution` must be one or two numbers of pixels, got {args.resolution}.")
    for name in ("batch_size", "max_train_steps", "checkpointing_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, got {getattr(args, name)}.")


def augment(images, args):
    """Random rotation, zoom, shift and mirroring; pixels from outside the image repeat its border."""
    n, _, height, width = images.shape
    uniform = torch.rand(5, n, device=images.device) * 2 - 1
    angle, zoom = math.radians(args.rotate) * uniform[0], (1 + args.zoom) ** uniform[1]
    mirror = uniform[4].sign() if args.flip else 1
    shift_x, shift_y = 2 * args.shift / width * uniform[2], 2 * args.shift / height * uniform[3]
    row_x = torch.stack([mirror * zoom * angle.cos(), -zoom * angle.sin(), shift_x], dim=1)
    row_y = torch.stack([mirror * zoom * angle.sin(), zoom * angle.cos(), shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def draw_noise_levels(n: int, scheduler, device, args):
    """Noise levels for n images, and the weights that turn the squared errors of the denoised images into the loss.

    edm: log-normal sigma and `lambda(sigma)` (Karras et al. 2022, Table 1). ddpm: a uniform timestep, and the weight
    that gives the mean squared error of the network's own prediction (Ho et al. 2020, eq. 14).
    """
    if args.objective == "edm":
        sigma = torch.exp(args.p_mean + args.p_std * torch.randn(n, device=device))
        return sigma, (sigma**2 + args.sigma_data**2) / (sigma * args.sigma_data) ** 2
    steps = torch.randint(len(scheduler.alphas_cumprod), (n,))
    alphas = scheduler.alphas_cumprod[steps].to(device)
    sigma = ((1 - alphas) / alphas).sqrt()
    weights = {"epsilon": sigma**-2, "v_prediction": 1 + sigma**-2, "sample": torch.ones_like(sigma)}
    return sigma, weights[args.prediction_type]


def batches(accelerator, loader, start: int):
    """Endless batches, without the first `start`."""
    epoch, skip = divmod(start, len(loader))
    while True:
        loader.set_epoch(epoch)
        yield from accelerator.skip_first_batches(loader, skip)
        epoch, skip = epoch + 1, 0


def build(args, num_classes: int, size: int | tuple[int, int], channels: int):
    """The network with its scheduler, as a denoiser."""
    settings = DEFAULT_UNET
    if args.unet_config:
        text = args.unet_config
        settings = json.loads(Path(text).read_text() if text.endswith(".json") else text)
    null_class = num_classes if args.label_dropout > 0 else None
    unet = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        num_class_embeds=num_classes + (null_class is not None),
        **settings,
    )
    if args.objective == "edm":
        scheduler = EDMEulerScheduler(sigma_data=args.sigma_data)
    else:
        scheduler = DDPMScheduler(prediction_type=args.prediction_type)
    return Denoiser(unet, scheduler, num_classes, null_class)


def run_steps(accelerator, denoiser, ema, optimizer, schedule, loader, num_classes: int, args):
    """Train up to step `args.max_train_steps`, with checkpoints; `num_classes` is the label for "no class"."""
    scheduler, parameters = accelerator.unwrap_model(denoiser).scheduler, list(denoiser.parameters())
    start = ema.optimization_step
    set_seed(args.seed + 1 + start, device_specific=True)  # noise differs between processes and after a resume
    data = batches(accelerator, loader, start)
    bar = tqdm(range(start, args.max_train_steps), disable=not accelerator.is_main_process)
    for step in bar:
        batch = next(data)
        images, labels = augment(batch["images"], args) * 2 - 1, batch["labels"]
        dropped = torch.rand(len(labels), device=labels.device) < args.label_dropout
        sigma, weight = draw_noise_levels(len(images), scheduler, images.device, args)
        x_sigma = images + sigma.view(-1, 1, 1, 1) * torch.randn_like(images)
        error = (denoiser(x_sigma, sigma, labels.masked_fill(dropped, num_classes)) - images) ** 2
        loss = (weight.view(-1, 1, 1, 1) * error).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(parameters)
        bar.set_postfix(loss=f"{loss.item():.4f}", lr=f"{schedule.get_last_lr()[0]:.1e}", refresh=False)
        if (step + 1) % args.checkpointing_steps == 0:
            accelerator.save_state()


def train(args):
    check_args(args)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(args.output_dir, automatic_checkpoint_naming=True, total_limit=2),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(args.seed)
    dataset, names, size, channels = load_images(args)
    largest = len(dataset) // accelerator.num_processes
    if args.batch_size > largest:
        raise ValueError(
            f"`--batch-size` must be at most {largest} for {len(dataset)} images on {accelerator.num_processes} "
            f"processes, got {args.batch_size}."
        )
    denoiser = build(args, len(names), size, channels)
    unet, scheduler, null_class = denoiser.unet, denoiser.scheduler, denoiser.null_class
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=3 / 4)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    schedule = get_scheduler(
        "cosine",
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    loader = torch.utils.data.DataLoader(
        dataset, args.batch_size, shuffle=True, drop_last=True, num_workers=args.num_workers
    )
    denoiser, optimizer, schedule, loader = accelerator.prepare(denoiser, optimizer, schedule, loader)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    if args.resume:
        accelerator.load_state()
        accelerator.project_configuration.iteration = ema.optimization_step // args.checkpointing_steps

    run_steps(accelerator, denoiser, ema, optimizer, schedule, loader, len(names), args)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(unet.parameters())
        pipe = NoisedDiffusionClassifierPipeline(
            unet, scheduler, id2label=dict(enumerate(names)), null_class=null_class
        )
        pipe.save_pretrained(args.output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    train(parse_args())
