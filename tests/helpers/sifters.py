"""Sifters of tiny networks, with random maps."""

import torch

from diffusers_ndc.diffusion import ClassSifter, FeatureSift


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
