"""The page of a run: its data are the report's figures, and hostile words in records stay words."""

import base64
import io
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from helpers.runs import HOSTILE, IMAGES, RADII, RUN, make_run, make_task_run, record_of

from diffusers_ndc.evaluation.data import load_labelled_images
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.page import page_data, write_page
from diffusers_ndc.evaluation.records import write_run
from diffusers_ndc.evaluation.report import main, write_report
from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.thumbnails import load_thumbnails


class Parsed(HTMLParser):
    """Elements of a page with their attributes, and its texts by the element that holds them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        self.texts.append((self.inside, data))

    @property
    def data(self):
        (text,) = [text for inside, text in self.texts if inside == "script" and text.startswith('{"runs"')]
        return json.loads(text)


def parsed(folder):
    return Parsed((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def reports(tmp_path):
    second = make_run(tmp_path / "b", images=IMAGES[:3])
    return [Report.from_folder(make_run(tmp_path / "a")), Report.from_folder(second)]


def test_the_data_are_the_figures_of_the_report(tmp_path, reports):
    write_page(reports, tmp_path / "report.html")
    data = parsed(tmp_path).data
    assert data == json.loads(json.dumps(page_data(reports)))
    for run, report in zip(data["runs"], reports, strict=True):
        assert (run["name"], run["total"], run["radii"]) == (report.name, len(report.outcomes), report.radii)
        for radius in [*report.radii, *(outcome.radius for outcome in report.outcomes), 0.1, 9.0]:
            share = report.at(radius)
            step = next((k for k, x in enumerate(run["radius"]["x"]) if x >= radius), len(run["radius"]["x"]))
            found = [run["radius"][name][step] for name in ("count", "low", "high")]
            assert found == pytest.approx([share.count, *share.interval], abs=1e-5)
        for found, (label, only) in zip(run["classes"], report.classes.items(), strict=True):
            assert found["label"] == label and found["images"] == len(only.outcomes)
            assert found["correct"] == [only.at(radius).count for radius in report.radii]
            assert found["average_radius"] == only.average_radius
            assert (found["evaluations"], found["seconds"]) == tuple(both[0] for both in only.cost.values())
    (pair,) = data["pairs"]
    assert pair["shared"] == [0, 1, 2] and pair["rows"][0] == [0, 3, 0, 0, 0, 1]


def test_the_lower_bounds_are_those_of_the_report(reports):
    run, report = page_data(reports)["runs"][0], reports[0]
    steps = run["p_lower"]
    for low, _, _ in report.p_lower_bins[1:]:
        at_least = sum(share.count for edge, _, share in report.p_lower_bins if edge >= low)
        position = -math.log10(1 - low) - 1e-12
        assert steps["count"][next((k for k, x in enumerate(steps["x"]) if x >= position), -1)] == at_least


def test_the_images_are_those_of_the_records(reports):
    images = page_data(reports)["runs"][0]["images"]
    assert images["index"] == list(range(6)) and images["label"] == [0, 0, 1, 1, 1, 7]
    assert images["predicted"] == [0, 0, 1, 2, None, 7]
    assert images["radius"][:3] == pytest.approx(RADII)
    assert images["votes"][1] == [(0, 92), (1, 8)] and images["votes"][4] == [(1, 50), (2, 50)]
    assert images["copies"] == [100] * 6 and images["evaluations"][4] == 1000 and images["seconds"][4] == 10


def test_a_run_on_clean_images_and_a_run_that_stopped_early_claim_no_more_than_they_sought(tmp_path):
    predicted = {"index": 0, "image_hash": None, "label": 0, "predicted": 0, "evaluations": 9, "seconds": None}
    make_run(tmp_path / "clean", [], [predicted], alpha=None, n=None, sigma=0.0, radii=[0.0])
    make_run(tmp_path / "early", stop_early=True, radii=[0.25])
    make_run(tmp_path / "fixed", radii=[0.5])
    write_report([tmp_path / name for name in ("clean", "early", "fixed")], tmp_path)
    data = parsed(tmp_path).data
    clean, early, fixed = data["runs"]
    assert not clean["certified"] and "p_lower" not in clean
    assert early["sought"] == 0.25 and fixed["sought"] is None
    assert [[row[0] for row in pair["rows"]] for pair in data["pairs"]] == [[0], [0], [0, 0.25]]
    assert [pair["shared"] for pair in data["pairs"][:2]] == [[], []]  # the hash is not known
    text = (tmp_path / "report.html").read_text()
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", text)
    sought = [[cell != "–" for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)][3:5] for row in rows]
    assert sought == [[False, False], [True, False], [True, True]]


def test_hostile_words_stay_words(tmp_path):
    names = {number: name for number, name in enumerate(HOSTILE)}
    images = [(number, number, 100, 1, 1.0) for number in names]
    failed = [{"index": 90 + number, "failed": name} for number, name in names.items()]
    settings = {name: " ".join(HOSTILE) for name in ("model", "dataset", "split", "method", "seed")}
    folders = [
        make_run(tmp_path / f"run<b>&{number}", images, failed, id2label=names, **settings) for number in range(2)
    ]
    write_page([Report.from_folder(folder) for folder in folders], tmp_path / "report.html")
    page = parsed(tmp_path)
    make_run(tmp_path / "plain", extra=[{"index": 90, "failed": "x"}])
    write_page([Report.from_folder(tmp_path / "plain")], tmp_path / "plain.html")
    plain = Parsed((tmp_path / "plain.html").read_text())
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.data["runs"][0]["names"] == {str(number): name for number, name in names.items()}
    words = "".join(text for inside, text in page.texts if inside not in ("script", "style"))
    assert HOSTILE[0] in words and HOSTILE[3] in words


def test_names_of_any_type_and_of_several_classes(tmp_path):
    report = Report.from_folder(make_run(tmp_path, id2label={0: "crane", 1: "crane", 2: ["x"], 5: "unseen"}))
    assert page_data([report])["runs"][0]["names"] == {0: "crane (0)", 1: "crane (1)", 2: "['x']"}


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    folders = [make_task_run(tmp_path / name) for name in "ab"]
    write_page([Report.from_folder(folder) for folder in folders], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|//\w|@import|url\(|<link|srcset|fetch\(|import\(", re.sub(r"// .*", "", text))
    page = parsed(tmp_path)
    assert not any(name in ("src", "data", "action") for _, attributes in page.elements for name in attributes)
    assert all(href.startswith("#") for _, attributes in page.elements if (href := attributes.get("href")))
    (policy,) = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy


def test_what_is_missing_failed_or_does_not_verify_is_on_the_page(tmp_path):
    extra = [{"index": 6, "failed": "OSError: truncated"}, record_of(7, 0, 0, 100, 100, 1.0, radius=0.9)]
    extra += [{"index": index, "failed": "gone"} for index in range(8, 200)]
    write_run(make_run(tmp_path, extra=extra), {**RUN, "images": 300})
    write_page([Report.from_folder(tmp_path)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Not finished: 100 of 300 images" in text and "<li>image 6: OSError: truncated</li>" in text
    assert "Records that do not verify, in none of these figures: 1" in text
    assert "Failed images, in none of these figures: 193" in text and "and 93 more" in text


def test_a_run_of_failures_alone_has_a_page(tmp_path):
    folder = make_run(tmp_path, [], [{"index": 0, "failed": "gone"}])
    write_page([Report.from_folder(folder)], tmp_path / "report.html")
    (run,) = parsed(tmp_path).data["runs"]
    assert run["total"] == 0 and run["classes"] == [] and run["radius"]["count"] == [0, 0]


def data_set(folder, count=4, side=48, damaged=None):
    """A data set of noise, which makes the largest files; returns the settings of a run that takes it."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        file = io.BytesIO()
        PIL.Image.fromarray(rng.integers(256, size=(side, 2 * side, 3), dtype=np.uint8)).save(file, "PNG")
        files.append({"bytes": b"damaged" if number == damaged else file.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=["zero", "one"])})
    folder.mkdir()
    Dataset.from_dict({"image": files, "label": [0] * count}, features).to_parquet(folder / "test-0.parquet")
    settings = {"dataset": str(folder), "split": "test", "skip": 1, "limit": None}
    settings["data_hash"] = load_labelled_images(Settings(model="", output="", dataset=str(folder))).content_hash()
    return settings


