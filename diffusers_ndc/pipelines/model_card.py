"""The model card of a certified classifier: how to use it, its noise levels, what a certificate says and what not.

A card that exists is filled, not overwritten: its own metadata and text stay, and what stands between two comments is
made anew. `evaluation/model_card.py` adds the results of runs, in a section and metadata of their own.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.utils import yaml_dump

from ..diffusion.noise_levels import NoiseLevels


LIBRARY = "diffusers-ndc"

GUARANTEE = """### What a certificate says, and what it does not

- With probability at least 1 - alpha over its noisy copies, the *smoothed* classifier (the class that wins most often
  under Gaussian noise sigma) has the certified label at every image within the radius. Alpha is for each certificate:
  of m certificates about alpha * m may be wrong (at most, in expectation).
- The radius is one of the l2 norm, in pixel units (images in [0, 1]), of the image as the network sees it: an image of
  another size is resized first.
- It holds for one and the same function: these weights, noise levels, method and precision. With others it is another
  classifier, which needs its own certificates.
- It does not say that the label is right. Shares of certified images count one only where it is; an abstention
  counts as wrong.
- It does not speak of shifts, rotations, blur, or any other change that leaves the l2 ball.
- The proof is one of real numbers; rounding in floating point is covered only where the noise was drawn on a grid.
"""


def read_card(path: str | Path, title: str) -> tuple[dict, str]:
    """Metadata and text of a card, or of a new one with this title where there is none.

    Raises:
        ValueError: The card's metadata are damaged.
    """
    path = Path(path)
    if not path.exists():
        return {}, f"\n# {title}\n"
    return metadata_load(path) or {}, ModelCard.load(path).text


def write_card(path: str | Path, metadata: dict, text: str) -> None:
    """Write a card."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\n{yaml_dump(metadata, sort_keys=False)}---\n{text}", encoding="utf-8", newline="")


def with_section(text: str, name: str, section: str) -> str:
    """A card's text with one section made anew, at the end where there was none; doing it twice changes nothing.

    Raises:
        ValueError: One of the comments around the section is missing, or there are several.
    """
    begin, end = markers(name)
    before, begun, rest = text.partition(begin)
    inside, ended, after = rest.partition(end)
    if not begun and end not in text:
        return f"{text.rstrip()}\n\n{begin}\n{section}{end}\n"
    if not (begun and ended) or begin in inside + after or end in after:
        raise ValueError(
            f"the card has half a section; accepted is one {begin!r} and one {end!r} after it, or neither."
        )
    return f"{before}{begin}\n{section}{end}{after}"


def markers(name: str) -> tuple[str, str]:
    """The comments before and after a section."""
    begin = f"<!-- {LIBRARY}, {name}: begin. This is made by a program; what is written in here gets lost. -->"
    return begin, f"<!-- {LIBRARY}, {name}: end -->"


def add_metadata(metadata: dict, **ours: object) -> None:
    """Add what every model of this package has, and more: of two single values the card's own stays, of lists all."""
    for key, value in {
        "library_name": "diffusers",
        "pipeline_tag": "image-classification",
        "tags": [LIBRARY, "certified-robustness", "randomized-smoothing"],
        **ours,
    }.items():
        own = metadata.get(key)
        if isinstance(value, list) and own is not None:
            own = own if isinstance(own, list) else [own]
            metadata[key] = [*own, *(item for item in value if item not in own)]
        elif own is None:
            metadata[key] = value


def certifying(sigma: float, radius: float, method: str) -> list[str]:
    """Lines that certify an image.

    Args:
        sigma: Smoothing noise, pixel units.
        radius: Radius that is asked for, pixel units.
        method: The base classifier's.
    """
    told_method = "" if method in ("apndc", "dds") else f', method="{method}"'
    return [
        f"certificate = pipe.certify(image, sigma={sigma}, radii=({radius},){told_method})",
        "print(certificate.label, certificate.radius)",
    ]


def model_section(
    model: str,
    call: Sequence[str],
    levels: Iterable[tuple[float, str, NoiseLevels]],
    latent: bool = False,
) -> str:
    """How to use the model, its noise levels, and what the guarantee says.

    Args:
        model: Folder or Hub id.
        call: Lines that use `pipe` on `image`.
        levels: Smoothing noise (pixel units), method, and the noise levels that the model has for them.
        latent: Whether it is a latent diffusion model.
    """
    pipeline, head = "NoisedDiffusionClassifierPipeline", "model units"
    units = "the model's units (images in [-1, 1]: twice the\npixel units)"
    if latent:
        pipeline, head, units = "LatentDiffusionClassifierPipeline", "units of the latents", "units of the latents"
    lines = ["## Certified robustness", ""]
    lines += [f"With {LIBRARY} (`pip install {LIBRARY}`) an answer of this model comes with an l2 radius within"]
    lines += ["which no perturbation changes it, proved up to an error probability alpha.", ""]
    lines += [
        "```python",
        f"from diffusers_ndc import {pipeline}",
        "",
        f"pipe = {pipeline}.from_pretrained({json.dumps(model)})",
        "# image: a PIL image, or an array or tensor with values in [0, 1]",
        *call,
        "```",
        "",
    ]
    rows = [[f"{smoothing:g}", of, told(chosen)] for smoothing, of, chosen in levels]
    if rows:
        lines += ["### Noise levels", ""]
        lines += [f"Where the losses of the classes are compared, in {units}, in order; weights in brackets.", ""]
        lines += [*table(["sigma (pixel units)", "method", f"levels ({head})"], rows), ""]
    return "\n".join([*lines, ""]) + GUARANTEE


def told(levels: NoiseLevels) -> str:
    """Noise levels for people, in model units."""
    pairs = zip(levels.sigmas, levels.weights, strict=True)
    text = ", ".join(f"{level:.3g} ({weight:.2g})" for level, weight in pairs)
    if len(levels) > 16:
        text = f"{len(levels)} from {min(levels.sigmas):.3g} to {max(levels.sigmas):.3g}"
    return text if levels.sifting is None else f"{text}; hopeless classes are dropped after each one"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
