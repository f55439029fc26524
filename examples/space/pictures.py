"""What a visitor drew or uploaded, as a picture in the size and colours of the model, and digits as in MNIST."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps


PIL.Image.MAX_IMAGE_PIXELS = 8_000_000  # PIL refuses twice as many, before it decodes them; photos have 12 million

FAINT = 0.15
"""Ink below this share of the darkest is taken for paper."""


def read_picture(path: str | Path) -> PIL.Image.Image:
    """An uploaded file as a picture, turned as its camera was held.

    Raises:
        ValueError: It is no picture, is damaged, or has too many pixels.
    """
    try:
        with PIL.Image.open(path) as image:
            image.load()
            return PIL.ImageOps.exif_transpose(image)
    except PIL.Image.DecompressionBombError:
        most = 2 * PIL.Image.MAX_IMAGE_PIXELS // 1_000_000
        raise ValueError(f"The picture is too large: more than {most} million pixels.") from None
    except Exception:  # decoders of damaged files raise whatever they like
        raise ValueError("The file is not a picture that can be read; try a PNG or a JPEG.") from None


def model_picture(image: PIL.Image.Image, channels: int, size: tuple[int, int]) -> PIL.Image.Image:
    """The picture that is certified.

    For a grey model it is made as MNIST was: light ink on black, the digit's longer side 20/28 of the picture's, its
    centre of mass in the middle. A picture that has this size and a dark border is such a digit, and stays as it is.

    Args:
        image: Any picture; transparent parts are taken for white paper.
        channels: 1 (grey, a digit) or 3 (RGB, cut to the shape and resized).
        size: Height and width of the model's images.

    Raises:
        ValueError: There is nothing on it.
    """
    height, width = size
    if image.has_transparency_data:
        paper = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(paper, image.convert("RGBA"))
    if channels == 3:
        return PIL.ImageOps.fit(image.convert("RGB"), (width, height))
    grey = np.asarray(image.convert("L"), dtype=np.float32) / 255
    border = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    if grey.max() - grey.min() < 0.1:
        raise ValueError("The picture is empty: draw or choose a digit first.")
    if border < 0.5 and grey.shape == size:
        return image.convert("L")
    ink = border - grey if border >= 0.5 else grey - border
    ink = (ink / ink.max()).clip(0, 1)
    ink[ink < FAINT] = 0
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    scale = 20 / 28 * min(size) / max(ink.shape)
    shape = [max(1, round(scale * side)) for side in ink.shape]
    digit = PIL.Image.fromarray(np.uint8(255 * ink)).resize(shape[::-1], PIL.Image.Resampling.BOX)
    digit = PIL.ImageOps.autocontrast(digit.convert("L"))
    mass = np.asarray(digit, dtype=np.float64)
    centre = [(np.indices(mass.shape)[axis] * mass).sum() / mass.sum() for axis in (0, 1)]
    top, left = (
        min(max(0, round((whole - 1) / 2 - middle)), whole - side)
        for whole, middle, side in zip(size, centre, shape, strict=True)
    )
    canvas = PIL.Image.new("L", (width, height))
    canvas.paste(digit, (left, top))
    return canvas