def test_thumbnails_are_small_pictures_of_the_images(tmp_path):
    settings = data_set(tmp_path / "data", damaged=2)
    folders = [make_run(tmp_path / name, IMAGES[:4], **settings) for name in "ab"]
    shown = load_thumbnails(Report.from_folder(folders[0]))
    assert sorted(shown) == [0, 1, 3]
    small = PIL.Image.open(io.BytesIO(base64.b64decode(shown[0])))
    assert small.size == (32, 16) and small.format == "PNG"
    write_report(folders, tmp_path, images=True)
    data = parsed(tmp_path).data
    assert len(data["pictures"]) == 3 and data["pictures"][2] == shown[3]
    assert [run["images"]["picture"] for run in data["runs"]] == [[0, 1, None, 2]] * 2


def test_other_images_than_those_of_the_run_are_not_shown(tmp_path):
    settings = data_set(tmp_path / "data")
    for change, message in (
        ({"data_hash": "0" * 32}, "took other images"),
        ({"limit": 2}, "took other images"),
        ({"dataset": None}, "names no data set"),
        ({"dataset": str(tmp_path / "none")}, "existing folder"),
        ({"dataset": ""}, "names no data set"),
        ({"split": None}, "names no data set and split"),
        ({"split": "\0"}, "a data set that can be loaded"),
        ({"skip": "x"}, "must say which images"),
        ({"image_column": ["x"]}, "must say which images"),
    ):
        make_run(tmp_path / "run", IMAGES[:4], **{**settings, **change})
        with pytest.raises(ValueError, match=message):
            write_report([tmp_path / "run"], tmp_path / "out", images=True)
        assert not (tmp_path / "out").exists()


def test_a_page_of_500_images_takes_less_than_a_megabyte(tmp_path):
    settings = data_set(tmp_path / "data", count=500, side=16)
    make_run(tmp_path / "run", [], [record_of(0, 0, 0, 100, 1, 1.0)], **settings)
    report = Report.from_folder(tmp_path / "run")
    (outcome,) = report.outcomes
    varied = [
        outcome._replace(image_index=k, radius=outcome.radius * (1 + k / 7919), seconds=k / 7) for k in range(500)
    ]
    many = Report(report.name, report.run, varied, {}, {})
    write_page([many], tmp_path / "report.html", [load_thumbnails(many)])
    assert 300_000 < (tmp_path / "report.html").stat().st_size < 1_000_000


def test_the_command_writes_the_page(tmp_path, monkeypatch):
    settings = data_set(tmp_path / "data")
    folder = make_run(tmp_path / "run", IMAGES[:4], **settings)
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--images"])
    main()
    assert len(parsed(tmp_path / "run").data["pictures"]) == 4
