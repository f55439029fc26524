"""Turn a checkpoint of Karras et al. 2022 (EDM, arXiv:2206.00364) into a folder that diffusers loads.

    python examples/convert_edm_checkpoint.py edm-cifar10-32x32-cond-vp.pkl \\
        --unconditional edm-cifar10-32x32-uncond-vp.pkl --output cifar10 \\
        --class-names airplane automobile bird cat deer dog frog horse ship truck

The `.pkl` files contain the source code of their classes. None of it is run.
"""

import argparse

from diffusers_ndc import EDMUNet2DModel, NoisedDiffusionClassifierPipeline


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="class-conditional checkpoint: .pkl, or .pt or .safetensors with a .json")
    parser.add_argument(
        "--unconditional", help="checkpoint without classes, of EDM or of OpenAI, the unconditional denoiser of APNDC"
    )
    parser.add_argument("--class-names", nargs="+", help="names of the classes, in order (default: numbers)")
    parser.add_argument("--output", required=True, help="folder to save the pipeline to")
    return parser.parse_args()


def describe(network) -> str:
    """Architecture, image size, classes and parameters of a network, in one line."""
    if not isinstance(network, EDMUNet2DModel):
        architecture = "ADM"
    elif network.config.residual_encoder:
        architecture = "NCSN++"
    else:
        architecture = "DDPM++"
    config, size = network.config, sum(weight.numel() for weight in network.parameters())
    classes = f"{config.num_class_embeds} class embeddings" if config.num_class_embeds else "no classes"
    images = f"{config.in_channels} x {config.sample_size} x {config.sample_size}"
    return f"{type(network).__name__} ({architecture}), images {images}, {classes}, {size:,} parameters"


def main():
    args = parse_args()
    id2label = dict(enumerate(args.class_names)) if args.class_names else None
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(args.checkpoint, args.unconditional, id2label)
    pipe.save_pretrained(args.output)
    low, high = pipe.denoiser.sigma_range
    print(f"network        {describe(pipe.unet)}")
    if pipe.unconditional_unet is not None:
        print(f"unconditional  {describe(pipe.unconditional_unet)}")
    print(f"scheduler      {type(pipe.scheduler).__name__}, noise levels {low:g} to {high:g}, images in [-1, 1]")
    if pipe.unconditional_scheduler is not None:
        low, high = pipe.denoiser.unconditional_sigma_range
        print(f"unconditional  {type(pipe.unconditional_scheduler).__name__}, noise levels {low:g} to {high:g}")
    print(f"denoiser       {pipe.denoiser.null_source}, {pipe.denoiser.null_evaluations} evaluations")
    print(f"saved          {args.output}")


if __name__ == "__main__":
    main()
