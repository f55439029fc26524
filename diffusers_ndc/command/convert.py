"""Make a model of a checkpoint of Karras et al. 2022 (EDM) or of OpenAI: a folder that diffusers loads.

    diffusers-ndc convert edm-cifar10-32x32-cond-vp.pkl --unconditional edm-cifar10-32x32-uncond-vp.pkl \\
        --class-names airplane automobile bird cat deer dog frog horse ship truck --output cifar10
    diffusers-ndc convert 256x256_diffusion.pt --unconditional 256x256_diffusion_uncond.pt --output imagenet256

EDM's `.pkl` files contain the source code of their classes. None of it is run. Networks of OpenAI (`.pt`) that are not
published ones need the flags of their training, which have OpenAI's names here.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import json as strict_json
from .arguments import check_exist, make_parser


if TYPE_CHECKING:
    from diffusers import ModelMixin

    from ..pipelines.pixel import NoisedDiffusionClassifierPipeline


FLAGS: dict[str, type] = {
    "image_size": int,
    "num_heads": int,
    "num_head_channels": int,
    "use_new_attention_order": bool,
    "noise_schedule": str,
    "diffusion_steps": int,
    "rescale_timesteps": bool,
    "predict_xstart": bool,
    "num_classes": int,
}
"""Flags of OpenAI's that the weights do not tell."""


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("convert", __doc__)
    add = parser.add_argument
    add("checkpoint", help="class-conditional: .pkl of EDM, .pt of OpenAI, or .safetensors; or its address")
    add("--unconditional", help="checkpoint without classes, of either family: the unconditional denoiser of APNDC")
    add("--class-names", nargs="+", help="names of the classes, in order (default: numbers)")
    add("--output", type=Path, required=True, help="folder to save the pipeline to")
    openai = parser.add_argument_group("networks of OpenAI that are not published ones")
    for name, kind in FLAGS.items():
        choices = {"choices": ("true", "false")} if kind is bool else {"type": kind}
        openai.add_argument(f"--{name.replace('_', '-')}", **choices)
    openai.add_argument("--unconditional-arguments", metavar="JSON", help="these flags of the --unconditional network")
    args = parser.parse_args(words)
    for name, path in {"CHECKPOINT": args.checkpoint, "--unconditional": args.unconditional}.items():
        if path is not None and "://" not in path:
            check_exist(parser, name, [Path(path)])
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"`--output` must be a folder, got {args.output}.")
    if args.unconditional_arguments is not None:
        try:
            args.unconditional_arguments = strict_json.loads(args.unconditional_arguments)
        except ValueError as error:
            parser.error(f"`--unconditional-arguments` must be JSON, got {args.unconditional_arguments}: {error}")
    return args


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    pipe = _read(args)
    pipe.save_pretrained(args.output)
    low, high = pipe.denoiser.sigma_range
    print(f"network        {_describe(pipe.unet)}")
    if pipe.unconditional_unet is not None:
        print(f"unconditional  {_describe(pipe.unconditional_unet)}")
    print(f"scheduler      {type(pipe.scheduler).__name__}, noise levels {low:g} to {high:g}, images in [-1, 1]")
    if pipe.unconditional_scheduler is not None:
        low, high = pipe.denoiser.unconditional_sigma_range
        print(f"unconditional  {type(pipe.unconditional_scheduler).__name__}, noise levels {low:g} to {high:g}")
    print(f"denoiser       {pipe.denoiser.null_source}, {pipe.denoiser.null_evaluations} evaluations")
    print(f"saved          {args.output}")
    return 0


def _read(args: argparse.Namespace) -> "NoisedDiffusionClassifierPipeline":
    """The pipeline of the checkpoints. Their family is told from the file."""
    from ..checkpoints.pairs import is_of_openai
    from ..pipelines.pixel import NoisedDiffusionClassifierPipeline

    id2label = dict(enumerate(args.class_names)) if args.class_names else None
    flags: dict[str, Any] = {}
    for name, kind in FLAGS.items():
        value = getattr(args, name)
        if value is not None:
            flags[name] = value == "true" if kind is bool else value
    others = args.unconditional_arguments
    if is_of_openai(args.checkpoint, False, "CHECKPOINT"):
        return NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
            args.checkpoint, args.unconditional, id2label, **flags, unconditional_arguments=others
        )
    if flags:
        names = [f"--{name.replace('_', '-')}" for name in flags]
        raise ValueError(f"{names} must be left out for {args.checkpoint}, a checkpoint of EDM, which tells them.")
    return NoisedDiffusionClassifierPipeline.from_edm_checkpoint(
        args.checkpoint, args.unconditional, id2label, unconditional_arguments=others
    )


def _describe(network: "ModelMixin") -> str:
    """Class, architecture, image size, classes and parameters of a network, in one line."""
    from ..checkpoints.edm_unet import EDMUNet2DModel

    kind = type(network).__name__
    if isinstance(network, EDMUNet2DModel):
        kind += " (NCSN++)" if network.config.residual_encoder else " (DDPM++)"
    config, size = network.config, sum(weight.numel() for weight in network.parameters())
    classes = f"{config.num_class_embeds} class embeddings" if config.num_class_embeds else "no classes"
    images = f"{config.in_channels} x {config.sample_size} x {config.sample_size}"
    return f"{kind}, images {images}, {classes}, {size:,} parameters"
