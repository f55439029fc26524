"""Certified before your eyes: a page that certifies a digit copy by copy, verifies certificates, and compares them.

    pip install ".[space]" && python examples/space/app.py

NDC_MODEL names another model, a folder or Hub id; the default is the digits model of this repository. `certifying.py`
has the work, `pictures.py` and `files.py` what visitors bring, `drawing.py` the figures; here is the page. Every
handler can be called by anyone, also without the page, so each checks what it is given.
"""

import json
import logging
import os
from pathlib import Path


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

import certifying
import gradio as gr
import PIL.Image
import torch
from drawing import comparison_figure, copies_figure, download_link, picture_figure, progress_figure
from files import placed, read_certificate, read_runs, verdict
from pictures import model_picture, read_picture

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline
from diffusers_ndc.certification.stopping import largest_provable


HERE = Path(__file__).resolve().parent
DIGITS_MODEL = next(folder for folder in (HERE / "mnist", HERE.parent / "mnist") if folder.is_dir())
COPIES = (100, 2000)
RADII = (0.05, 2.0)
SIGMAS = (0.1, 1.0)
SHOWN_COPIES = 4
VISITORS = 2  # certifications at a time, taking turns step by step

TITLE = """# Certified before your eyes
Draw a digit: a diffusion model classifies noisy copies of it, and their votes prove how far its answer holds
([the method](https://arxiv.org/abs/2402.02316))."""

MEANING = f"""**The radius means:** no change of this image with an l2 norm below it (pixels from 0 to 1) changes the
smoothed classifier's class; this is proved, and wrong with a probability of at most {certifying.ALPHA:.1%}.

**It does not mean** that the class is right, or that a shift, a rotation or another handwriting keeps it."""

# The editor starts without a tool; this takes the brush, as soon as it is there, so that one can draw at once.
TAKE_BRUSH = """() => {
    const take = () => {
        const brush = document.querySelector("#sketch button[aria-label='Brush']");
        if (brush) brush.click(); else setTimeout(take, 200);
    };
    setTimeout(take, 300);
}"""

# The editor's left tool bar covers part of the canvas on a phone (undo and bin stay); the rest is about empty space.
CSS = """
#sketch .toolbar-wrap { display: none; }
#samples .grid-wrap { min-height: 0; }
#table th { word-break: normal; }
.html-container { padding: 0 !important; }
"""

LAUNCH = {
    "max_file_size": "5mb",
    "show_error": False,  # messages of unforeseen exceptions hold paths
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "css": CSS,
}


def load(model: str | Path) -> tuple[NoisedDiffusionClassifierPipeline | None, str]:
    """The model, and an empty string; or `None`, and a message for the page where it cannot be loaded."""
    try:
        pipe = NoisedDiffusionClassifierPipeline.from_pretrained(model)
    except Exception:  # whatever a wrong id, a broken file or a missing network raises, the page says it
        logging.exception("The model %s cannot be loaded", model)
        return None, f"The model `{model}` cannot be loaded. Files can still be verified and compared."
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu"), ""


def prepare(pipe: NoisedDiffusionClassifierPipeline | None, image: PIL.Image.Image | None) -> PIL.Image.Image:
    """A visitor's picture as it is certified, or a message."""
    if pipe is None:
        raise refusal("The model of this page could not be loaded; nothing can be certified.")
    if image is None:
        raise refusal("The picture is empty: draw or choose a digit first.")
    try:
        size = pipe.denoiser.image_size or image.size[::-1]
        return model_picture(image, pipe.unet.config.in_channels, size)
    except ValueError as error:
        raise refusal(str(error)) from None


def refusal(message: str) -> gr.Error:
    """A message for the visitor, without a traceback in the log."""
    return gr.Error(message, print_exception=False, title="That does not work")


def checked(name: str, value, low: float, high: float) -> float:
    """A slider's value, which gradio lets through as NaN or true when it is sent without the page."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise refusal(f"{name} is {str(value)[:20]}; accepted is a number from {low:g} to {high:g}.")
    return value


def certify(pipe: NoisedDiffusionClassifierPipeline | None, image: PIL.Image.Image | None, sigma, wanted, copies):
    """Certify a picture; after each step yield status, figure, copies, download and the certificate as it stands."""
    picture = prepare(pipe, image)
    sigma = float(checked("Sigma", sigma, *SIGMAS))
    wanted = float(checked("The wanted radius", wanted, *RADII))
    copies = int(checked("The number of copies", copies, *COPIES))
    most = largest_provable(sigma, certifying.ALPHA, "mixture", copies)
    if wanted > most:
        gr.Warning(f"{copies:,} copies at sigma {sigma:g} prove at most {most:.2f}, less than the wanted radius.")
    names = pipe.config.id2label or {label: str(label) for label in range(pipe.denoiser.num_classes)}
    shown = None
    try:
        for progress in certifying.certify(pipe, picture, sigma, wanted, copies):
            certificate, proved = progress.certificate, progress.certificate.radius
            if shown is None:
                shown = copies_figure(*certifying.first_copies(pipe, picture, certificate, SHOWN_COPIES))
            done = progress.radii[-1][0]
            end = ""
            if proved >= wanted:
                end = "The wanted radius is proved."
            elif done == copies:
                end = "All copies are spent; the wanted radius is not proved."
            elif progress.out_of_time:
                end = f"{certifying.SECONDS:g} seconds are over; this is what is proved."
            verb = "no class is proved yet" if certificate.abstained else f"proved within radius {proved:.3f}"
            status = (
                f"## {names[certificate.candidate]}: {verb}\n"
                f"{done:,} noisy copies, {certificate.evaluations:,} network evaluations. {end}"
            )
            figure = progress_figure(progress.radii, wanted, progress.votes, certificate.candidate, names)
            record = certificate.to_dict()
            yield status, figure, shown, download_link(json.dumps(record, indent=2)), record
    except ValueError as error:
        raise refusal(str(error)) from None
    except Exception:
        logging.exception("A certification failed")
        raise refusal("The certification failed; the page goes on.") from None


def verify(path: str | None, record: dict | None) -> tuple[str, dict | None]:
    """The verdict on an uploaded certificate, and the certificate at hand from now on: this one where it is valid."""
    if path is None:
        return "", record
    try:
        certificate = read_certificate(path)
    except ValueError as error:
        return f"**Not valid.** {error}", record
    return verdict(certificate), certificate.to_dict() if certificate.verify() else record


def compare(path: str | None, record: dict | None) -> tuple[str, str]:
    """Tables and a figure of a run's report, the bundled one by default, with the certificate at hand placed in it."""
    certificate = record and Certificate.from_dict(record)
    try:
        runs = read_runs(path or HERE / "report.json")[:5]
    except ValueError as error:
        return str(error), ""
    text = "\n\n".join(placed(run, certificate) for run in runs)
    if not certificate:
        text += "\n\nNo certificate is at hand: make one in the first tab, or verify one in the second."
    return text, comparison_figure(runs, certificate.radius if certificate else None)


def build(model: str | Path) -> gr.Blocks:
    """The page for a model.

    Args:
        model: Folder or Hub id.
    """
    pipe, problem = load(model)
    sketches = pipe is None or pipe.unet.config.in_channels == 1
    samples = [PIL.Image.open(path).copy() for path in sorted(HERE.glob("digits/*.png"))] if sketches else []

    def run(source, sketch, chosen, sigma, wanted, copies):
        if source == "draw":
            chosen = sketch and sketch["composite"]
        yield from certify(pipe, chosen, sigma, wanted, copies)

    def begin():
        status = "Starting, or waiting for a free place ..."
        return status, "", "", "", None, gr.Button(interactive=False), gr.Button(interactive=True)

    def rest():
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def choose(path):
        if path is None:
            return None, ""
        try:
            image = read_picture(path)
        except ValueError as error:
            raise refusal(str(error)) from None
        return image, picture_figure(prepare(pipe, image))

    def choose_sample(event: gr.SelectData):
        return samples[event.index], picture_figure(prepare(pipe, samples[event.index]))

    with gr.Blocks(title="Certified before your eyes", delete_cache=(600, 3600)) as demo:
        gr.Markdown(TITLE)
        if problem:
            gr.Markdown(f"**{problem}**")
        source, chosen, kept = gr.State("draw" if sketches else "choose"), gr.State(), gr.State()
        with gr.Tab("Certify"), gr.Row():
            with gr.Column(min_width=320):
                with gr.Tab("Draw", visible=sketches) as draw_tab:
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
                with gr.Tab("Upload or sample") as choose_tab:
                    upload = gr.File(label="A picture, at most 5 MB", elem_id="picture", height=140)
                    gallery = gr.Gallery(
                        samples,
                        show_label=False,
                        columns=5,
                        height="auto",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        visible=bool(samples),
                        elem_id="samples",
                    )
                    preview = gr.HTML(elem_id="preview")
                with gr.Row():
                    go = gr.Button("Certify", variant="primary", min_width=100, elem_id="certify")
                    stop = gr.Button("Stop", variant="stop", min_width=100, interactive=False, elem_id="stop")
                with gr.Accordion("Noise, wanted radius, copies", open=False, elem_id="settings"):
                    wanted = gr.Slider(
                        *RADII, 0.5, step=0.05, label="Wanted radius (l2, pixels from 0 to 1)", elem_id="wanted"
                    )
                    sigma = gr.Slider(
                        *SIGMAS,
                        0.25,
                        step=0.05,
                        label="Noise of the copies, sigma",
                        info="More noise can prove larger radii of fewer pictures. The digits model is quickest at "
                        "0.25, 0.5 and 1.",
                        elem_id="sigma",
                    )
                    copies = gr.Slider(*COPIES, 1000, step=100, label="Most noisy copies", elem_id="copies")
            with gr.Column(min_width=320):
                status = gr.Markdown("## Draw, and press Certify", elem_id="status")
                download = gr.HTML(elem_id="download")
                figure = gr.HTML(elem_id="figure")
                shown = gr.HTML(elem_id="shown")
                gr.Markdown(MEANING)
        with gr.Tab("Verify"):
            gr.Markdown(
                "Label and radius of a certificate are recomputed from its votes. That finds edited files; whether "
                "the votes were cast at all, only a repetition with the same model, image and seed can tell."
            )
            file = gr.File(label="A certificate (JSON)", file_types=[".json"], elem_id="file")
            judgement = gr.Markdown(elem_id="verdict")
        with gr.Tab("Compare") as compare_tab:
            gr.Markdown(
                "How often is a radius reached? The share of a run's images that are classified rightly and "
                "certified there. The bundled run: the digits model on 100 test digits, 500 copies each."
            )
            report = gr.File(label="Another report.json of diffusers_ndc.evaluation", file_types=[".json"], height=140)
            curves = gr.HTML(elem_id="curves")
            table = gr.Markdown(elem_id="table")

        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [status, figure, shown, download, kept]
        settings = [source, sketch, chosen, sigma, wanted, copies]
        began = go.click(begin, None, [*outputs, go, stop], queue=False, scroll_to_output=True, **hidden)
        running = began.then(
            run, settings, outputs, concurrency_limit=VISITORS, show_progress="hidden", api_name="certify"
        )
        # after Stop, an error or the end, whichever comes; twice does no harm
        running.then(rest, None, [go, stop], queue=False, **hidden)
        running.failure(rest, None, [go, stop], queue=False, **hidden)
        stop.click(rest, None, [go, stop], cancels=[running], queue=False, **hidden)

        draw_tab.select(lambda: "draw", None, source, queue=False, **hidden)
        choose_tab.select(lambda: "choose", None, source, queue=False, **hidden)
        upload.change(choose, upload, [chosen, preview], **hidden)
        gallery.select(choose_sample, None, [chosen, preview], **hidden)
        file.change(verify, [file, kept], [judgement, kept], show_progress="hidden", api_name="verify")
        report.change(compare, [report, kept], [table, curves], show_progress="hidden", api_name="compare")
        compare_tab.select(compare, [report, kept], [table, curves], **hidden)
        if sketches:
            demo.load(None, js=TAKE_BRUSH)
            draw_tab.select(None, js=TAKE_BRUSH)
            sketch.clear(None, js=TAKE_BRUSH, queue=False)
    return demo.queue(max_size=16)


if __name__ == "__main__":
    build(os.environ.get("NDC_MODEL", DIGITS_MODEL)).launch(**LAUNCH)
