"""The tabs for certificates and for whole runs."""

from dataclasses import dataclass

import gradio as gr

from .texts import RUNS, VERIFY


@dataclass(frozen=True)
class OtherTabs:
    """The components of these tabs that handlers read or write."""

    file: gr.File
    judgement: gr.Markdown
    runs_tab: gr.Tab
    frame: gr.HTML
    report: gr.File
    table: gr.Markdown
    curves: gr.HTML


def other_tabs() -> OtherTabs:
    """Build the tabs."""
    with gr.Tab("Verify"):
        gr.Markdown(VERIFY)
        file = gr.File(label="Certificate (JSON)", file_types=[".json"], elem_id="file")
        judgement = gr.Markdown(elem_id="verdict")
    with gr.Tab("Runs") as runs_tab:
        gr.Markdown(RUNS)
        frame = gr.HTML("<p>Reading the runs ...</p>", elem_id="runs")
        gr.Markdown("### Your certificate among them")
        with gr.Row():
            with gr.Column(min_width=320):
                table = gr.Markdown(elem_id="table")
            with gr.Column(min_width=320):
                curves = gr.HTML(elem_id="curves")
                report = gr.File(
                    label="report.json of another run, by diffusers-ndc evaluate", file_types=[".json"], height=140
                )
    return OtherTabs(file, judgement, runs_tab, frame, report, table, curves)
