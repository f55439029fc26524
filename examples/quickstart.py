"""Certify eight real handwritten digits with the embedded model: print a table, save a picture to `digits.png`.

    pip install . && python examples/quickstart.py

It takes under three minutes on two cores. `--n 10000` proves larger radii and takes about twenty times as long.
"""

import argparse
import time
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from diffusers_ndc.common.threads import share_cores


share_cores()  # before torch is loaded

from diffusers_ndc import NoisedDiffusionClassifierPipeline  # noqa: E402
from diffusers_ndc.diffusion.thread_trial import choose_threads_for  # noqa: E402


MODEL = Path(__file__).parent / "mnist"
DIGITS = sorted((MODEL / "digits").glob("*.png"))
"""The first eight digits of the test split in `mnist/data`, each with its class at the end of its name."""

SIDE = 224
"""Side of a digit in the picture, in pixels."""


def save_picture(images, digits, certificates, path):
    """The digits side by side, each with its prediction and radius, or "abstained"."""
    line, font = SIDE // 5, PIL.ImageFont.load_default(SIDE // 10)
    page = PIL.Image.new("RGB", (len(images) * SIDE, SIDE + 2 * line), "white")
    draw = PIL.ImageDraw.Draw(page)
    title = "Predicted digit, and the l2 radius (pixel units) within which it is proved"
    draw.text((page.width // 2, line // 2), title, "black", font, anchor="mm")
    for number, (image, digit, certificate) in enumerate(zip(images, digits, certificates, strict=True)):
        verdict = "abstained" if certificate.abstained else f"{certificate.label}, r = {certificate.radius:.3f}"
        colour = "black" if certificate.label == digit else "darkorange"
        draw.text((number * SIDE + SIDE // 2, line * 3 // 2), verdict, colour, font, anchor="mm")
        tile = image.resize((SIDE - 8, SIDE - 8), PIL.Image.Resampling.NEAREST)
        page.paste(tile, (number * SIDE + 4, 2 * line))
    page.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (default: 0.25)")
    parser.add_argument("--n", type=int, default=500, help="noisy copies behind each certificate (default: 500)")
    parser.add_argument("--output", type=Path, default=Path("digits.png"), help="picture (default: digits.png)")
    args = parser.parse_args()

    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(MODEL)
    choose_threads_for(pipe.denoiser)
    images, digits = [PIL.Image.open(path) for path in DIGITS], [int(path.stem[-1]) for path in DIGITS]

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
