"""The app in `examples/space` without a browser: its handlers, its interface for programs, and how it is deployed."""

import base64
import json
import re
import sys
from types import SimpleNamespace
from urllib.request import urlopen

import PIL.Image
import PIL.ImageOps
import pytest
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet
from helpers.space import DIGITS, SPACE
from helpers.space import address as address
from helpers.space import network_calls as network_calls
from helpers.space import site as site

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline
from diffusers_ndc.app import attacking, limits
from diffusers_ndc.app.models import MODELS


@pytest.fixture(scope="module")
def handlers(site):
    """The handlers, with the digits model loaded."""
    assert MODELS.load_own(site.model, "cpu") == ""
    from diffusers_ndc.app import handlers

    return handlers


@pytest.fixture(scope="module")
def reading(handlers):
    from diffusers_ndc.app import reading

    return reading


@pytest.fixture(scope="module")
def one():
    return PIL.Image.open(DIGITS[1])


@pytest.fixture(scope="module")
def sketch(one):
    """A digit as the sketchpad gives it: large, black on white."""
    return PIL.ImageOps.invert(one.resize((280, 280), PIL.Image.Resampling.BICUBIC)).convert("RGBA")


@pytest.fixture(scope="module")
def frames(handlers, sketch):
    """What the page shows while a digit is certified with a radius of 0.2."""
    return list(handlers.certify("", sketch, 0.2, 100, True, 0.25))


def test_names_of_classes_are_no_markdown(handlers, frames):
    from diffusers_ndc.app.certifying import Progress

    certificate = Certificate.from_dict(frames[-1][4])
    names = {1: "<b>![x](//y)</b>\n# " + "z" * 10_000}
    status = handlers.status_of(Progress(certificate, {1: 40}, [(40, 0.2)], False), 0.2, 100, names)
    assert status.startswith(r"## \<b\>\!\[x\]\(//y\)\</b\> \# z: proved within")


def test_what_announces_a_start_goes_when_nothing_comes_of_it(handlers):
    from diffusers_ndc.app import buttons

    status, attempts, *_ = buttons.after(None, buttons.STARTING, buttons.STARTING.removeprefix("## "))
    assert (status, attempts) == (buttons.CHOOSE, "")
    kept = buttons.after(None, "## 4: proved", "<div>")
    assert [type(one) for one in kept[:2]] == [type(buttons.gr.skip())] * 2


def test_the_page_streams_and_its_download_verifies(frames, reading, site, tmp_path):
    status, figure, copies, link, record, _ = frames[-1]
    assert len(frames) >= 2 and status.startswith("## 1: proved within radius 0.2") and "is proved." in status
    assert "The radius you want" not in frames[0][0]
    assert "<svg" in figure and frames[0][1] != figure and copies.count("<img") == 9
    saved = tmp_path / "certificate.json"
    saved.write_bytes(base64.b64decode(re.search(r"base64,([^\"]*)", link)[1]))
    text, at_hand = reading.verify(str(saved))
    assert text.startswith("**Valid.** Class 1") and at_hand == record
    table, curves = reading.compare(site.run_folders(), None, record)
    assert table.count("Your certificate's radius") == 3 and "<svg" in curves


def test_an_attack_shows_each_picture_and_the_slider_has_its_changes(handlers, frames, monkeypatch):
    monkeypatch.setattr(attacking, "MULTIPLES", (1.0,))
    monkeypatch.setattr(attacking, "FURTHER", ())
    *_, record, picture = frames[-1]
    shown, found = list(handlers.break_it("", record, picture))[-1]
    assert "just inside the radius" in shown and "✓ kept: 1" in shown and shown.count("<img") == 2
    ((multiple, values),) = found
    assert multiple == 1 and values.shape == (1, 28, 28)
    pictures, words = handlers.show_size("", record, picture, found, 4)
    assert pictures.count("<img") == 3 and "4 times the radius 0.2" in words and "Nothing is proved" in words
    pictures, words = handlers.show_size("", record, picture, None, 0.5)
    assert "Try to break it first" in pictures and "inside the radius" in words


