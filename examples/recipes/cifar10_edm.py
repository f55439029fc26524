"""The Noised Diffusion Classifier on CIFAR-10 with EDM's networks: from the published files to the paper's figures.

    python examples/recipes/cifar10_edm.py --output runs/cifar10_edm --num-processes 8

Downloads the two networks of Karras et al. 2022 (arXiv:2206.00364; check their licence), makes a pipeline of them,
calibrates it on training images, prints what the runs will cost (--plan: and stops there), certifies test images with
each sigma, and compares the result with Chen et al. (arXiv:2402.02316). To go on after a kill, at any moment, give the
same command again. --dry-run does all of it with tiny stand-ins, in a minute on one core, without the internet.
"""

from recipe import Recipe
from steps import main


EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"

RECIPE = Recipe(
    name="cifar10_edm",
    conditional=f"{EDM}/edm-cifar10-32x32-cond-vp.pkl",
    unconditional=f"{EDM}/edm-cifar10-32x32-uncond-vp.pkl",
    image_size=32,
    task="cifar10-l2",
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    per_class=100,
    published={0.25: "over 80%", 0.5: "70.7%"},
    source=(
        "Published: Chen et al., arXiv:2402.02316, for APNDC with these two networks on 512 test images, n0 = 100, "
        "n = 10,000, alpha = 0.001 and at least 126 noise levels. Here the noise levels are calibrated, a class "
        "sifter proposes the candidate classes, and the images are the first 512."
    ),
)


if __name__ == "__main__":
    main(RECIPE, __doc__)
