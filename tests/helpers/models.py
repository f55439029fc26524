"""Pipelines of tiny networks that property tests share, and the count of their networks' calls; each is made once."""

from functools import cache

import torch
from diffusers import DDPMScheduler

from diffusers_ndc import LatentDiffusionClassifierPipeline, NoisedDiffusionClassifierPipeline, NoiseLevels
from helpers.fuzzing import Network
from helpers.networks import PROMPTS, tiny_text_encoder, tiny_text_unet, tiny_tokenizer, tiny_unet, tiny_vae


IMAGES = torch.randint(256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 255
"""Two grey images of 8 bits."""

LARGE_IMAGES = IMAGES.repeat(1, 1, 2, 2)
"""The same for latent models, 16 x 16."""

LEVELS = NoiseLevels((2.0, 4.0), (1.0, 0.5))


@cache
def pixel_model() -> tuple[NoisedDiffusionClassifierPipeline, Network]:
    """A pipeline of three classes for 8 x 8 grey images."""
    unet = tiny_unet()
    pipe = NoisedDiffusionClassifierPipeline(unet, DDPMScheduler(), id2label={0: "a", 1: "b", 2: "c"}, null_class=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe, Network(unet)


@cache
def latent_model() -> tuple[LatentDiffusionClassifierPipeline, dict, Network]:
    """A latent pipeline of three prompts with a denoiser of 16 x 16 grey images in front, and its components."""
    parts = {
        "vae": tiny_vae(),
        "scheduler": DDPMScheduler(),
        "unet": tiny_text_unet(),
        "tokenizer": tiny_tokenizer(),
        "text_encoder": tiny_text_encoder(),
        "pixel_unet": tiny_unet(None, sample_size=16),
        "pixel_scheduler": DDPMScheduler(),
    }
    pipe = LatentDiffusionClassifierPipeline(**parts, prompts=PROMPTS)
    pipe.set_progress_bar_config(disable=True)
    return pipe, parts, Network(*(parts[name] for name in ("vae", "unet", "pixel_unet")))
