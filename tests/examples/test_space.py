"""The app in `examples/space` without a browser: what it certifies, rejects and verifies, and how it is deployed."""

import base64
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
import pytest
import torch
from helpers.networks import tiny_unet
from helpers.space import DIGITS, SPACE, certifying, deploy, files, pictures
from helpers.space import address as address
from helpers.space import app as app
from helpers.space import network_calls as network_calls

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline, SmoothedClassifier
from diffusers_ndc.common.images import content_hash


@pytest.fixture(scope="module")
def digits_pipe():
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(SPACE.parent / "mnist")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def one():
    return PIL.Image.open(DIGITS[1])


@pytest.fixture(scope="module")
def certificate():
    """40 of 40 votes for class 7."""
    return Certificate.from_counts({7: 20}, {7: 40}, sigma=0.25, alpha=0.001, bound="mixture", seed=1, evaluations=9)


def sketch_of(digit, mode="RGBA", invert=True):
    """A digit as the sketchpad gives it: large, black on white."""
    large = digit.resize((280, 280), PIL.Image.Resampling.BICUBIC)
    return (PIL.ImageOps.invert(large) if invert else large).convert(mode)


def test_the_radius_grows_until_the_wanted_one_is_proved(digits_pipe, one):
    steps = list(certifying.certify(digits_pipe, one, sigma=0.25, wanted=0.2, copies=200))
    copies, radii = zip(*steps[-1].radii, strict=True)
    assert len(steps) == len(copies) >= 2 and list(copies) == sorted(set(copies)) and list(radii) == sorted(radii)
    assert radii[-2] < 0.2 <= radii[-1]
    best = Certificate.from_dict(json.loads(json.dumps(steps[-1].certificate.to_dict())))
    assert (
        best.verify() and best.label == 1 and best.radius == radii[-1] and sum(steps[-1].votes.values()) == copies[-1]
    )


def test_who_stops_keeps_the_certificate_and_ends_the_work(digits_pipe, one, network_calls):
    growing = certifying.certify(digits_pipe, one, sigma=0.25, wanted=2.0, copies=2000)
    first = next(growing)
    growing.close()
    done = network_calls["all"]
    assert done > 0 and first.certificate.verify() and first.radii == [(20, first.certificate.radius)]
    assert next(growing, None) is None and network_calls["all"] == done


def test_the_best_certificate_is_kept_with_all_that_was_spent(certificate):
    later = Certificate.from_counts({7: 20}, {7: 41, 1: 19}, 0.25, 0.001, "mixture", seed=1, evaluations=12)
    assert later.radius < certificate.radius
    pipe = SimpleNamespace(certify_iter=lambda *_, **__: iter([certificate, later]))
    *_, last = certifying.certify(pipe, None, sigma=0.25, wanted=2.0, copies=60)
    assert last.radii == [(40, certificate.radius), (60, certificate.radius)]
    assert last.certificate.evaluations == 12 and last.certificate.counts == {7: 40} and last.certificate.verify()
    assert last.votes == {7: 41, 1: 19}


def test_a_certification_has_an_end_in_time(digits_pipe, one, monkeypatch):
    monkeypatch.setattr(certifying, "SECONDS", 0)
    (only,) = certifying.certify(digits_pipe, one, sigma=0.25, wanted=2.0, copies=2000)
    assert only.out_of_time and only.certificate.n == 20


def test_the_copies_that_are_shown_are_the_first_that_voted(digits_pipe, one):
    certificate = next(certifying.certify(digits_pipe, one, sigma=0.25, wanted=2.0, copies=100)).certificate
    image, noisy, denoised = certifying.first_copies(digits_pipe, one, certificate, 4)
    assert content_hash(image) == certificate.image_hash
    seen = []

    def recording(images):
        seen.append(images)
        return torch.tensor([[0.0, 1.0]]).expand(len(images), -1)

    next(SmoothedClassifier(recording, 0.25).certify_iter(image, n0=20, n=20, seed=certificate.seed))
    assert torch.equal(noisy, seen[-1][:4])
    assert denoised.shape == noisy.shape and (denoised - image).square().mean() < (noisy - image).square().mean() / 2


