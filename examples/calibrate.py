"""Fit a class sifter and choose a few noise levels for a model on labelled images: `diffusers-ndc calibrate`.

    python examples/calibrate.py --model model --dataset digits --split train --limit 1000 --sigma 0 0.25 0.5

In Python, `pipe.calibrate(images, labels, sigma)` and `pipe.save_calibration(folder)`.
"""

import sys

from diffusers_ndc import command


if __name__ == "__main__":
    sys.exit(command.main(["calibrate", *sys.argv[1:]]))
