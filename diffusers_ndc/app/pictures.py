"""Turn what visitors draw or upload into pictures of the model's size and colours, and digits into MNIST's form."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps


MOST_PIXELS = 8_000_000
PIL.Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # PIL rejects twice this number before decoding; photos have 12 million

FAINT = 0.15
"""Ink fainter than this share of the darkest ink counts as paper."""


def read_picture(path: str | Path) -> PIL.Image.Image:
    """The picture in an uploaded file, turned upright.

    Raises:
        ValueError: The file is not a picture, is damaged, or has too many pixels.
    """
    try:
        with PIL.Image.open(path) as image:
            image.load()
            return PIL.ImageOps.exif_transpose(image)
    except PIL.Image.DecompressionBombError:
        limit = 2 * MOST_PIXELS // 1_000_000
        raise ValueError(f"The picture is too large: it has more than {limit} million pixels.") from None
    except Exception:  # PIL's decoders raise many kinds of errors for damaged files
        raise ValueError("The file is not a picture that can be read. Try a PNG or a JPEG.") from None


def model_picture(image: PIL.Image.Image, channels: int, size: tuple[int, int]) -> PIL.Image.Image:
    """The picture to certify, in the size and colours of the model.

    For a grey model it is made like the digits of MNIST: light ink on black, the digit's longer side 20/28 of the
    picture's, its centre of mass in the middle. A picture of the model's size with a dark border is such a digit
    already and stays as it is.

    Args:
        image: Any picture; transparent parts count as white paper.
        channels: 1 (grey, a digit) or 3 (RGB, cropped to the aspect ratio and resized).
        size: Height and width of the model's images.

    Raises:
        ValueError: The picture is empty.
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
    return _centred_digit(border - grey if border >= 0.5 else grey - border, size)


def _centred_digit(ink: np.ndarray, size: tuple[int, int]) -> PIL.Image.Image:
    """The digit in an array of ink (the more, the darker; 0: paper) as MNIST has it: cut out, scaled and centred."""
    ink = (ink / ink.max()).clip(0, 1)
    ink[ink < FAINT] = 0
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    scale = 20 / 28 * min(size) / max(ink.shape)
    shape = [max(1, round(scale * side)) for side in ink.shape]
    digit = PIL.Image.fromarray(np.uint8(255 * ink)).resize(shape[::-1], PIL.Image.Resampling.BOX)
    digit = PIL.ImageOps.autocontrast(digit.convert("L"))
    mass = np.asarray(digit, dtype=np.float64)
    offsets = []  # top and left, so that the centre of mass is in the middle and the digit stays inside
    for axis in (0, 1):
        centre = (np.indices(mass.shape)[axis] * mass).sum() / mass.sum()
        offset = max(0, round((size[axis] - 1) / 2 - centre))
        offsets.append(min(offset, size[axis] - shape[axis]))
    canvas = PIL.Image.new("L", size[::-1])
    canvas.paste(digit, (offsets[1], offsets[0]))
    return canvas
