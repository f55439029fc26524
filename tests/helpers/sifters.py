"""Sifters of tiny networks, with random maps."""

import torch
from diffusers import DDPMScheduler

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.diffusion import ClassSifter, FeatureSift
from helpers.networks import tiny_unet


BLOCKS = ("down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
NUM_FEATURES = 64


def random_sift(num_classes=3, sigma=0.25, method="apndc", seed=0, **rule):
    """A sift for `tiny_unet` with a random map: it depends on the image, and knows nothing of classes."""
    generator = torch.Generator().manual_seed(seed)
    sift = FeatureSift(
        sigma, method, num_classes, NUM_FEATURES, BLOCKS, 2 * sigma or 0.2, **{"gap": 1.0, "min_classes": 1, **rule}
    )
    sift.load_state_dict(
        {
            "mean": torch.zeros(NUM_FEATURES),
            "scale": torch.ones(NUM_FEATURES),
            "weight": 3 * torch.randn(num_classes, NUM_FEATURES, generator=generator),
            "bias": torch.zeros(num_classes),
        }
    )
    return sift.eval()


def sifter_of(*sifts):
    """A component with these sifts."""
    return ClassSifter.of(sifts)


def shades(count=12, num_classes=3, seed=0):
    """8 x 8 images whose class is their brightness, which features of a random network tell, and their classes."""
    labels = torch.arange(count) % num_classes
    noise = 0.1 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return 0.9 * (labels / (num_classes - 1)).view(-1, 1, 1, 1) + noise, labels.tolist()


def shade_pipe():
    """A pipeline whose network draws class y in the shade of `shades`, and without a class the shade that it sees.

    Its blocks run all the same, so that their features can be read.
    """
    scheduler = DDPMScheduler(prediction_type="sample")
    unet = tiny_unet()
    run_blocks, alphas = unet.forward, scheduler.alphas_cumprod

    def forward(sample, timestep, class_labels=None, return_dict=True):
        run_blocks(sample, timestep, class_labels=class_labels, return_dict=return_dict)
        seen = sample.mean(dim=(1, 2, 3)) / alphas[timestep.round().long()].sqrt()
        shade = torch.where(class_labels == 3, seen, 2 * (0.9 * class_labels / 2 + 0.05) - 1)
        return (shade.view(-1, 1, 1, 1).expand_as(sample),)

    unet.forward = forward
    pipe = NoisedDiffusionClassifierPipeline(unet, scheduler, null_class=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe
