"""Certified before your eyes: a page that certifies a digit copy by copy, and verifies and compares certificates.

    pip install ".[space]" && python examples/space/app.py

NDC_MODEL names another model, a folder or Hub id; the default is the digits model of this repository. This file builds
the page; `certifying.py` does the work, `pictures.py` and `files.py` read what visitors upload, and `drawing.py` makes
the figures. Anyone can call the handlers through the API, without the page, so each handler checks its arguments.
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
from files import compare_with_run, read_certificate, read_runs, verdict
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
Draw a digit. A diffusion model classifies noisy copies of it, and their votes prove how much the digit may change
before the answer does ([the method](https://arxiv.org/abs/2402.02316))."""

MEANING = f"""**What the radius means:** no change of this image with an l2 norm below the radius (pixels from 0 to 1)
changes the class that the smoothed classifier predicts. This is proved, and wrong with a probability of at most
{certifying.ALPHA:.1%}.

**What it does not mean:** that the class is correct, or that it stays the same after a shift or a rotation, or in
another handwriting."""

# The editor starts without a tool. This selects the brush as soon as it is there, so that visitors can draw at once.
TAKE_BRUSH = """() => {
    const take = () => {
        const brush = document.querySelector("#sketch button[aria-label='Brush']");
        if (brush) brush.click(); else setTimeout(take, 200);
    };
    setTimeout(take, 300);
}"""

# On a phone the editor's left tool bar covers part of the canvas (undo and bin stay). The other rules save space.
CSS = """
#sketch .toolbar-wrap { display: none; }
#samples .grid-wrap { min-height: 0; }
#table th { word-break: normal; }
.html-container { padding: 0 !important; }
"""

LAUNCH = {
    "max_file_size": "5mb",
    "show_error": False,  # messages of unexpected exceptions contain paths
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "css": CSS,
}


def load(model: str | Path) -> tuple[NoisedDiffusionClassifierPipeline | None, str]:
    """The model and an empty string, or `None` and a message for the page if the model cannot be loaded."""
    try:
        pipe = NoisedDiffusionClassifierPipeline.from_pretrained(model)
    except Exception:  # a wrong id, a damaged file, no connection: the page starts and says so
        logging.exception("The model %s cannot be loaded", model)
        return None, f"The model `{model}` cannot be loaded. Files can still be verified and compared."
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu"), ""


def prepare(pipe: NoisedDiffusionClassifierPipeline | None, image: PIL.Image.Image | None) -> PIL.Image.Image:
    """The picture to certify, made from a visitor's image; raises a message for the visitor if that is impossible."""
    if pipe is None:
        raise visitor_error("The model of this page could not be loaded, so nothing can be certified.")
    if image is None:
        raise visitor_error("The picture is empty: draw or choose a digit first.")
    try:
        size = pipe.denoiser.image_size or image.size[::-1]
        return model_picture(image, pipe.unet.config.in_channels, size)
    except ValueError as error:
        raise visitor_error(str(error)) from None


def visitor_error(message: str) -> gr.Error:
    """An error that shows the visitor a message and leaves no traceback in the log."""
    return gr.Error(message, print_exception=False, title="This does not work")


