"""Certify a labelled image data set with one process or many, and report the results: `diffusers-ndc evaluate`.

    accelerate launch --multi_gpu --num_processes 8 examples/evaluate.py --model examples/mnist \\
        --dataset examples/mnist/data --limit 100 --radii 0.25 0.5 --stop-early --output runs/mnist

or plain `python examples/evaluate.py ...` for one process. In Python, `evaluate(Settings(...))` of
`diffusers_ndc.evaluation`.
"""

import sys

from diffusers_ndc import command


def main():
    return command.main(["evaluate", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
