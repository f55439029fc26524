"""Refusals in words. Anyone can call the handlers through the API, so each handler checks its arguments."""

import gradio as gr


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
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]  # NaN is in no range
        raise visitor_error(f"{name} must be a number from {low:g} to {high:g}, got {str(value)[:20]}.")
    return float(value)  # type: ignore[arg-type]
