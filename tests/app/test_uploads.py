"""What visitors draw and upload: pictures, certificates, and reports of runs; bad ones are refused in words."""

import json
import re

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
import pytest
from helpers.paths import MODEL
from helpers.space import DIGITS
from helpers.space import certificate as certificate
from helpers.space import digits as digits
from helpers.space import one as one

from diffusers_ndc import Certificate
from diffusers_ndc.app import files, pictures


BUNDLED = MODEL / "evaluation" / "report.json"


def sketch_of(digit, mode="RGBA", invert=True):
    """A digit as the sketchpad gives it: large, black on white."""
    large = digit.resize((280, 280), PIL.Image.Resampling.BICUBIC)
    return (PIL.ImageOps.invert(large) if invert else large).convert(mode)


def test_light_and_dark_sketches_become_the_same_centred_digit(digits):
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
        assert digits.pipe(dark, seed=0).labels == [number]


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


@pytest.mark.parametrize(
    "edit",
    [
        {"name": 5},
        {"run": {}},
        {"certified_accuracy": []},
        {"certified_accuracy": [{"radius": "0", "share": 1, "low": 1, "high": 1}]},
        {"certified_accuracy": [{"radius": 0, "share": 2, "low": 1, "high": 1}]},
        {"certified_accuracy": [{"radius": float("nan"), "share": 1, "low": 1, "high": 1}]},
        {"certified_accuracy": [{"radius": 1.75e308, "share": 1, "low": 1, "high": 1}]},
        {"run": {"sigma": 10**400}},
        {"certificates": None},
    ],
)
def test_an_edited_report_is_refused(tmp_path, edit):
    report = json.loads(BUNDLED.read_text())
    next(run for run in report["runs"] if run["certified"]).update(edit)
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