def test_there_is_nothing_to_attack_without_a_certificate(handlers, frames, network_calls):
    from gradio import Error

    settings = {"sigma": 0.25, "alpha": 0.001, "bound": "mixture", "image_hash": "0" * 32}
    abstained = Certificate.from_counts({7: 20}, {7: 5, 1: 15}, **settings).to_dict()
    picture = frames[-1][-1]
    for record, certified in (
        (None, None),
        (frames[-1][4], None),
        ("x", None),
        (abstained, picture),
    ):
        with pytest.raises(Error, match="certif|Nothing is proved"):
            next(handlers.break_it("", record, certified))
        assert handlers.show_size("", record, certified, None, 1)[0] == ""
    assert not network_calls


def test_the_noise_follows_from_the_radius_unless_it_is_chosen(handlers):
    assert "sigma 0.25** (chosen for this radius" in handlers.sigma_in_words("", 0.45, 1000, False, 1.0)
    assert "sigma 0.5** (chosen for this radius" in handlers.sigma_in_words("", 0.9, 1000, False, 0.1)
    assert "sigma 0.3** (your choice" in handlers.sigma_in_words("", 0.9, 1000, True, 0.3)
    assert "less than you want" in handlers.sigma_in_words("", 0.9, 1000, True, 0.3)
    assert "0.5" == f"{handlers.chosen_sigma(MODELS.find(''), 0.9, 1000, False, 0.1):g}"


def test_a_radius_that_cannot_be_proved_is_announced_and_not_claimed(handlers, one, monkeypatch):
    said = []
    monkeypatch.setattr(handlers.gr, "Warning", said.append)
    monkeypatch.setattr(limits, "SECONDS", 0)
    ((status, *_),) = handlers.certify("", one, 2.0, 100, True, 0.25)
    assert "at most a radius of 0.3" in said[0] and "The time limit is reached" in status


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((0.5, 100, True, float("nan")), "Sigma must be .*, got nan"),
        ((0.5, 100, True, 5.0), "Sigma must be .*, got 5"),
        ((-1, 100, False, 0.25), "radius to prove must be .*, got -1"),
        ((True, 100, False, 0.25), "radius to prove must be .*, got True"),
        (("0.5", 100, False, 0.25), "radius to prove must be .*, got 0.5"),
        ((0.5, 10**9, False, 0.25), "copies must be .*, got 10"),
        ((10**400, 100, False, 0.25), "radius to prove must be .*, got 10"),
        ((0.5, None, False, 0.25), "copies must be .*, got None"),
    ],
)
def test_settings_out_of_range_are_refused(handlers, one, network_calls, settings, words):
    from gradio import Error

    with pytest.raises(Error, match=words):
        next(handlers.certify("", one, *settings))
    with pytest.raises(Error, match="size of the change"):
        handlers.show_size("", None, None, None, settings[0] if settings[0] is True else float("inf"))
    assert not network_calls


def test_nothing_drawn_and_nothing_loaded(handlers, one, monkeypatch):
    from gradio import Error

    settings = (0.5, 100, False, 0.25)
    with pytest.raises(Error, match="empty"):
        next(handlers.certify("", None, *settings))
    with pytest.raises(Error, match="is not loaded any more"):
        next(handlers.certify("a/b", one, *settings))
    monkeypatch.setattr(MODELS, "own", None)
    with pytest.raises(Error, match="could not be loaded"):
        next(handlers.certify("", one, *settings))


def test_an_unforeseen_failure_shows_no_insides(handlers, one, monkeypatch):
    from gradio import Error

    def broken(*_):
        raise RuntimeError("/secret/path")
        yield

    monkeypatch.setattr(handlers.certifying, "certify", broken)
    with pytest.raises(Error, match="failed") as caught:
        next(handlers.certify("", one, 0.5, 100, False, 0.25))
    assert "secret" not in str(caught.value) and not caught.value.print_exception


def test_a_drawing_is_read_once_however_many_layers_a_request_names(handlers, tmp_path):
    import gradio as gr

    from diffusers_ndc.app.certify_tab import certify_tab

    with gr.Blocks():
        sketch = certify_tab({}, sketches=True).sketch
    drawing, damaged = tmp_path / "drawing.png", tmp_path / "damaged.png"
    PIL.Image.new("L", (280, 280), 255).save(drawing)
    damaged.write_bytes(b"would be an error if it were read")
    whole, part = ({"path": str(path), "meta": {"_type": "gradio.FileData"}} for path in (drawing, damaged))
    read = sketch.preprocess(sketch.data_model(background=part, layers=[part] * 1000, composite=whole))
    assert read["composite"].size == (280, 280) and read["layers"] == [] and read["background"] is None
    assert sketch.preprocess(None) is None


