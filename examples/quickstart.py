"""Certify eight real handwritten digits with the embedded model: print a table, save a picture to `digits.png`.

    pip install . && python examples/quickstart.py

It takes under three minutes on two cores. `--n 10000` proves larger radii and takes about twenty times as long.
"""

import argparse
import time
from pathlib import Path

import matplotlib
from datasets import load_dataset

from diffusers_ndc import NoisedDiffusionClassifierPipeline


matplotlib.use("Agg")
from matplotlib import pyplot as plt


MODEL = Path(__file__).parent / "mnist"


def save_picture(images, digits, certificates, path):
    """The digits side by side, each with its prediction and radius, or "abstained"."""
    figure, axes = plt.subplots(1, len(images), figsize=(1.5 * len(images), 2.2), layout="constrained")
    for axis, image, digit, certificate in zip(axes, images, digits, certificates, strict=True):
        verdict = "abstained" if certificate.abstained else f"{certificate.label}, r = {certificate.radius:.3f}"
        axis.imshow(image, cmap="gray")
        axis.set_title(verdict, fontsize=10, color="black" if certificate.label == digit else "darkorange")
        axis.set_axis_off()
    figure.suptitle("Predicted digit, and the l2 radius (pixel units) within which it is proved", fontsize=10)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (default: 0.25)")
    parser.add_argument("--n", type=int, default=500, help="noisy copies behind each certificate (default: 500)")
    parser.add_argument("--output", type=Path, default=Path("digits.png"), help="picture (default: digits.png)")
    args = parser.parse_args()

    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(MODEL)
    test = load_dataset(str(MODEL / "data"), split="test[:8]")
    images, digits = list(test["image"]), list(test["label"])

    clean = pipe(images, seed=0)
    print("digits                     ", *digits)
    print("diffusion classifier, clean", *clean.labels)

    start = time.perf_counter()
    certificates = pipe.certify(images, sigma=args.sigma, n0=20, n=args.n, alpha=0.001, seed=0)
    seconds = time.perf_counter() - start

    print(f"\nsmoothed classifier, sigma = {args.sigma}, alpha = 0.001; radius in l2, pixel units")
    print("digit  predicted  radius  votes        evaluations")
    for digit, certificate in zip(digits, certificates, strict=True):
        predicted = "abstain" if certificate.abstained else certificate.label
        votes = f"{certificate.counts.get(certificate.candidate, 0)} of {certificate.n}"
        print(f"{digit:5}  {predicted:>9}  {certificate.radius:6.3f}  {votes:11}  {certificate.evaluations:11,}")
    evaluations = sum(certificate.evaluations for certificate in certificates)
    print(f"{evaluations:,} network evaluations in {seconds:.0f} s; all records verify:", end=" ")
    print(all(certificate.verify() for certificate in certificates))

    save_picture(images, digits, certificates, args.output)
    print(f"picture: {args.output}")


if __name__ == "__main__":
    main()
