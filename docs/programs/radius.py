"""The picture of the page "What a radius means", with the embedded model: `docs/images/radius.png`.

    python docs/programs/radius.py      # some minutes on one core

One test digit is certified. Beside it stand two changes of exactly the certified length: one spread over all pixels,
and one spent on a single pixel. The last part is a plane through the digit, in which two other digits lie too: at each
point the class that wins most often among a few noisy copies, and the certified ball around the digit.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from datasets import load_dataset

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.pipelines.inputs import to_pixel_batch


matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch


ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "mnist"
SIGMA = 0.25
LABELS = (4, 9, 3)  # the first digits of these classes: the certified one, and two that span the plane
COLOURS = [
    "#999999",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#DDDDDD",
    "#66CCEE",
]
LOW, HIGH = -3.0, 11.0  # sides of the plane, pixel units


def plane(start: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two directions of length 1 at right angles: from `start` to `one`, and on to the side of `other`."""
    along = (one - start) / (one - start).norm()
    across = (other - start) - ((other - start) * along).sum() * along
    return along, across / across.norm()


def winners(pipe, images: torch.Tensor, copies: int) -> torch.Tensor:
    """The class that wins most often among noisy copies of each image. An estimate, not a certificate."""
    classify = pipe.classifier(SIGMA)
    generator = torch.Generator().manual_seed(0)
    votes = torch.zeros(len(images), classify.num_classes)
    with torch.no_grad():
        for _ in range(copies):
            noisy = images + SIGMA * torch.randn(images.shape, generator=generator)
            votes[torch.arange(len(images)), classify(noisy).argmax(dim=1)] += 1
    return votes.argmax(dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=12, help="noisy copies of each point of the plane (default: 12)")
    parser.add_argument("--points", type=int, default=22, help="points on a side of the plane (default: 22)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "radius.png")
    args = parser.parse_args()

    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    test = load_dataset(str(MODEL / "data"), split="test")
    found = [test[list(test["label"]).index(label)]["image"] for label in LABELS]
    (digit, one, other), _ = to_pixel_batch(found, 1, (28, 28))
    certificate = pipe.certify(digit, sigma=SIGMA, n0=20, n=1000, seed=0)
    radius = certificate.radius
    print(f"class {certificate.label}, radius {radius:.3f}")

    spread = torch.randn(digit.shape, generator=torch.Generator().manual_seed(1))
    single = torch.zeros_like(digit)
    single[0, 4, 7] = 1.0
    changed = {
        f"a digit, certified as {certificate.label}": digit,
        f"a change of length {radius:.2f},\nspread over all pixels": digit + radius * spread / spread.norm(),
        f"a change of length {radius:.2f},\nof one pixel": digit + radius * single,
    }
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), width_ratios=[1, 1, 1, 1.4], layout="constrained")
    for axis, (title, image) in zip(axes, changed.items(), strict=False):
        axis.imshow(image[0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    draw_plane(axes[3], pipe, (digit, one, other), radius, args)
    figure.savefig(args.output, dpi=110)
    print(f"picture: {args.output}")


def draw_plane(axis, pipe, digits: tuple[torch.Tensor, ...], radius: float, args) -> None:
    """The class that wins at each point of the plane through three digits, and the ball around the first."""
    digit = digits[0]
    along, across = plane(*digits)
    steps = torch.linspace(LOW, HIGH, args.points)
    grid = torch.stack([digit + a * along + b * across for b in steps for a in steps])
    classes = winners(pipe, grid, args.copies).view(args.points, args.points)
    half = (HIGH - LOW) / (args.points - 1) / 2
    box = (LOW - half, HIGH + half, LOW - half, HIGH + half)
    norm = BoundaryNorm([number - 0.5 for number in range(11)], 10)
    axis.imshow(classes, origin="lower", extent=box, cmap=ListedColormap(COLOURS), norm=norm)
    axis.add_patch(plt.Circle((0, 0), radius, fill=False, linewidth=2, color="black"))
    for label, image in zip(LABELS, digits, strict=True):
        place = [((image - digit) * direction).sum().item() for direction in (along, across)]
        axis.plot(*place, "k.", markersize=5)
        axis.annotate(str(label), place, xytext=(5, 4), textcoords="offset points", fontsize=11, fontweight="bold")
    shown = [Patch(color=COLOURS[label], label=str(label)) for label in classes.unique().tolist()]
    axis.legend(handles=shown, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9, title="class")
    axis.set_xlabel("l2 distance, pixel units", fontsize=9)
    axis.set_title("the plane through three digits, and the\nclass that wins; the circle is proved", fontsize=10)


if __name__ == "__main__":
    main()