def test_bad_files_get_a_text(reading, frames, tmp_path):
    path = tmp_path / "file.json"
    path.write_text("no JSON")
    kept = frames[-1][4]
    assert reading.verify(str(path)) == ("**Not valid.** The file is not JSON.", None)
    assert reading.verify(None) == ("", None)
    path.write_text(json.dumps({**kept, "radius": 1.0}))
    text, at_hand = reading.verify(str(path))
    assert text.startswith("**Not valid.**") and at_hand is None
    refused = "The file is no report.json of a run: it has no certified accuracy by radius."
    assert reading.compare([], str(path), kept) == (refused, "")
    assert "no run to compare with" in reading.compare([], None, None)[0]


def test_the_runs_are_shown_in_a_frame_that_may_do_nothing_else(site, tmp_path):
    from diffusers_ndc.app.runs import runs_frame

    frame = runs_frame(site.run_folders())
    assert frame.count("<") == 2 and 'sandbox="allow-scripts"' in frame and "sigma-0.25" in frame
    assert "no runs to show" in runs_frame([]) and "no runs to show" in runs_frame([tmp_path])


def opening_of(site, **query):
    from diffusers_ndc.app.opening import Opening

    opening = Opening(site, site.pictures())
    return opening, opening.look(SimpleNamespace(query_params=query))


@pytest.mark.parametrize("place", ["/etc", "../mnist", "examples/mnist/unet", "nobody/has-this-model"])
def test_a_link_to_a_folder_or_an_unknown_model_is_refused_and_the_page_opens(handlers, site, place):
    _, (key, source, sample, note, *_) = opening_of(site, model=place)
    assert (key, source) == ("", "sample") and sample is not None
    assert ("NAMESPACE/NAME" in note.value or "cannot be loaded" in note.value) and "shows its own" in note.value


def test_a_page_without_links_refuses_them(handlers, site, monkeypatch):
    from diffusers_ndc.app import Site

    _, (_, _, _, note, *_) = opening_of(Site(site.model, links=False), model="a/b")
    assert "does not load other models" in note.value
    _, (key, _, _, note, *_) = opening_of(Site(site.model, links=False), model=site.model)
    assert key == "" and note.value == ""


def test_the_opening_certifies_its_sample(handlers, site):
    opening, (key, source, sample, *_, picture, noise) = opening_of(site)
    assert source == "sample" and "<img" in picture and "sigma 0.25" in noise
    status, *_, go, stop, attack = next(opening.run(key, sample))
    assert status.startswith("## 4: ") and (go.interactive, stop.interactive, attack.interactive) == (
        True,
        True,
        False,
    )
    ((status, *_, stop, attack),) = opening.run(key, None)
    assert "press Certify" in status and not stop.interactive and not attack.interactive


def test_an_unknown_model_is_a_message_on_a_page_that_works(site, handlers, tmp_path):
    from diffusers_ndc.app import Site, build

    demo = build(Site(str(tmp_path)))
    assert any("cannot be loaded" in str(block.value) for block in demo.blocks.values() if hasattr(block, "value"))
    _, (_, _, sample, *_) = opening_of(Site(str(tmp_path)))
    assert sample is None
    MODELS.load_own(site.model, "cpu")


def test_a_model_of_colour_pictures_has_a_page_without_a_sketchpad(site, handlers, tmp_path):
    from diffusers_ndc.app import Site, build

    unet = tiny_unet(in_channels=3, out_channels=3)
    pipe = NoisedDiffusionClassifierPipeline(
        unet, DDPMScheduler(), id2label={0: "cat", 1: "dog", 2: "owl"}, null_class=3
    )
    pipe.save_pretrained(tmp_path)
    demo = build(Site(str(tmp_path), device="cpu"))
    tabs = {block.label: block.visible for block in demo.blocks.values() if type(block).__name__ == "Tab"}
    assert (tabs["Sample"], tabs["Draw"], tabs["Upload"]) == (False, False, True)
    status, *_ = next(handlers.certify("", PIL.Image.new("RGB", (50, 40), "red"), 0.5, 100, False, 0.25))
    assert "20 noisy copies" in status and re.match("## (cat|dog|owl): ", status)
    MODELS.load_own(site.model, "cpu")


