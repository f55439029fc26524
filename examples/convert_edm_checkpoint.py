"""Turn a checkpoint of EDM (Karras et al. 2022) or of OpenAI into a pipeline's folder: `diffusers-ndc convert`.

    python examples/convert_edm_checkpoint.py edm-cifar10-32x32-cond-vp.pkl \\
        --unconditional edm-cifar10-32x32-uncond-vp.pkl --output cifar10 \\
        --class-names airplane automobile bird cat deer dog frog horse ship truck

In Python, `NoisedDiffusionClassifierPipeline.from_edm_checkpoint(...).save_pretrained(folder)`.
"""

import sys

from diffusers_ndc import command


if __name__ == "__main__":
    sys.exit(command.main(["convert", *sys.argv[1:]]))
