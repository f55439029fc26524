"""The app's figures, drawn with matplotlib, as HTML: images inside the page need no files on the server."""

import base64
import io
from collections.abc import Sequence
from html import escape

import PIL.Image
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter


# Okabe and Ito's palette, which colour-blind readers can tell apart
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
COLOURS = (BLUE, GREEN, "#CC79A7", ORANGE, "#56B4E9", "#000000")
MARKERS = "os^Dv*"
WIDTH = 4.6  # inches; on a phone's screen that is close to life-size

CLASSES = 10
"""Number of bars, at most."""


def progress_figure(
    radii: Sequence[tuple[int, float]], wanted: float, votes: dict[int, int], candidate: int, names: dict[int, str]
) -> str:
    """Two plots: the radius proved so far against the number of noisy copies, and the votes of each class.

    Args:
        radii: For each step, the number of noisy copies so far and the radius proved by them, pixel units.
        wanted: Radius to draw as a line, pixel units.
        votes: Votes of each class. With more than `CLASSES` classes, those with the most votes are shown.
        candidate: The class being certified.
        names: Names of the classes.
    """
    figure = Figure(figsize=(WIDTH, 4.9), layout="constrained")
    curve, bars = figure.subplots(2, height_ratios=(1.15, 1))
    copies, proved = zip(*radii, strict=True)
    curve.step((0, *copies), (0, *proved), where="post", color=BLUE, linewidth=2.5, label="proved so far")
    curve.plot(copies[-1], proved[-1], "o", color=BLUE)
    curve.axhline(wanted, color=VERMILION, linestyle="--", linewidth=2, label=f"to prove: {wanted:g}")
    curve.set(xlim=(0, 1.05 * max(copies[-1], 100)), ylim=(0, 1.3 * max(wanted, proved[-1])))
    curve.set_xlabel("noisy copies that have voted")
    curve.set_ylabel("l2 radius")
    curve.legend(loc="upper left", ncols=2, frameon=False)
    curve.grid(alpha=0.3)

    by_votes = sorted(names, key=lambda label: (-votes.get(label, 0), label))
    shown = sorted({*by_votes[:CLASSES], candidate})
    heights = [votes.get(label, 0) for label in shown]
    colours = [BLUE if label == candidate else ORANGE for label in shown]
    drawn = bars.bar(range(len(shown)), heights, color=colours, edgecolor="black", linewidth=0.6)
    bars.bar_label(drawn, [height or "" for height in heights], padding=1)
    long = max(len(names[label]) for label in shown) > 3
    labels = [names[label][:14] for label in shown]
    bars.set_xticks(range(len(shown)), labels, rotation=60 if long else 0, ha="right" if long else "center")
    bars.set(ylim=(0, 1.18 * max(heights)), xlabel="class (blue: the one being certified)", ylabel="votes")
    bars.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in (curve, bars):
        axis.spines[["top", "right"]].set_visible(False)
    counts = ", ".join(f"{names[label]} {votes[label]}" for label in shown if votes.get(label))
    return _html(figure, f"Radius {proved[-1]:.3f} proved after {copies[-1]} noisy copies; votes by class: {counts}")


def copies_figure(image: torch.Tensor, noisy: torch.Tensor, denoised: torch.Tensor) -> str:
    """The certified picture, a few noisy copies, and below each copy its image after one denoising step.

    Args:
        image: Shape `(C, H, W)`, pixel units.
        noisy: Shape `(N, C, H, W)`, pixel units; values are clipped to [0, 1] for display.
        denoised: Shape `(N, C, H, W)`, pixel units; clipped likewise.
    """
    figure = Figure(figsize=(WIDTH, 1.75), layout="constrained")
    count = len(noisy)
    top, bottom = ([f"{name}{number}" for number in range(count)] for name in ("noisy", "denoised"))
    axes = figure.subplot_mosaic([["image", *top], ["image", *bottom]], width_ratios=(1.9, *[1] * count))
    shown = {"image": image, **dict(zip(top, noisy, strict=True)), **dict(zip(bottom, denoised, strict=True))}
    for place, values in shown.items():
        pixels = values.clamp(0, 1).movedim(0, -1).numpy()
        axes[place].imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[place].set(xticks=[], yticks=[])
    axes["image"].set_title("certified image", fontsize=10)
    axes[top[0]].set_title("noisy copies", fontsize=10, loc="left")
    axes[bottom[0]].set_title("denoised in one step", fontsize=10, loc="left")
    return _html(figure, f"The certified image, {count} noisy copies of it, and the copies denoised in one step")


def comparison_figure(runs: Sequence[dict], radius: float | None) -> str:
    """Certified accuracy of runs at their radii, with 95% intervals, and a certificate's radius as a line.

    Args:
        runs: Runs of a `report.json`, at most one for each of `COLOURS`.
        radius: Radius of the certificate, pixel units, or `None` for no line.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axis = figure.add_subplot()
    for run, colour, marker in zip(runs, COLOURS, MARKERS, strict=False):
        at = run["certified_accuracy"]
        x, y = [point["radius"] for point in at], [point["share"] for point in at]
        spread = [[p["share"] - p["low"] for p in at], [p["high"] - p["share"] for p in at]]
        name = f"{run['name'][:30]}, sigma {run['run']['sigma']:g}"
        axis.errorbar(x, y, spread, color=colour, marker=marker, capsize=3, linewidth=1.5, label=name)
    if radius is not None:
        axis.axvline(radius, color=VERMILION, linestyle="--", linewidth=2, label=f"your certificate: {radius:.3f}")
    axis.set(ylim=(0, 1.02), xlabel="l2 radius (pixel units)", ylabel="certified accuracy")
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", frameon=False)
    return _html(figure, "Certified accuracy against l2 radius; the table has the numbers")


def picture_figure(picture: PIL.Image.Image) -> str:
    """The picture to be certified, enlarged."""
    file = io.BytesIO()
    picture.save(file, format="png")
    source = base64.b64encode(file.getvalue()).decode()
    style = "width: 140px; image-rendering: pixelated; border-radius: 6px"
    return f'<img src="data:image/png;base64,{source}" alt="The picture to be certified" style="{style}">'


def download_link(text: str) -> str:
    """A button that saves a certificate. The page holds its text; the server keeps no file."""
    source = base64.b64encode(text.encode()).decode()
    style = f"display: inline-block; padding: 8px 16px; border-radius: 6px; background: {BLUE}; color: white"
    link = f'href="data:application/json;base64,{source}" download="certificate.json" style="{style}"'
    return f"<a {link}>Download the certificate</a>"


def _html(figure: Figure, text: str) -> str:
    """The figure as an image that fits the width of its place, with a text for screen readers."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    source = base64.b64encode(file.getvalue()).decode()
    style = "width: 100%; max-width: 620px; height: auto; border-radius: 6px"
    return f'<img src="data:image/svg+xml;base64,{source}" alt="{escape(text)}" style="{style}">'
