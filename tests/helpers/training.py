"""Images to train on, and a tiny network."""

import numpy as np
import PIL.Image


UNET = (
    '{"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, '
    '"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}'
)


def make_images(root):
    """Two classes of 8 x 8 colour images, `train/<class>/<number>.png`; returns the folder."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (root / "train" / name).mkdir(parents=True)
        for number in range(12):
            pixels = (level + rng.integers(-40, 40, (8, 8, 3))).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(root / "train" / name / f"{number}.png")
    return root