def test_the_interface_for_programs(site, address, capfd):
    """Values out of range are refused, and the page goes on; descriptions are those of the docstrings."""
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    digit = handle_file(DIGITS[1])
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/certify_picture", "/attack_picture", "/verify_certificate"}
    for settings, words in (((0.2, 10**6), "1000000"), ((9, 100), "got 9"), ((float("nan"), 100), "nan|JSON")):
        with pytest.raises(Exception, match=words):
            client.predict(digit, *settings, api_name="/certify_picture")
    with pytest.raises(Exception, match="empty"):
        client.predict(None, 0.2, 100, api_name="/certify_picture")
    result = client.predict(digit, 0.2, 100, api_name="/certify_picture")
    assert result["class"] == "1" and 0.2 <= result["radius"] < 0.4
    assert client.predict(result["certificate"], api_name="/verify_certificate").startswith("**Valid.** Class 1")
    edited = {**result["certificate"], "radius": 3.0}
    assert client.predict(edited, api_name="/verify_certificate").startswith("**Not valid.**")
    attacked = client.predict(digit, 0.2, api_name="/attack_picture")
    assert attacked["class"] == "1" and attacked["outcome"] != "fallen" and attacked["distance"] < 0.2
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_command_starts_the_app(site, monkeypatch, tmp_path, capsys):
    from diffusers_ndc.app import server
    from diffusers_ndc.command import main

    started = []
    monkeypatch.setattr(server, "launch", lambda site, **settings: started.append((site, settings)))
    runs = [str(folder) for folder in site.run_folders()]
    words = ["app", "--model", site.model, "--samples", str(SPACE / "digits"), "--port", "7999", "--runs", *runs]
    assert main([*words, "--no-links"]) == 0
    ((given, settings),) = started
    assert given.model == site.model and list(given.pictures()) == list("0123456789") and not given.links
    assert given.run_folders() == site.run_folders()
    assert settings == {"server_name": "127.0.0.1", "server_port": 7999, "share": False}
    for wrong, said in (
        (["--port", "0"], "--port"),
        (["--samples", "no"], "--samples"),
        (["--runs", "no"], "--runs"),
        (["--opening", "no"], "--opening"),
    ):
        with pytest.raises(SystemExit):
            main(["app", "--model", site.model, *wrong])
        assert f"`{said}` must" in capsys.readouterr().err
    monkeypatch.delenv("NDC_MODEL", raising=False)
    with pytest.raises(SystemExit):
        main(["app"])


def test_on_zero_gpu_a_call_names_its_time(monkeypatch):
    pytest.importorskip("gradio")
    from diffusers_ndc.app.gpu import on_gpu
    from diffusers_ndc.app.handlers import seconds_to_certify

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lambda duration: lambda function: duration))
    duration = on_gpu(seconds_to_certify)(None)
    times = [duration("", None, 0.5, copies, False, 0.25) for copies in (100, 1000, 2000, float("nan"), "x", 10**9)]
    assert times == sorted(times) and times[0] == 20 and times[-1] == 115
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert on_gpu(seconds_to_certify)(len) is len


def test_the_interface_is_tools_of_an_mcp_server(site, address):
    pytest.importorskip("mcp", reason="needs the extra 'space'")
    with urlopen(f"{address}gradio_api/mcp/schema") as answer:
        tools = {tool["name"]: tool for tool in json.load(answer)}
    assert len(tools) == 3
    (certify,) = [tool for name, tool in tools.items() if name.endswith("certify_picture")]
    assert "prove an l2 radius" in certify["description"] and "0.001" in certify["description"]
    described = certify["inputSchema"]["properties"]
    assert set(described) == {"picture", "radius", "copies"} and "from 0.05 to 2" in described["radius"]["description"]
