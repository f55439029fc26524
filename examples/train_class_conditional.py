"""Train a class-conditional `UNet2DModel` on any labelled image data set: `diffusers-ndc train`.

    accelerate launch examples/train_class_conditional.py --dataset digits --output-dir model

or plain `python examples/train_class_conditional.py ...` for one process. In Python, `train(TrainingSettings(...))` of
`diffusers_ndc.training`.
"""

import sys

from diffusers_ndc import command


def main():
    return command.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
