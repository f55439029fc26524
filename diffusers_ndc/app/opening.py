"""How the page opens: on the model that the link names, with the proof of a sample under way."""

import logging
from collections.abc import Iterator

import gradio as gr
import PIL.Image

from . import buttons, reading
from .certify_tab import RADIUS
from .gpu import on_zero_gpu
from .handlers import certify, sigma_in_words
from .models import MODELS, RefusedModel
from .site import Site


COPIES = 1000
"""Noisy copies, at most, as the page offers them at first."""

SECONDS = 40.0
"""Time limit of the opening certification, which nobody asked for."""


class Opening:
    """The handlers of the opening.

    Args:
        site: What the app is about.
        samples: Its samples by name.
    """

    def __init__(self, site: Site, samples: dict[str, PIL.Image.Image]):
        self.site = site
        self.sample = samples.get(site.opening or "", next(iter(samples.values()), None))

    def look(self, request: gr.Request) -> tuple:
        """Key, source and sample of a new visitor; a note, which tabs there are, the sample's picture, and its noise.

        A link with `?model=` loads the model that it names. If that is refused, the note says why, and the page has
        the app's own model.
        """
        key, note = "", ""
        wanted = request.query_params.get("model", "")
        if wanted:
            try:
                key = self.load(wanted)
                note = f"Model: `{wanted}`" if key else ""
            except RefusedModel as error:
                note = f"**{error}** This page shows its own model instead."
        own = MODELS.own if not key else MODELS.linked.get(key)
        if own is None:
            return "", "draw", None, *[gr.skip()] * 4, "", ""
        # samples belong to the app's own model
        sample = None if key else self.sample
        source = "sample" if sample else "draw" if own.sketches else "upload"
        _, picture = ("", "") if sample is None else reading.preview(key, sample)
        has_sample = sample is not None
        parts = gr.Markdown(visible=has_sample), gr.Tab(visible=has_sample), gr.Tab(visible=own.sketches)
        note = gr.Markdown(note, visible=bool(note))
        return key, source, sample, note, *parts, picture, sigma_in_words(key, RADIUS, COPIES, False, None)

    def load(self, wanted: str) -> str:
        """Load the model of a link. Returns its key, or raises a `RefusedModel`."""
        if MODELS.own is not None and wanted == MODELS.own.place:
            return ""
        if not self.site.links or on_zero_gpu():
            raise RefusedModel("This page does not load other models.")
        return MODELS.load_linked(wanted)

    def run(self, key: str, sample: PIL.Image.Image | None) -> Iterator[tuple]:
        """Certify the sample. The visitor may stop it, or start a run of their own, which takes its place."""
        nothing = (buttons.CHOOSE, "", "", "", None, None)
        if sample is None:
            yield *nothing, *buttons.rest(None)
            return
        frame: tuple = nothing
        try:
            for frame in certify(key, sample, RADIUS, COPIES, False, None, SECONDS):
                yield *frame, *buttons.opening()
        except gr.Error:  # nobody asked for this run, so nobody gets its message; a run of the visitor's own has one
            logging.exception("The opening run failed")
        yield *frame, *buttons.rest(frame[4])
