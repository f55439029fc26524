"""The app's figures as HTML and SVG inside the page: they take the colours of light and dark pages, and need no files.

The colours are the variables of `style.CSS`: Okabe and Ito's palette, which colour-blind readers can tell apart. What
a colour says, a word or a sign says too.
"""

import base64
import io
import math
import re
from collections.abc import Sequence
from html import escape

import numpy as np
import PIL.Image
import torch


CLASSES = 8
"""Number of bars, at most."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 230, 44, 10, 14, 38
"""Size and margins of a plot, in its own units."""

SERIES = ("var(--ndc-blue)", "var(--ndc-green)", "var(--ndc-purple)", "var(--ndc-orange)", "var(--ndc-text)")
"""Colours of the runs in one plot."""


class Plot:
    """A plot with both axes starting at 0, as SVG.

    Args:
        x_end: End of the horizontal axis.
        y_end: End of the vertical axis.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        percent: Whether the vertical axis is in percent.
    """

    def __init__(self, x_end: float, y_end: float, x_label: str, y_label: str, percent: bool = False):
        self.x_end, self.y_end = x_end, y_end
        self.parts = []
        for value in ticks(y_end):
            y = self.y(value)
            shown = f"{value:.0%}" if percent else f"{value:g}"
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
        for value in ticks(x_end):
            place = f'x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 16}"'
            anchor = "end" if value > 0.97 * x_end else "middle"  # a number at the very end would be cut off
            self.parts.append(f'<text {place} text-anchor="{anchor}">{value:g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        self.parts.append(f'<text x="{WIDTH - RIGHT}" y="{TOP + 2}" text-anchor="end">{escape(y_label)}</text>')

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_end

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.y_end

    def line(self, points: Sequence[tuple[float, float]], colour: str, dashed: bool = False) -> None:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="7 5"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4.5" fill="{colour}"/>')

    def words(self, x: float, y: float, text: str) -> None:
        self.parts.append(f'<text x="{self.x(x):.1f}" y="{self.y(y):.1f}">{escape(text)}</text>')

    def html(self, said: str) -> str:
        """The plot, with a text for screen readers."""
        inside = "".join(self.parts)
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">{inside}</svg>'


def ticks(end: float) -> list[float]:
    """About four round numbers from 0 to the end of an axis."""
    rough = end / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [round(number * step, 10) for number in range(int(end / step * 1.0001) + 1)]


def progress_figure(
    radii: Sequence[tuple[int, float]], wanted: float, votes: dict[int, int], candidate: int, names: dict[int, str]
) -> str:
    """The radius proved so far against the number of noisy copies, and the votes of each class.

    Args:
        radii: For each step, the number of noisy copies so far and the radius proved by them, pixel units.
        wanted: Radius to draw as a line, pixel units.
        votes: Votes of each class. Of many classes, those with the most votes are shown.
        candidate: The class being certified.
        names: Names of the classes.
    """
    copies, proved = radii[-1]
    plot = Plot(max(1.05 * copies, 100), 1.3 * max(wanted, proved), "noisy copies that have voted", "l2 radius")
    plot.line([(0, wanted), (plot.x_end, wanted)], "var(--ndc-vermilion)", dashed=True)
    plot.words(0.015 * plot.x_end, wanted + 0.03 * plot.y_end, f"to prove: {wanted:g}")
    steps, before = [(0.0, 0.0)], 0.0
    for made, radius in radii:
        steps += [(made, before), (made, radius)]
        before = radius
    plot.line(steps, "var(--ndc-blue)")
    plot.dot(copies, proved, "var(--ndc-blue)")
    curve = plot.html(f"Radius {floored(proved)} proved after {copies} noisy copies; to prove: {wanted:g}")
    return f'<div class="ndc">{curve}{vote_bars(votes, candidate, names)}</div>'


def vote_bars(votes: dict[int, int], candidate: int, names: dict[int, str]) -> str:
    """A bar for each class with votes, the certified one marked."""
    leading = sorted((label for label in votes if votes[label]), key=lambda label: (-votes[label], label))[:CLASSES]
    most = max(votes.values(), default=1)
    rows = []
    for label in leading:
        kind, mark = ("own", " ●") if label == candidate else ("other", "")
        name = escape(names.get(label, str(label))[:20])
        share = 100 * votes[label] / most
        rows.append(
            f'<span class="name">{name}{mark}</span><span class="track"><i class="{kind}" style="width:{share:.1f}%">'
            f"</i></span><span>{votes[label]:,}</span>"
        )
    return f'<div class="bars" role="group" aria-label="Votes by class">{"".join(rows)}</div>'


def copies_figure(image: torch.Tensor, noisy: torch.Tensor, denoised: torch.Tensor) -> str:
    """The certified picture, a few noisy copies, and below each copy its image after one denoising step.

    Args:
        image: Shape `(C, H, W)`, pixel units.
        noisy: Shape `(N, C, H, W)`, pixel units; values are clipped to [0, 1] for display.
        denoised: Shape `(N, C, H, W)`, pixel units; clipped likewise.
    """
    first = picture_tag(image, "The certified picture")
    rows = [
        f'<span class="said">{words}</span>'
        + "".join(picture_tag(one, f"{words}, number {number + 1}") for number, one in enumerate(some))
        for words, some in (("noisy copies", noisy), ("denoised", denoised))
    ]
    return (
        f'<div class="ndc copies"><div><span class="said">certified</span>{first}</div>'
        f'<div class="row">{rows[0]}</div><div class="row">{rows[1]}</div></div>'
    )


def picture_figure(picture: PIL.Image.Image) -> str:
    """The picture to be certified, enlarged."""
    return f'<div class="ndc preview">{_tag(picture, "The picture to be certified")}</div>'


def picture_tag(image: torch.Tensor, said: str) -> str:
    """A picture of shape `(C, H, W)`, pixel units, clipped to [0, 1], as an element of the page."""
    values = image.detach().float().cpu().clamp(0, 1).movedim(0, -1).numpy()
    pixels = np.uint8(np.round(255 * values))
    return _tag(PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]), said)


def _tag(picture: PIL.Image.Image, said: str) -> str:
    file = io.BytesIO()
    picture.save(file, format="png")
    source = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{source}" alt="{escape(said)}">'


def download_link(text: str) -> str:
    """A button that saves a certificate. The page holds its text; the server keeps no file."""
    source = base64.b64encode(text.encode()).decode()
    link = f'href="data:application/json;base64,{source}" download="certificate.json"'
    return f'<div class="ndc"><a class="save" {link}>Download the certificate</a></div>'


def comparison_figure(runs: Sequence[dict], radius: float | None) -> str:
    """Certified accuracy of runs at their radii, and a certificate's radius as a line.

    Args:
        runs: Runs of a `report.json`, at most one for each of `SERIES`.
        radius: Radius of the certificate, pixel units, or `None` for no line.
    """
    ends = [point["radius"] for run in runs for point in run["certified_accuracy"]]
    plot = Plot(1.05 * max([*ends, radius or 0, 0.1]), 1.05, "l2 radius (pixel units)", "certified accuracy", True)
    legend = []
    for run, colour in zip(runs, SERIES, strict=False):
        points = [(point["radius"], point["share"]) for point in run["certified_accuracy"]]
        plot.line(points, colour)
        for x, y in points:
            plot.dot(x, y, colour)
        name = escape(f"{run['name'][:30]}, sigma {run['run']['sigma']:g}")
        legend.append(f'<span><b style="color:{colour}">●</b> {name}</span>')
    if radius is not None:
        plot.line([(radius, 0), (radius, 1)], "var(--ndc-vermilion)", dashed=True)
        legend.append(f'<span><b style="color:var(--ndc-vermilion)">┆</b> your certificate: {floored(radius)}</span>')
    said = plot.html("Certified accuracy against l2 radius; the table has the numbers")
    return f'<div class="ndc">{said}<div class="legend">{"".join(legend)}</div></div>'


def plain(name: str) -> str:
    """The start of a class's name, as Markdown that shows it letter by letter: models of strangers name classes."""
    return re.sub(r"([\\`*_\[\]()<>&!#$~|])", r"\\\1", " ".join(name[:20].split()))


def floored(radius: float) -> str:
    """A radius with three digits, rounded down: what is shown is proved."""
    return f"{math.floor(1000 * radius) / 1000:.3f}"
