"""Train a class-conditional `UNet2DModel` on any labelled image data set, and save it as a certifiable classifier.

    diffusers-ndc train --dataset DATASET --output-dir model
    accelerate launch --multi_gpu --num_processes 8 -m diffusers_ndc train ...

Devices, machines and mixed precision are those that `accelerate` is configured for. --config names a YAML file with
the same keys. To resume a training that was killed, give the same command with --resume. The folder loads with
`NoisedDiffusionClassifierPipeline.from_pretrained`, and its network and scheduler with any class of diffusers.
`diffusers-ndc calibrate` then chooses the noise levels of the classifier.
"""

import sys
from collections.abc import Sequence

from ..common.extras import require
from .arguments import COMMON


PROG = "diffusers-ndc train"


def main(words: Sequence[str]) -> int:
    require("train", "train")

    from ..training.settings_parser import parse

    settings = parse(words, f"{__doc__}\n{COMMON}", PROG)
    try:
        settings.check()
    except (TypeError, ValueError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2

    from ..training.run import train

    train(settings)
    return 0
