"""What visitors may ask for. Anyone can call the handlers through the API, so each handler checks its arguments."""

import math

import gradio as gr


ALPHA = 0.001
"""Probability with which a certificate may be wrong."""

COPIES = (100, 2000)
RADII = (0.05, 2.0)
SIGMAS = (0.1, 1.0)
SIZES = (0.25, 8.0)
"""Sizes of a change that is shown, in radii."""

SECONDS = 120.0
"""Time limit for one picture, so that a visitor who does not wait for the result does not keep the others waiting."""

VISITORS = 2
"""Certifications at a time, taking turns step by step."""


def visitor_error(message: str) -> gr.Error:
    """An error that shows the visitor a message and leaves no traceback in the log."""
    return gr.Error(message, print_exception=False, title="This does not work")


def checked(name: str, value: object, low: float, high: float) -> float:
    """A number from the page, checked: through the API gradio also accepts NaN and true.

    Args:
        name: What the number is, for the message.
        value: The number.
        low: Smallest allowed value.
        high: Largest allowed value.

    Raises:
        gr.Error: It is not a number in this range.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise visitor_error(f"{name} must be a number from {low:g} to {high:g}, got {str(value)[:20]}.")
    return float(value)  # type: ignore[arg-type]
