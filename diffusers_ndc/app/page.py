"""The page: its parts, and which handler an event calls."""

from dataclasses import dataclass

import gradio as gr
import PIL.Image

from . import reading, runs
from .buttons import STARTING, after, working
from .certify_tab import CertifyTab, certify_tab
from .endpoints import add_endpoints
from .handlers import break_it, certify, show_size, sigma_in_words
from .limits import VISITORS
from .models import MODELS
from .opening import Opening
from .other_tabs import OtherTabs, other_tabs
from .site import Site
from .style import TAKE_BRUSH
from .texts import TITLE


HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = {**HIDDEN, "queue": False}
WORK = {**HIDDEN, "concurrency_limit": VISITORS}


@dataclass(frozen=True)
class States:
    """What the server remembers of a visitor.

    Args:
        key: Key of the model.
        source: Tab that the picture comes from: `sample`, `draw` or `upload`.
        sample: The chosen sample.
        uploaded: The uploaded picture.
        record: The certificate.
        picture: The certified picture.
        verified: A valid certificate that was uploaded, to compare with runs until the visitor makes another one.
        found: The pictures that attacks found, by their distance in radii.
    """

    key: gr.State
    source: gr.State
    sample: gr.State
    uploaded: gr.State
    record: gr.State
    picture: gr.State
    verified: gr.State
    found: gr.State


def build(site: Site) -> gr.Blocks:
    """The page of an app, with its model loaded.

    Args:
        site: What the app is about.
    """
    problem = MODELS.load_own(site.model, site.device)
    own, samples = MODELS.own, site.pictures()
    sketches = own is None or own.sketches
    first = "sample" if samples else "draw" if sketches else "upload"
    with gr.Blocks(title="Certified before your eyes", delete_cache=(600, 3600)) as demo:
        gr.Markdown(TITLE)
        about = gr.Markdown(f"**{problem}**" if problem else "", visible=bool(problem), elem_id="about")
        states = States(gr.State(""), gr.State(first), *(gr.State() for _ in range(6)))
        with gr.Tab("Certify"):
            tab = certify_tab(samples, sketches)
        others = other_tabs()
        work = _connect_work(demo, tab, states, Opening(site, samples), about)
        _connect_pictures(demo, tab, states, samples)
        _connect_sizes(tab, states, work)
        _connect_others(others, states, site)
        add_endpoints()
    return demo.queue(max_size=16)


def _chosen(
    source: str, sample: PIL.Image.Image | None, sketch: dict | None, uploaded: PIL.Image.Image | None
) -> PIL.Image.Image | None:
    """The picture of the tab that the visitor looks at."""
    drawn = sketch["composite"] if sketch else None
    return {"sample": sample, "draw": drawn}.get(source, uploaded)


def _connect_work(demo: gr.Blocks, tab: CertifyTab, states: States, opening: Opening, about: gr.Markdown) -> list:
    """Certify and attack: at the opening, and by the buttons. Returns the events that compute."""
    outputs = [tab.status, tab.figure, tab.shown, tab.download, states.record, states.picture]
    results = [*outputs, states.verified, states.found, tab.attempts, tab.changed, tab.size_words]
    buttons = [tab.go, tab.stop, tab.attack]
    settings = [tab.wanted, tab.copies, tab.own, tab.sigma]

    def run(key, source, sample, sketch, uploaded, *settings):
        yield from certify(key, _chosen(source, sample, sketch, uploaded), *settings)

    def begin():
        nothing = ["", "", "", None, None, None, None, "", "", "There is no certificate yet."]
        return STARTING, *nothing, *working()

    shown = [about, tab.seen, tab.sample_tab, tab.draw_tab, tab.sample_preview, tab.noise]
    looked = [states.key, states.source, states.sample, *shown]
    # without a limit: while a link's model is loaded, the page opens for others
    loaded = demo.load(opening.look, None, looked, concurrency_limit=None, **HIDDEN)
    opened = loaded.then(opening.run, [states.key, states.sample], [*outputs, *buttons], **WORK)
    began = tab.go.click(begin, None, [*results, *buttons], cancels=[opened], scroll_to_output=True, **AT_ONCE)
    inputs = [states.key, states.source, states.sample, tab.sketch, states.uploaded, *settings]
    certified = began.then(run, inputs, outputs, **WORK)
    attack_began = tab.attack.click(
        lambda: (STARTING.removeprefix("## "), None, *working()),
        None,
        [tab.attempts, states.found, *buttons],
        cancels=[opened],
        **AT_ONCE,
    )
    broken = attack_began.then(
        break_it, [states.key, states.record, states.picture], [tab.attempts, states.found], **WORK
    )
    work = [opened, certified, broken]
    # After the end, an error, or Stop; running it twice does no harm. The opening run sets the buttons itself: what
    # follows it would follow also when it is cancelled, and then disable the Stop of the visitor's own run.
    seen, left = [states.record, tab.status, tab.attempts], [tab.status, tab.attempts, *buttons]
    for event in (certified, broken):
        event.then(after, seen, left, **AT_ONCE)
        event.failure(after, seen, left, **AT_ONCE)
    stopped = tab.stop.click(after, seen, left, cancels=work, **AT_ONCE)
    return [*work, stopped]


def _connect_pictures(demo: gr.Blocks, tab: CertifyTab, states: States, samples: dict) -> None:
    """Choosing a sample, drawing, and uploading."""
    pictures = list(samples.values())

    def choose(key: str, event: gr.SelectData) -> tuple[PIL.Image.Image, str]:
        _, preview = reading.preview(key, pictures[event.index])
        return pictures[event.index], preview

    tab.gallery.select(choose, states.key, [states.sample, tab.sample_preview], **HIDDEN)
    tab.upload.change(reading.upload, [states.key, tab.upload], [states.uploaded, tab.upload_preview], **HIDDEN)
    for name, one in (("sample", tab.sample_tab), ("draw", tab.draw_tab), ("upload", tab.upload_tab)):
        one.select(lambda name=name: name, None, states.source, **AT_ONCE)
    tab.draw_tab.select(None, js=TAKE_BRUSH)
    tab.sketch.clear(None, js=TAKE_BRUSH, queue=False)


def _connect_sizes(tab: CertifyTab, states: States, work: list) -> None:
    """The noise that follows from the radius, and the changes of a size."""
    settings = [states.key, tab.wanted, tab.copies, tab.own, tab.sigma]
    for setting in settings[1:]:
        setting.change(sigma_in_words, settings, tab.noise, trigger_mode="always_last", **AT_ONCE)
    given = [states.key, states.record, states.picture, states.found, tab.size]
    changed = [tab.changed, tab.size_words]
    tab.size.change(show_size, given, changed, trigger_mode="always_last", **AT_ONCE)
    for event in work:
        event.then(show_size, given, changed, **AT_ONCE)


def _connect_others(others: OtherTabs, states: States, site: Site) -> None:
    """Verifying certificates, and showing runs."""
    folders = site.run_folders()

    def compare(path, record, verified):
        return reading.compare(folders, path, verified or record)

    compared = [[others.report, states.record, states.verified], [others.table, others.curves]]
    others.file.change(reading.verify, others.file, [others.judgement, states.verified], **HIDDEN)
    others.report.change(compare, *compared, **HIDDEN)
    opened = others.runs_tab.select(lambda: runs.runs_frame(folders), None, others.frame, **HIDDEN)
    opened.then(compare, *compared, **HIDDEN)
