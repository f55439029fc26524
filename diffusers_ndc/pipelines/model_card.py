"""The model card of a certified classifier: how to use it, its noise levels, what a certificate says and what not.

An existing card is filled, not overwritten: its own metadata and text stay, and only the sections between two comments
are written anew. `evaluation/model_card.py` adds the results of runs, in a section and metadata of their own.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.utils import yaml_dump

from ..common.markdown import fill, table
from ..diffusion.noise_levels import NoiseLevels


LIBRARY = "diffusers-ndc"

METADATA: dict[str, object] = {
    "library_name": "diffusers",
    "pipeline_tag": "image-classification",
    "tags": [LIBRARY, "certified-robustness", "randomized-smoothing"],
}
"""Metadata of every model of this package."""

MAX_LISTED_LEVELS = 16
"""Longest sequence of noise levels that a card lists one by one."""


def read_card(path: str | Path, title: str) -> tuple[dict, str]:
    """Read the metadata and the text of a card, or make a new card with this title if the file does not exist.

    Raises:
        ValueError: The card's metadata are damaged.
    """
    path = Path(path)
    if not path.exists():
        return {}, f"\n# {title}\n"
    return metadata_load(path) or {}, ModelCard.load(path).text


def write_card(path: str | Path, metadata: dict, text: str) -> None:
    """Write a card, and create its folder if necessary."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\n{yaml_dump(metadata, sort_keys=False)}---\n{text}", encoding="utf-8", newline="")


def with_section(text: str, name: str, section: str) -> str:
    """Replace one section of a card's text, or add it at the end. Doing it twice changes nothing.

    Args:
        text: The card's text.
        name: Name of the section, in the comments around it.
        section: The new section, without a newline at its end.

    Raises:
        ValueError: One of the comments around the section is missing, or there are several.
    """
    begin, end = markers(name)
    if begin not in text and end not in text:
        return f"{text.rstrip()}\n\n{begin}\n{section}\n{end}\n"
    counts = text.count(begin), text.count(end)
    if counts != (1, 1) or text.index(end) < text.index(begin):
        raise ValueError(
            f"`card` must have one {begin!r} and one {end!r} after it, or neither, got {counts[0]} and {counts[1]}."
        )
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{section}\n{end}{after}"


def markers(name: str) -> tuple[str, str]:
    """The comments before and after a section."""
    begin = f"<!-- {LIBRARY}, {name}: begin. This is made by a program; what is written in here gets lost. -->"
    return begin, f"<!-- {LIBRARY}, {name}: end -->"


def add_metadata(metadata: dict, **more: object) -> None:
    """Add the metadata of every model of this package, and more, to those of a card, in place.

    A single value of the card stays as it is; a list of the card is extended.
    """
    for key, value in {**METADATA, **more}.items():
        own = metadata.get(key)
        if own is None:
            metadata[key] = value
        elif isinstance(value, list):
            own_items = own if isinstance(own, list) else [own]
            metadata[key] = own_items + [item for item in value if item not in own_items]


def certifying(sigma: float, radius: float, method: str) -> list[str]:
    """Lines of Python that certify `image` with `pipe`.

    Args:
        sigma: Standard deviation of the smoothing noise, pixel units.
        radius: Radius to prove, pixel units.
        method: Method of the base classifier.
    """
    arguments = f"image, sigma={sigma}, radii=({radius},)"
    if method not in ("apndc", "dds"):  # else it is the pipeline's default
        arguments += f', method="{method}"'
    return [f"certificate = pipe.certify({arguments})", "print(certificate.label, certificate.radius)"]


def model_section(
    model: str,
    call: Sequence[str],
    levels: Iterable[tuple[float, str, NoiseLevels, bool]],
    latent: bool = False,
) -> str:
    """The section of a card on how to use the model, its noise levels, and what a certificate says.

    Args:
        model: Folder or Hub id.
        call: Lines that use `pipe` on `image`.
        levels: Smoothing noise (pixel units), method, the noise levels that the model has for them, and whether its
            class sifter proposes the candidate classes.
        latent: Whether it is a latent diffusion model.
    """
    if latent:
        pipeline, units = "LatentDiffusionClassifierPipeline", "units of the latents"
    else:
        pipeline, units = "NoisedDiffusionClassifierPipeline", "model units"
    rows = [[f"{sigma:g}", method, _describe(chosen, sifted)] for sigma, method, chosen, sifted in levels]
    noise_levels = ""
    if rows:
        explained = units if latent else f"{units} (images in [-1, 1]: twice the pixel units)"
        listed = table(["sigma (pixel units)", "method", f"levels ({units})"], rows)
        noise_levels = fill(__package__, "noise_levels", units=explained, levels=listed)
    return fill(
        __package__,
        "usage",
        pipeline=pipeline,
        model=json.dumps(model),
        call="\n".join(call),
        noise_levels=noise_levels,
        guarantee=guarantee(),
    )


def guarantee() -> str:
    """The part of a card on what a certificate says, and what it does not."""
    return fill(__package__, "guarantee")


def _describe(levels: NoiseLevels, sifted: bool) -> str:
    """Noise levels (model units) with their weights in brackets, and how classes are sifted."""
    if len(levels) > MAX_LISTED_LEVELS:
        text = f"{len(levels)} from {min(levels.sigmas):.3g} to {max(levels.sigmas):.3g}"
    else:
        pairs = zip(levels.sigmas, levels.weights, strict=True)
        text = ", ".join(f"{level:.3g} ({weight:.2g})" for level, weight in pairs)
    if sifted:
        text += "; between the candidates of the class sifter"
    if levels.sifting is not None:
        text += "; classes are sifted after each level"
    return text