def test_light_and_dark_sketches_become_the_same_centred_digit(digits_pipe):
    for number in (1, 2):
        digit = PIL.Image.open(DIGITS[number])
        dark, light = (
            pictures.model_picture(sketch_of(digit, "RGB", invert), 1, (28, 28)) for invert in (True, False)
        )
        assert np.abs(np.asarray(dark, dtype=int) - np.asarray(light, dtype=int)).max() <= 2
        assert dark.size == (28, 28) and dark.mode == "L"
        ink = np.asarray(dark, dtype=float)
        rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        for axis in (0, 1):
            assert abs((np.indices(ink.shape)[axis] * ink).sum() / ink.sum() - 13.5) <= 0.6
        assert digits_pipe(dark, seed=0).labels == [number]


def test_a_stroke_in_a_corner_and_ink_on_a_transparent_ground():
    image = PIL.Image.new("RGBA", (280, 280))
    PIL.ImageDraw.Draw(image).line([(20, 20), (20, 60)], fill=(0, 0, 0, 255), width=6)
    picture = np.asarray(pictures.model_picture(image, 1, (28, 28)))
    rows, columns = picture.nonzero()
    assert picture.max() == 255 and abs(rows.mean() - 13.5) <= 0.5 and abs(columns.mean() - 13.5) <= 0.6


def test_a_digit_of_mnist_stays_as_it_is_and_colour_models_get_colours(one):
    assert np.array_equal(np.asarray(pictures.model_picture(one, 1, (28, 28))), np.asarray(one))
    photo = pictures.model_picture(PIL.Image.new("RGB", (300, 200), "red"), 3, (32, 32))
    assert photo.mode == "RGB" and photo.size == (32, 32) and photo.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("colour", ["white", "black"])
def test_an_empty_sketch_is_refused(colour):
    with pytest.raises(ValueError, match="empty"):
        pictures.model_picture(PIL.Image.new("RGBA", (280, 280), colour), 1, (28, 28))


@pytest.fixture(params=["text", "truncated", "huge"])
def bad_picture(request, tmp_path):
    path = tmp_path / "digit.png"
    if request.param == "text":
        path.write_text("no picture")
    elif request.param == "truncated":
        path.write_bytes(DIGITS[0].read_bytes()[:120])
    else:
        PIL.Image.new("1", (13_000, 13_000)).save(path)
    return path, "too large" if request.param == "huge" else "not a picture"


def test_bad_pictures_are_refused_in_words(bad_picture):
    path, words = bad_picture
    with pytest.raises(ValueError, match=words) as caught:
        pictures.read_picture(path)
    assert str(path) not in str(caught.value)


EDITS = {
    "radius": ({"radius": 0.9}, "Not valid.*radius 0.9.*its votes prove class 7 within radius 0.2"),
    "label": ({"label": 3}, "Not valid.*label 3.*its votes prove class 7"),
    "votes": ({"counts": {"7": 41}}, "do not fit together"),
    "bound": ({"bound": "wishes"}, "do not fit together"),
    "types": ({"sigma": "<b>0.25</b>"}, "do not fit together"),
    "numbers": ({"n": 10**400, "counts": {"7": 10**400}}, "Not valid"),
    "text": ({"radius": "`<script>`"}, "Not valid"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_certificate_is_not_valid_and_the_reason_is_said(certificate, tmp_path, edit):
    values, words = EDITS[edit]
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificate.to_dict()))
    assert files.verdict(files.read_certificate(path)).startswith("**Valid.** Class 7 and radius 0.2")
    path.write_text(json.dumps({**certificate.to_dict(), **values}))
    assert re.search(words, files.verdict(files.read_certificate(path)))


def test_an_edit_that_the_votes_do_not_show_is_found_out(certificate, tmp_path):
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps({**certificate.to_dict(), "seed": 1234}))
    with pytest.raises(ValueError, match="altered"):
        files.read_certificate(path)


def test_an_abstention_is_valid_and_no_class():
    abstained = Certificate.from_counts({7: 20}, {7: 5, 1: 15}, sigma=0.25, alpha=0.001, bound="mixture")
    assert files.verdict(abstained).startswith("**Valid.** It abstains")


@pytest.mark.parametrize("text", ["", "\x00", "[1", "[" * 100_000, "NaN", "[]", '{"label": 7}', '{"runs": []}'])
def test_files_that_are_neither_certificate_nor_report(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="file|report"):
        files.read_certificate(path)
    with pytest.raises(ValueError, match="file|report"):
        files.read_runs(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not JSON"):
        files.read_json(path)


BUNDLED = SPACE / "report.json"


@pytest.mark.parametrize(
    "edit",
    [
        {"name": 5},
        {"run": {}},
        {"certified_accuracy": []},
        {"certified_accuracy": [{"radius": "0", "share": 1, "low": 1, "high": 1}]},
        {"certified_accuracy": [{"radius": 0, "share": 2, "low": 1, "high": 1}]},
        {"certified_accuracy": [{"radius": float("nan"), "share": 1, "low": 1, "high": 1}]},
        {"certificates": None},
    ],
)
def test_an_edited_report_is_refused(tmp_path, edit):
    report = json.loads(BUNDLED.read_text())
    report["runs"][0].update(edit)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    with pytest.raises(ValueError, match="no report.json"):
        files.read_runs(path)


def test_a_certificate_is_placed_among_the_radii_of_a_run(certificate):
    run = {
        "name": "a `run`",
        "run": {"sigma": 0.25},
        "certificates": 50,
        "certified_accuracy": [
            {"radius": radius, "share": share, "low": share - 0.1, "high": share}
            for radius, share in ((0.0, 0.9), (0.2, 0.8), (0.3, 0.5))
        ],
    }
    text = files.compare_with_run(run, certificate)
    assert "`a run`: 50 images at sigma 0.25" in text and "| 0.3 | 50% | 40% to 50% |" in text
    assert text.endswith("reaches 0.2, like 80% of these images, but not 0.3, which 50% of them reach.")
    assert "Your certificate" not in files.compare_with_run(run, None)
    run["certified_accuracy"] = run["certified_accuracy"][2:]
    assert files.compare_with_run(run, certificate).endswith("is smaller than all of these.")


def test_the_bundled_report_is_that_of_the_run_that_the_readme_names():
    (run,) = files.read_runs(BUNDLED)
    settings = {"limit": 100, "n0": 10, "n": 500, "radii": [0.1, 0.2, 0.25, 0.3, 0.4, 0.5]}
    assert {name: run["run"][name] for name in settings} == settings and run["certificates"] == 100
    options = " ".join(f"--{name} {str(value).strip('[]').replace(',', '')}" for name, value in settings.items())
    assert options in " ".join((SPACE / "README.md").read_text().split())


def test_the_page_streams_and_its_download_verifies(app, digits_pipe, one, tmp_path):
    frames = list(app.certify(digits_pipe, sketch_of(one), 0.25, 0.2, 100))
    status, figure, copies, link, record = frames[-1]
    assert len(frames) >= 2 and status.startswith("## 1: proved within radius 0.2") and "is proved." in status
    assert "The radius you want" not in frames[0][0]
    assert figure.startswith("<img") and frames[0][1] != figure and copies.startswith("<img")
    saved = tmp_path / "certificate.json"
    saved.write_bytes(base64.b64decode(re.search(r"base64,([^\"]*)", link)[1]))
    text, at_hand = app.verify(str(saved), None)
    assert text.startswith("**Valid.** Class 1") and at_hand == record
    table, curves = app.compare(None, record)
    assert "Your certificate's radius" in table and curves.startswith("<img")


def test_a_radius_that_cannot_be_proved_is_announced_and_not_claimed(app, digits_pipe, one, monkeypatch):
    said = []
    monkeypatch.setattr(app.gr, "Warning", said.append)
    monkeypatch.setattr(certifying, "SECONDS", 0)
    ((status, *_),) = app.certify(digits_pipe, one, 0.25, 2.0, 100)
    assert "prove a radius of at most 0.3" in said[0] and "The time limit of 0 seconds is reached" in status


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((float("nan"), 0.5, 100), "Sigma must be .*, got nan"),
        ((5.0, 0.5, 100), "Sigma must be .*, got 5"),
        ((0.25, -1, 100), "radius to prove must be .*, got -1"),
        ((0.25, True, 100), "radius to prove must be .*, got True"),
        ((0.25, "0.5", 100), "radius to prove must be .*, got 0.5"),
        ((0.25, 0.5, 10**9), "copies must be .*, got 10"),
        ((0.25, 0.5, None), "copies must be .*, got None"),
    ],
)
def test_settings_out_of_range_are_refused(app, digits_pipe, one, network_calls, settings, words):
    with pytest.raises(app.gr.Error, match=words):
        next(app.certify(digits_pipe, one, *settings))
    assert not network_calls


def test_nothing_drawn_and_nothing_loaded(app, digits_pipe, one):
    with pytest.raises(app.gr.Error, match="empty"):
        next(app.certify(digits_pipe, None, 0.25, 0.5, 100))
    with pytest.raises(app.gr.Error, match="could not be loaded"):
        next(app.certify(None, one, 0.25, 0.5, 100))


def test_an_unknown_model_is_a_message_on_a_page_that_works(app, tmp_path):
    pipe, problem = app.load("nobody/has-this-model")
    assert pipe is None and "nobody/has-this-model` cannot be loaded" in problem
    demo = app.build(str(tmp_path))
    assert any("cannot be loaded" in str(block.value) for block in demo.blocks.values() if hasattr(block, "value"))


def test_an_unforeseen_failure_shows_no_insides(app, digits_pipe, one, monkeypatch):
    def broken(*_):
        raise RuntimeError("/secret/path")
        yield

    monkeypatch.setattr(certifying, "certify", broken)
    with pytest.raises(app.gr.Error, match="failed") as caught:
        next(app.certify(digits_pipe, one, 0.25, 0.5, 100))
    assert "secret" not in str(caught.value) and not caught.value.print_exception


def test_bad_files_get_a_text(app, certificate, tmp_path):
    path = tmp_path / "file.json"
    path.write_text("no JSON")
    kept = certificate.to_dict()
    assert app.verify(str(path), kept) == ("**Not valid.** The file is not JSON.", kept)
    assert app.verify(None, kept) == ("", kept)
    path.write_text(json.dumps({**kept, "radius": 1.0}))
    text, at_hand = app.verify(str(path), kept)
    assert text.startswith("**Not valid.**") and at_hand == kept
    assert app.compare(str(path), kept) == (
        "The file is no report.json of a run: it has no certified accuracy by radius.",
        "",
    )


def test_a_model_of_colour_pictures_has_a_page_without_a_sketchpad(app, tmp_path):
    from diffusers import DDPMScheduler

    unet = tiny_unet(in_channels=3, out_channels=3)
    NoisedDiffusionClassifierPipeline(unet, DDPMScheduler(), null_class=3).save_pretrained(tmp_path)
    pipe, problem = app.load(tmp_path)
    demo = app.build(tmp_path)
    tabs = {block.label: block.visible for block in demo.blocks.values() if type(block).__name__ == "Tab"}
    assert not problem and tabs["Draw"] is False and tabs["Upload or sample"] is True
    status, *_ = next(app.certify(pipe, PIL.Image.new("RGB", (50, 40), "red"), 0.5, 0.5, 100))
    assert "20 noisy copies" in status


