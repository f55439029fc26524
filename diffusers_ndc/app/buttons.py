"""Which buttons can be pressed: Certify, Stop, and Try to break it."""

from typing import Any

import gradio as gr


Buttons = tuple[gr.Button, gr.Button, gr.Button]

CHOOSE = "## Choose a picture and press Certify"
"""Status while there is no result."""

STARTING = "## Starting, or waiting for other visitors ..."
"""Status between a press and the first result."""


def working() -> Buttons:
    """While something is computed that the visitor asked for."""
    return gr.Button(interactive=False), gr.Button(interactive=True), gr.Button(interactive=False)


def opening() -> Buttons:
    """While the opening run computes: the visitor may start a run of their own."""
    return gr.Button(interactive=True), gr.Button(interactive=True), gr.Button(interactive=False)


def rest(record: Any) -> Buttons:
    """While nothing is computed. Only a certificate with a radius above 0 can be attacked."""
    proved = isinstance(record, dict) and (record.get("radius") or 0) > 0
    return gr.Button(interactive=True), gr.Button(interactive=False), gr.Button(interactive=proved)


def after(record: Any, status: Any, attempts: Any) -> tuple[Any, Any, gr.Button, gr.Button, gr.Button]:
    """After the end, an error, or Stop: what still announces a start says so no more, and the buttons are at rest."""
    return (
        CHOOSE if status == STARTING else gr.skip(),
        "" if attempts == STARTING.removeprefix("## ") else gr.skip(),
        *rest(record),
    )