def checked(name: str, value, low: float, high: float) -> float:
    """A slider's value, checked: through the API gradio also accepts NaN and true."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise visitor_error(f"{name} must be a number from {low:g} to {high:g}, got {str(value)[:20]}.")
    return value


def certify(pipe: NoisedDiffusionClassifierPipeline | None, image: PIL.Image.Image | None, sigma, wanted, copies):
    """Certify a picture; after each step yield status, figure, copies, download link and the certificate so far."""
    picture = prepare(pipe, image)
    sigma = float(checked("Sigma", sigma, *SIGMAS))
    wanted = float(checked("The radius to prove", wanted, *RADII))
    copies = int(checked("The number of copies", copies, *COPIES))
    largest = largest_provable(sigma, certifying.ALPHA, "mixture", copies)
    if wanted > largest:
        gr.Warning(
            f"{copies:,} copies at sigma {sigma:g} prove a radius of at most {largest:.2f}, less than you want."
        )
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
                end = "The radius you want is proved."
            elif done == copies:
                end = "All copies have voted; the radius you want is not proved."
            elif progress.out_of_time:
                end = f"The time limit of {certifying.SECONDS:g} seconds is reached; this is what is proved."
            result = "not proved yet" if certificate.abstained else f"proved within radius {proved:.3f}"
            status = (
                f"## {names[certificate.candidate]}: {result}\n"
                f"{done:,} noisy copies, {certificate.evaluations:,} network evaluations. {end}"
            )
            figure = progress_figure(progress.radii, wanted, progress.votes, certificate.candidate, names)
            record = certificate.to_dict()
            yield status, figure, shown, download_link(json.dumps(record, indent=2)), record
    except ValueError as error:
        raise visitor_error(str(error)) from None
    except Exception:
        logging.exception("A certification failed")
        raise visitor_error("The certification failed. You can try again.") from None


def verify(path: str | None, record: dict | None) -> tuple[str, dict | None]:
    """The verdict on an uploaded certificate, and the certificate to compare: the uploaded one if it is valid."""
    if path is None:
        return "", record
    try:
        certificate = read_certificate(path)
    except ValueError as error:
        return f"**Not valid.** {error}", record
    return verdict(certificate), certificate.to_dict() if certificate.verify() else record


def compare(path: str | None, record: dict | None) -> tuple[str, str]:
    """Tables and a figure of a run's report, by default the bundled one, with the visitor's certificate among them."""
    certificate = Certificate.from_dict(record) if record else None
    try:
        runs = read_runs(path or HERE / "report.json")[:5]
    except ValueError as error:
        return str(error), ""
    text = "\n\n".join(compare_with_run(run, certificate) for run in runs)
    if certificate is None:
        text += "\n\nYou have no certificate yet: make one in the first tab, or verify one in the second."
        return text, comparison_figure(runs, None)
    return text, comparison_figure(runs, certificate.radius)


def build(model: str | Path) -> gr.Blocks:
    """The page for a model.

    Args:
        model: Folder or Hub id.
    """
    pipe, problem = load(model)
    sketches = pipe is None or pipe.unet.config.in_channels == 1
    samples = [PIL.Image.open(path).copy() for path in sorted(HERE.glob("digits/*.png"))] if sketches else []

    def run(source, sketch, chosen, sigma, wanted, copies):
        image = chosen
        if source == "draw":
            image = sketch["composite"] if sketch else None
        yield from certify(pipe, image, sigma, wanted, copies)

    def begin():
        status = "Starting, or waiting for other visitors ..."
        return status, "", "", "", None, gr.Button(interactive=False), gr.Button(interactive=True)

    def rest():
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def choose(path):
        if path is None:
            return None, ""
        try:
            image = read_picture(path)
        except ValueError as error:
            raise visitor_error(str(error)) from None
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
                    upload = gr.File(label="Picture (at most 5 MB)", elem_id="picture", height=140)
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
                with gr.Accordion("Noise, radius, copies", open=False, elem_id="settings"):
                    wanted = gr.Slider(
                        *RADII, 0.5, step=0.05, label="Radius to prove (l2, pixels from 0 to 1)", elem_id="wanted"
                    )
                    sigma = gr.Slider(
                        *SIGMAS,
                        0.25,
                        step=0.05,
                        label="Noise of the copies (sigma)",
                        info="More noise can prove larger radii, but for fewer pictures. The digits model is fastest "
                        "at 0.25, 0.5 and 1.",
                        elem_id="sigma",
                    )
                    copies = gr.Slider(*COPIES, 1000, step=100, label="Noisy copies, at most", elem_id="copies")
            with gr.Column(min_width=320):
                status = gr.Markdown("## Draw a digit and press Certify", elem_id="status")
                download = gr.HTML(elem_id="download")
                figure = gr.HTML(elem_id="figure")
                shown = gr.HTML(elem_id="shown")
                gr.Markdown(MEANING)
        with gr.Tab("Verify"):
            gr.Markdown(
                "The label and the radius of a certificate are recomputed from its votes. This detects edited files. "
                "To check the votes themselves, repeat the certification with the same model, image and seed."
            )
            file = gr.File(label="Certificate (JSON)", file_types=[".json"], elem_id="file")
            judgement = gr.Markdown(elem_id="verdict")
        with gr.Tab("Compare") as compare_tab:
            gr.Markdown(
                "Certified accuracy: the share of a run's images that are classified correctly and certified at a "
                "radius. The run shown first is the digits model on 100 test digits, with 500 copies each."
            )
            report = gr.File(
                label="report.json of another run, by diffusers_ndc.evaluation", file_types=[".json"], height=140
            )
            curves = gr.HTML(elem_id="curves")
            table = gr.Markdown(elem_id="table")

        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [status, figure, shown, download, kept]
        settings = [source, sketch, chosen, sigma, wanted, copies]
        began = go.click(begin, None, [*outputs, go, stop], queue=False, scroll_to_output=True, **hidden)
        running = began.then(
            run, settings, outputs, concurrency_limit=VISITORS, show_progress="hidden", api_name="certify"
        )
        # after Stop, an error or the end; running it twice does no harm
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
