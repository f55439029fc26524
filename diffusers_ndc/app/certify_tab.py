"""The first tab: choose a picture, watch its certificate grow, try to break it, and see how large the radius is."""

from dataclasses import dataclass

import gradio as gr
import PIL.Image

from .limits import COPIES, RADII, SIGMAS, SIZES
from .texts import BREAK, SEEN, SIZE, why


RADIUS = 0.45
"""The radius to prove at first."""


@dataclass(frozen=True)
class CertifyTab:
    """The components of the tab that handlers read or write."""

    seen: gr.Markdown
    sample_tab: gr.Tab
    draw_tab: gr.Tab
    upload_tab: gr.Tab
    gallery: gr.Gallery
    sample_preview: gr.HTML
    sketch: gr.Sketchpad
    upload: gr.File
    upload_preview: gr.HTML
    wanted: gr.Slider
    noise: gr.Markdown
    own: gr.Checkbox
    sigma: gr.Slider
    copies: gr.Slider
    go: gr.Button
    stop: gr.Button
    status: gr.Markdown
    figure: gr.HTML
    shown: gr.HTML
    download: gr.HTML
    attack: gr.Button
    attempts: gr.HTML
    size: gr.Slider
    size_words: gr.Markdown
    changed: gr.HTML


def certify_tab(samples: dict[str, PIL.Image.Image], sketches: bool) -> CertifyTab:
    """Build the tab.

    Args:
        samples: Pictures to choose from.
        sketches: Whether visitors may draw.
    """
    seen = gr.Markdown(SEEN, visible=bool(samples), elem_id="seen")
    with gr.Row(elem_id="certifying"):
        with gr.Column(min_width=320):
            picture = _pictures(samples, sketches)
            settings = _settings()
        with gr.Column(min_width=320, elem_id="results"):
            shown = {
                "status": gr.Markdown("## The proof of a sample is starting ..." if samples else "", elem_id="status"),
                "figure": gr.HTML(elem_id="figure"),
            }
            gr.HTML(why("figure"))
            shown["shown"] = gr.HTML(elem_id="shown")
            gr.HTML(why("copies"))
            gr.HTML(why("meaning"))
            shown["download"] = gr.HTML(elem_id="download")
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown(BREAK)
            attack = gr.Button("Try to break it", min_width=100, interactive=False, elem_id="attack")
            attempts = gr.HTML(elem_id="attempts")
            gr.HTML(why("attack"))
        with gr.Column(min_width=320):
            gr.Markdown(SIZE)
            size = gr.Slider(*SIZES, 1, step=0.25, label="Size of the change, in certified radii", elem_id="size")
            size_words = gr.Markdown("There is no certificate yet.", elem_id="size-words")
            changed = gr.HTML(elem_id="changed")
            gr.HTML(why("size"))
    breaking = {"attack": attack, "attempts": attempts, "size": size, "size_words": size_words, "changed": changed}
    return CertifyTab(seen=seen, **picture, **settings, **shown, **breaking)


def _pictures(samples: dict[str, PIL.Image.Image], sketches: bool) -> dict:
    """Where the picture comes from: a sample, the visitor's own drawing, or a file."""
    with gr.Tabs(selected="sample" if samples else "draw" if sketches else "upload", elem_id="source"):
        with gr.Tab("Sample", id="sample", visible=bool(samples)) as sample_tab:
            sample_preview = gr.HTML(elem_id="sample-preview")
            gallery = gr.Gallery(
                list(samples.values()),
                show_label=False,
                columns=10,
                height="auto",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="samples",
            )
        with gr.Tab("Draw", id="draw", visible=sketches) as draw_tab:
            sketch = gr.Sketchpad(
                elem_id="sketch",
                show_label=False,
                type="pil",
                image_mode="RGBA",
                canvas_size=(280, 280),
                fixed_canvas=True,
                layers=False,
                transforms=(),
                height=340,
                brush=gr.Brush(default_size=20, colors=["#000000"], color_mode="fixed"),
            )
            _read_drawing_only(sketch)
        with gr.Tab("Upload", id="upload") as upload_tab:
            upload = gr.File(label="Picture (at most 5 MB)", elem_id="picture", height=140)
            upload_preview = gr.HTML(elem_id="preview")
    return {
        "sample_tab": sample_tab,
        "sample_preview": sample_preview,
        "gallery": gallery,
        "draw_tab": draw_tab,
        "sketch": sketch,
        "upload_tab": upload_tab,
        "upload": upload,
        "upload_preview": upload_preview,
    }


def _read_drawing_only(sketch: gr.Sketchpad) -> None:
    """Let the sketchpad read nothing but the drawing as a whole.

    A request may name any number of layers, all of them one small file that is a large picture, which would fill the
    memory before a handler runs.
    """
    read = sketch.preprocess

    def preprocess(payload):
        if payload is not None:
            payload.layers, payload.background = [], None
        return read(payload)

    sketch.preprocess = preprocess


def _settings() -> dict:
    """The radius to prove, the noise that follows from it, and what experts may change."""
    wanted = gr.Slider(*RADII, RADIUS, step=0.05, label="Radius to prove (l2, pixels from 0 to 1)", elem_id="wanted")
    noise = gr.Markdown(elem_id="noise")
    with gr.Row():
        go = gr.Button("Certify", variant="primary", min_width=100, elem_id="certify")
        stop = gr.Button("Stop", variant="stop", min_width=100, interactive=False, elem_id="stop")
    with gr.Accordion("For experts: noise and copies", open=False, elem_id="settings"):
        own = gr.Checkbox(False, label="Choose the noise myself", elem_id="own")
        sigma = gr.Slider(*SIGMAS, 0.25, step=0.05, label="Noise of the copies (sigma)", elem_id="sigma")
        copies = gr.Slider(*COPIES, 1000, step=100, label="Noisy copies, at most", elem_id="copies")
    gr.HTML(why("sigma"))
    return {"wanted": wanted, "noise": noise, "go": go, "stop": stop, "own": own, "sigma": sigma, "copies": copies}
