"""Diffusion denoised smoothing on CIFAR-10: an image classifier behind a published denoiser.

    python examples/recipes/cifar10_dds.py --output runs/cifar10_dds --num-processes 8

Downloads the unconditional network of Nichol & Dhariwal 2021 (arXiv:2102.09672), prints what the runs will cost
(--plan: and stops there), certifies test images with each sigma behind an image classifier of transformers, and
compares the result with Carlini et al. 2022 (arXiv:2206.10550). To go on after a kill, at any moment, give the same
command again. --dry-run does all of it with tiny stand-ins, in a minute on one core, without the internet.

A pipeline of this package has a class-conditional network too: it is EDM's, which denoised smoothing never calls.
"""

from cifar10_edm import RECIPE as EDM_RECIPE
from recipe import IMPROVED_DIFFUSION, Recipe
from steps import main


RECIPE = Recipe(
    name="cifar10_dds",
    conditional=EDM_RECIPE.conditional,
    unconditional="https://openaipublic.blob.core.windows.net/diffusion/march-2021/cifar10_uncond_50M_500K.pt",
    unconditional_arguments={**IMPROVED_DIFFUSION, "image_size": 32},
    image_size=32,
    task="cifar10-l2",
    class_names=EDM_RECIPE.class_names,
    classifier="aaraki/vit-base-patch16-224-in21k-finetuned-cifar10",
    evaluation={"method": "dds"},
    published={0.25: "79.3%", 1.0: "36.4%"},
    source=(
        "Published: Carlini et al., arXiv:2206.10550, as the board of sokcertifiedrobustness.github.io lists it; not "
        "compared with the paper itself. Their program has this denoiser and this classifier, certifies the whole "
        "test set with n0 = 100 and n = 100,000, and tells the network the nearest training step. Here the first 512 "
        "test images are certified with n = 10,000, as in cifar10_edm, and the network is told the noise itself."
    ),
)


if __name__ == "__main__":
    main(RECIPE, __doc__)
