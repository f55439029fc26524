"""Which buttons can be pressed: Certify, Stop, and Try to break it."""

from typing import Any

import gradio as gr


Buttons = tuple[gr.Button, gr.Button, gr.Button]


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
