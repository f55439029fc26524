"""Real, tiny, randomly initialised networks."""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)


PROMPTS = {0: ["a photo of a cat", "a cat"], 1: ["a dog"], 2: ["a bird", "one bird", "birds"]}


def tiny_unet(num_class_embeds=4, network=UNet2DModel, **settings):
    """A real, tiny, randomly initialised network for 8 x 8 grey images."""
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "num_class_embeds": num_class_embeds,
    }
    return network(**{**config, **settings}).eval()


def tiny_vit(**settings):
    """A classifier of 8 x 8 grey images into three classes."""
    torch.manual_seed(1)
    config = {
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_labels": 3,
        "initializer_range": 0.5,  # logits that differ from image to image
    }
    return ViTForImageClassification(ViTConfig(**{**config, **settings}))


def processor(side=8, mean=(0.4,), std=(0.3,), **settings):
    """The image processor of a classifier such as `tiny_vit`."""
    size = {"height": side, "width": side}
    return ViTImageProcessor(**{"size": size, "image_mean": mean, "image_std": std, **settings})


def tiny_vae(**settings):
    """An autoencoder from grey 16 x 16 images to 8 x 8 latents of four channels."""
    torch.manual_seed(2)
    config = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.7,
    }
    return AutoencoderKL(**{**config, **settings}).eval()


def tiny_tokenizer():
    """A tokenizer whose tokens are the letters."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocab |= {letter: len(vocab), f"{letter}</w>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=20)


def tiny_text_encoder(**settings):
    """A text encoder of 20 tokens for `tiny_tokenizer`."""
    torch.manual_seed(3)
    config = {
        "vocab_size": 54,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 20,
        "eos_token_id": 1,
        "initializer_factor": 10.0,  # texts that differ
    }
    return CLIPTextModel(CLIPTextConfig(**{**config, **settings})).eval()


def tiny_text_unet(channels=4, **settings):
    """A text-conditional network for 8 x 8 latents."""
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**config, **settings}).eval()


def tiny_dit(**settings):
    """A diffusion transformer of three classes for 8 x 8 latents."""
    torch.manual_seed(4)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 1,
        "sample_size": 8,
        "num_embeds_ada_norm": 3,
    }
    dit = DiTTransformer2DModel(**{**config, **settings}).eval()
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dit


def pixel_model(size=16, **settings):
    """An unconditional pixel-space model, as components of a latent pipeline."""
    settings = {"num_class_embeds": None, "sample_size": size, **settings}
    return {"pixel_unet": tiny_unet(**settings), "pixel_scheduler": DDPMScheduler()}
