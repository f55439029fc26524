"""Pictures of images with a line of text below, for programs that show or save nothing but pictures."""

import textwrap

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch


WIDTH = 256
"""Least width in pixels. Smaller images are enlarged, each pixel to a square."""

LINE = 20
"""Height of a line of text, in pixels."""


def captioned(image: torch.Tensor, text: str) -> PIL.Image.Image:
    """A picture of an image with text on white below it.

    Args:
        image: Shape `(C, H, W)` with C of 1 or 3, pixel units; values beyond [0, 1] are clipped.
        text: The text, which is broken into lines.
    """
    values = (image.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    picture = PIL.Image.fromarray(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-WIDTH // picture.width))
    picture = picture.resize((factor * picture.width, factor * picture.height), PIL.Image.Resampling.NEAREST)
    lines = textwrap.wrap(text, picture.width // 9)
    page = PIL.Image.new("RGB", (picture.width, picture.height + LINE * len(lines)), "white")
    page.paste(picture)
    font = PIL.ImageFont.load_default(LINE - 5)
    PIL.ImageDraw.Draw(page).text((4, picture.height), "\n".join(lines), "black", font, spacing=4)
    return page
