"""The Noised Diffusion Classifier on ImageNet 64 x 64 with two published networks of different origin.

    python examples/recipes/imagenet64.py --output runs/imagenet64 --num-processes 8

Downloads the class-conditional network of Karras et al. 2022 (arXiv:2206.00364; check its licence) and the
unconditional one of Nichol & Dhariwal 2021 (arXiv:2102.09672), makes a pipeline of them, calibrates it on training
images, prints what the runs will cost (--plan: and stops there), and certifies validation images with each sigma. To
go on after a kill, at any moment, give the same command again. --dry-run does all of it with tiny stand-ins, in a few
minutes on one core, without the internet.

--dataset must have the classes in the order of their WordNet ids, as ImageNet usually has. Its training images are a
download of several gigabytes.
"""

from recipe import IMPROVED_DIFFUSION, Recipe
from steps import main


RECIPE = Recipe(
    name="imagenet64",
    conditional="https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl",
    unconditional="https://openaipublic.blob.core.windows.net/diffusion/march-2021/imagenet64_uncond_100M_1500K.pt",
    unconditional_arguments={**IMPROVED_DIFFUSION, "image_size": 64},
    image_size=64,
    task="imagenet64-l2",
    per_class=5,
    calibration={"num_copies": 1},
    published={},
    source=(
        "Chen et al., arXiv:2402.02316, report ImageNet 64 x 64; their figures, and their unconditional network, are "
        "not known to this recipe. Which images are taken (every 100th of the validation set) is its own choice."
    ),
)


if __name__ == "__main__":
    main(RECIPE, __doc__)