def test_values_out_of_range_by_the_api_are_refused_and_the_page_goes_on(app, address, capfd):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    white = {"background": handle_file(DIGITS[1]), "layers": [], "composite": handle_file(DIGITS[1])}
    for settings, words in (((0.25, 0.5, 10**6), "1000000"), ((0.01, 0.5, 100), "0.01"), ((0.25, 9, 100), "9")):
        with pytest.raises(Exception, match=words):
            client.predict(white, *settings, api_name="/certify")
    capfd.readouterr()  # gradio itself rejects those, and logs it
    with pytest.raises(Exception, match="empty"):
        client.predict({"background": None, "layers": [], "composite": None}, 0.25, 0.2, 100, api_name="/certify")
    status, *_ = client.predict(white, 0.25, 0.2, 100, api_name="/certify")
    assert status.startswith("## 1: proved within radius 0.2")
    assert "Traceback" not in "".join(capfd.readouterr())


ASSEMBLED = {"LICENSE", "README.md", "app.py", "certifying.py", "drawing.py", "files.py", "pictures.py"}
ASSEMBLED |= {"report.json", "requirements.txt", "digits", "diffusers_ndc", "mnist"}


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    return deploy.assemble(tmp_path_factory.mktemp("space"))


def test_the_assembled_folder_is_complete_and_small(assembled):
    assert {path.name for path in assembled.iterdir()} == ASSEMBLED
    inside = {str(path.relative_to(assembled)) for path in assembled.rglob("*") if path.is_file()}
    package = {str(path.relative_to(deploy.REPOSITORY)) for path in deploy.REPOSITORY.glob("diffusers_ndc/**/*.py")}
    assert package | {"mnist/model_index.json", "mnist/unet/diffusion_pytorch_model.safetensors"} <= inside
    assert not any("__pycache__" in path or "parquet" in path for path in inside)
    assert sum((assembled / path).stat().st_size for path in inside) < 5_000_000
    with pytest.raises(FileExistsError, match="must be new or empty"):
        deploy.assemble(assembled)


def test_the_space_asks_for_what_the_package_asks_for():
    setup = {line.strip() for line in (deploy.REPOSITORY / "setup.cfg").read_text().splitlines()}
    assert set((SPACE / "requirements.txt").read_text().split()) <= setup
    front = (SPACE / "README.md").read_text().split("---")[1]
    assert re.search(r"^sdk: gradio$", front, re.M) and re.search(r"^app_file: app.py$", front, re.M)


def test_the_app_starts_with_the_assembled_folder_alone(app, assembled):
    """In a fresh process, in another place, with the package that lies in the folder."""
    code = (
        "import app, diffusers_ndc, certifying; print(diffusers_ndc.__file__, app.DIGITS_MODEL); "
        "demo = app.build(app.DIGITS_MODEL); print(len(demo.fns) > 5)"
    )
    environment = {**os.environ, "PYTHONPATH": str(assembled)}
    result = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, cwd=assembled, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert str(assembled / "diffusers_ndc") in result.stdout and str(assembled / "mnist") in result.stdout
    assert result.stdout.split()[-1] == "True"


def test_deploy_makes_a_space_and_brings_it_up_to_date(hub, assembled):
    assert deploy.deploy("someone/certified") == f"{hub.endpoint}/spaces/someone/certified"
    there = hub.files("someone/certified", "spaces")
    expected = {str(path.relative_to(assembled)): path for path in assembled.rglob("*.*") if path.is_file()}
    assert {name: there.get(name) for name in expected} == {name: path.read_bytes() for name, path in expected.items()}
    hub.add("someone/certified", {"stale.py": b"", "app.py": b"old"}, "spaces")
    deploy.deploy("someone/certified")
    there = hub.files("someone/certified", "spaces")
    assert "stale.py" not in there and there["app.py"] == (SPACE / "app.py").read_bytes()


def test_deploy_says_what_is_wrong(hub, assembled, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deploy.py", "someone/certified", "--dry-run", str(assembled)])
    with pytest.raises(SystemExit):
        deploy.main()
    assert "give either NAMESPACE/NAME or --dry-run" in capsys.readouterr().err
    hub.broken = True
    monkeypatch.setattr(sys, "argv", ["deploy.py", "someone/certified"])
    with pytest.raises(SystemExit, match="error: "):
        deploy.main()
