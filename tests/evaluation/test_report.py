"""Reports of small runs whose figures can be worked out by hand."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from helpers.runs import IMAGES, RADII, RUN, make_run, record_of
from scipy import stats

from diffusers_ndc import Certificate
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.records import write_run
from diffusers_ndc.evaluation.report import to_markdown, write_report
from diffusers_ndc.evaluation.share import Share


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run", extra=[{"index": 6, "failed": "OSError: truncated"}])


def command(*options, cwd=None):
    line = [sys.executable, "-m", "diffusers_ndc.evaluation.report", *map(str, options)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=cwd)


def test_figures_by_hand(folder):
    report = Report.from_folder(folder)
    assert report.certified and len(report.outcomes) == 6
    assert report.failed == {6: "OSError: truncated"} and report.rejected == {}
    assert report.radii == [0.0, 0.25, 0.5]
    assert [report.at(radius) for radius in report.radii] == [Share(4, 6), Share(3, 6), Share(2, 6)]
    exact = report.outcomes[1].radius
    assert exact == pytest.approx(RADII[1]) and report.at(exact).count == 3 and report.at(exact + 1e-9).count == 2
    assert report.average_radius == pytest.approx((2 * RADII[0] + RADII[1] + RADII[2]) / 6)
    assert report.abstentions == Share(1, 6)
    assert report.cost == {"network evaluations": (350.0, 250.0), "seconds": (3.5, 2.5)}
    assert (
        "0.001" in report.meaning_of_alpha and "m = 6 certificates about alpha * m = 0.006" in report.meaning_of_alpha
    )


def test_accuracy_by_class(folder):
    classes = Report.from_folder(folder).classes
    found = {only.name: [only.at(radius) for radius in (0, 0.25, 0.5)] for only in classes.values()}
    assert found == {
        "zero": [Share(2, 2), Share(2, 2), Share(1, 2)],
        "one": [Share(1, 3), Share(0, 3), Share(0, 3)],
        "7": [Share(1, 1), Share(1, 1), Share(1, 1)],
    }


def test_classes_of_one_name_stay_apart(tmp_path):
    report = Report.from_folder(make_run(tmp_path, id2label={0: "crane", 1: "crane"}))
    assert [(label, only.name, len(only.outcomes)) for label, only in report.classes.items()] == [
        (0, "crane", 2),
        (1, "crane", 3),
        (7, "7", 1),
    ]


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 40), (17, 40), (40, 40), (707, 1000)])
def test_intervals_are_the_exact_binomial_ones(count, total):
    exact = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    assert Share(count, total).interval == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert Share(count, total).value == count / total


def test_the_interval_covers_at_its_rate():
    p, n = 0.93, 50
    chance = stats.binom.pmf(range(n + 1), n, p)
    covered = sum(c for k, c in enumerate(chance) if Share(k, n).interval[0] <= p <= Share(k, n).interval[1])
    missed = max(
        sum(c for k, c in enumerate(chance) if Share(k, n).interval[i] * s > p * s) for i, s in ((0, 1), (1, -1))
    )
    assert covered >= 0.95 and missed <= 0.025


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"radius": 0.9}, "follow from its votes"),
        ({"label": 1}, "follow from its votes"),
        ({"counts": {"0": 101}}, "follow from its votes"),
        ({"sigma": 0.25}, "follow from its votes"),
        ({"image_hash": "f" * 32}, "of another image"),
        ({"guess": 1}, "guess"),
        (Certificate.from_counts({0: 10}, {0: 100}, 0.25, 0.001).to_dict(), "sigma 0.25"),
        (Certificate.from_counts({0: 10}, {0: 100}, 0.5, 0.01).to_dict(), "alpha 0.01"),
    ],
)
def test_a_certificate_that_does_not_verify_counts_nowhere(tmp_path, changes, reason):
    tampered = record_of(6, 0, 0, 100, 10**6, 10**6, **changes)
    report = Report.from_folder(make_run(tmp_path / "tampered", extra=[tampered]))
    assert list(report.rejected) == [6] and reason in report.rejected[6]
    honest = Report.from_folder(make_run(tmp_path / "honest"))
    assert report.outcomes == honest.outcomes and report.at(0.25) == honest.at(0.25)
    assert report.average_radius == honest.average_radius and report.cost == honest.cost


@pytest.mark.parametrize(
    "record",
    [
        {"index": 6},
        {**record_of(6, 0, 0, 100, 1, 1.0), "label": None},
        {**record_of(6, 0, 0, 100, 1, 1.0), "seconds": "1"},
        {"index": 6, "label": 0, "predicted": 0, "evaluations": 1, "seconds": 1.0},
    ],
)
def test_a_record_without_certificate_or_label_is_listed(tmp_path, record):
    assert list(Report.from_folder(make_run(tmp_path, extra=[record])).rejected) == [6]


def test_a_run_of_failures_alone_has_a_report(tmp_path):
    make_run(tmp_path, images=[], extra=[{"index": 0, "failed": "OSError: truncated"}])
    text, (report,) = write_report([tmp_path], tmp_path)
    assert report.at(0) == Share(0, 0) and report.at(0).interval == (0.0, 1.0) and report.average_radius == 0
    assert "image 0: OSError: truncated" in text


# True label, predicted one, evaluations, seconds.
CLASSIFIED = [(0, 0, 100, 1.0), (0, 1, 100, 2.0), (1, 1, 300, 3.0), (7, 7, 100, 2.0)]


def classified(index, label, predicted, evaluations, seconds):
    return {
        "index": index,
        "image_hash": f"{index:032x}",
        "label": label,
        "predicted": predicted,
        "evaluations": evaluations,
        "seconds": seconds,
    }


def make_clean_run(folder, images=CLASSIFIED, extra=(), **settings):
    nothing = {"method": "dc", "sigma": 0.0, "n0": None, "n": None, "alpha": None, "radii": [0.0]}
    records = [classified(index, *image) for index, image in enumerate(images)]
    return make_run(folder, images=(), extra=[*records, *extra], **{**nothing, **settings})


def test_a_run_without_certificates_has_accuracy_and_cost_and_claims_nothing_more(tmp_path):
    make_clean_run(tmp_path / "clean", extra=[{"index": 4, "failed": "OSError: truncated"}])
    text, (report,) = write_report([tmp_path / "clean"], tmp_path)
    assert not report.certified and report.radii == [0.0] and report.at(0) == Share(3, 4)
    assert {only.name: only.at(0) for only in report.classes.values()} == {
        "zero": Share(1, 2),
        "one": Share(1, 1),
        "7": Share(1, 1),
    }
    assert report.cost == {"network evaluations": (150.0, 100.0), "seconds": (2.0, 2.0)}
    low, high = stats.binomtest(3, 4).proportion_ci(0.95, "exact")
    assert f"| correct (clean accuracy) | 75.0% | 3 of 4 | {low:.1%} to {high:.1%} |" in text
    assert "| zero | 2 | 50.0% |" in text and "- image 4: OSError: truncated" in text
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["certified"] is False and run["clean_accuracy"]["share"] == 0.75
    assert [only["clean_accuracy"]["count"] for only in run["by_class"]] == [1, 1, 1]
    body = text[text.index("## clean") :]
    for word in ("alpha", "abstain", "radius", "None"):
        assert word not in body and not any(word in name for name in [*run, *run["by_class"][0]])
    assert "p_lower" not in text and "lower_bound" not in text and "lower_bound" not in run
    assert not (tmp_path / "lower_bound.png").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"label": None},
        {"predicted": None},
        {"predicted": "1"},
        {"predicted": True},
        {"evaluations": None},
        {"evaluations": -1},
        {"seconds": "1"},
    ],
)
def test_a_malformed_record_of_a_classified_image_counts_nowhere(tmp_path, changes):
    record = {**classified(4, 0, 0, 100, 1.0), **changes}
    report = Report.from_folder(make_clean_run(tmp_path, extra=[record]))
    assert list(report.rejected) == [4] and report.at(0) == Share(3, 4)


def test_a_folder_without_records_and_records_of_another_run(tmp_path):
    write_run(tmp_path / "empty", RUN)
    with pytest.raises(ValueError, match="holds no records"):
        Report.from_folder(tmp_path / "empty")
    report = Report.from_folder(make_run(tmp_path / "other", id="ours", extra=[{"index": 6, "failed": "OSError"}]))
    assert not report.outcomes and set(report.rejected.values()) == {"`run` must be ours, got None."}


@pytest.mark.parametrize("missing", ["sigma", "alpha", "n", "radii"])
def test_a_setting_that_is_not_there_is_named(tmp_path, missing):
    """That nothing is certified must be said, by an alpha of null: an absent one is a fault."""
    write_run(tmp_path, {name: value for name, value in RUN.items() if name != missing})
    with pytest.raises(ValueError, match=f"run.json in .* got none for .'{missing}'"):
        Report.from_folder(tmp_path)


def test_json_and_markdown_say_the_same(folder, tmp_path):
    text, _ = write_report([folder], tmp_path / "out")
    assert (tmp_path / "out" / "report.md").read_text() == text
    (run,) = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
    assert run["name"] == "run" and run["run"]["sigma"] == 0.5 and run["certificates"] == 6
    assert {"radius": 0.0, **run["clean_accuracy"]} == run["certified_accuracy"][0]
    shares = {row["radius"]: (row["count"], row["total"], row["share"]) for row in run["certified_accuracy"]}
    assert shares == {0.0: (4, 6, 4 / 6), 0.25: (3, 6, 0.5), 0.5: (2, 6, 2 / 6)}
    assert run["per_image"]["seconds"] == {"mean": 3.5, "median": 2.5}
    assert "share of its process's time" in run["meaning_of_seconds"] and run["meaning_of_seconds"] in text
    assert run["failed"] == {"6": "OSError: truncated"} and run["meaning_of_alpha"] in text
    assert [only["name"] for only in run["by_class"]] == ["zero", "one", "7"]
    low, high = stats.binomtest(3, 6).proportion_ci(0.95, "exact")
    assert f"| correct, and certified at radius 0.25 | 50.0% | 3 of 6 | {low:.1%} to {high:.1%} |" in text
    assert "| one | 3 | 33.3% | 0.0% | 0.0% |" in text
    assert "| network evaluations | 350.00 | 250.00 |" in text
    assert "- image 6: OSError: truncated" in text


def pixels(folder):
    image = PIL.Image.open(folder / "certified_accuracy.png").convert("RGB")
    return np.asarray(image).astype(int)


def has_colour(folder, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels(folder) - wanted).max(axis=2) < 8).any()


def test_picture_shows_each_run_and_the_published_figures_where_they_belong(folder, tmp_path):
    """The second run has the second colour; the reference is there for CIFAR-10, not for CIFAR-100."""
    second = make_run(tmp_path / "second", images=IMAGES[:3])
    write_report([folder], tmp_path / "one")
    write_report([folder, second], tmp_path / "two")
    assert pixels(tmp_path / "one").shape[1] >= 800
    assert has_colour(tmp_path / "one", "#0072B2") and not has_colour(tmp_path / "one", "#D55E00")
    assert has_colour(tmp_path / "two", "#0072B2") and has_colour(tmp_path / "two", "#D55E00")

    plain = pixels(tmp_path / "one")
    for dataset, referenced in (("uoft-cs/cifar10", True), ("data/CIFAR-10", True), ("cifar100", False)):
        write_report([make_run(tmp_path / dataset / "run", dataset=dataset)], tmp_path / dataset)
        drawn = pixels(tmp_path / dataset)
        assert (drawn.shape != plain.shape or (drawn != plain).any()) == referenced


def test_picture_shows_a_run_without_certificates_as_a_point_at_radius_0(tmp_path):
    clean, curve = make_clean_run(tmp_path / "clean"), make_run(tmp_path / "curve")
    write_report([clean, curve], tmp_path)
    drawn = pixels(tmp_path)
    drawn = drawn[drawn.shape[0] // 4 :]  # below the legend
    columns = [
        np.flatnonzero((np.abs(drawn - colour).max(axis=2) < 8).any(axis=0))
        for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00))
    ]
    assert 0 < np.ptp(columns[0]) < 0.05 * drawn.shape[1] < 0.5 * drawn.shape[1] < np.ptp(columns[1])
    assert abs(columns[0].mean() - columns[1].min()) < 0.02 * drawn.shape[1]


def test_picture_keeps_its_width_and_its_axes_under_long_names(tmp_path):
    long = [make_run(tmp_path / f"{number}-{'name' * 40}" / "run") for number in range(6)]
    write_report(long[:1], tmp_path / "one")
    write_report(long, tmp_path / "six")
    one, six = pixels(tmp_path / "one"), pixels(tmp_path / "six")
    assert one.shape[1] == six.shape[1] and six.shape[0] > one.shape[0]
    assert (six[:, [0, -1]] == 255).all(), "something is cut off"
    grid = [(np.abs(picture - 0).max(axis=2) < 60).sum(axis=0).max() for picture in (one, six)]  # the frame's height
    assert grid[1] > 0.85 * grid[0]


def test_command_makes_the_report_again_from_the_records_alone(folder):
    done = command(folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "report.md").read_text()
    assert done.stdout == text and "## run" in text and done.stderr == ""
    assert (folder / "report.json").stat().st_size > 0 and (folder / "certified_accuracy.png").stat().st_size > 0
    assert "(lower_bound.png)" in text and (folder / "lower_bound.png").stat().st_size > 0


def test_command_compares_runs(tmp_path):
    folders = [make_run(tmp_path / name / "run") for name in "ab"]
    done = command(*folders, "--output", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert "## a/run" in done.stdout and "## b/run" in done.stdout
    assert len(json.loads((tmp_path / "both" / "report.json").read_text())["runs"]) == 2
    assert all(not (folder / "report.md").exists() for folder in folders)


def test_command_names_what_is_missing(folder, tmp_path):
    empty = tmp_path / "empty"
    write_run(empty, RUN)
    bare = tmp_path / "bare"
    bare.mkdir()
    for folders, message in (
        ([folder, tmp_path / "none"], "none, which is not a folder"),
        ([bare], "bare, which has no run.json"),
        ([empty], "empty, which holds no records"),
    ):
        done = command(*folders, cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
        assert not list(tmp_path.glob("**/report.md"))


def test_command_fails_on_a_tampered_certificate_and_still_reports(tmp_path):
    make_run(tmp_path, extra=[record_of(6, 0, 0, 100, 100, 1.0, radius=0.9)])
    done = command(tmp_path)
    assert done.returncode == 1 and "do not verify" in done.stderr and "[6]" in done.stderr
    text = (tmp_path / "report.md").read_text()
    assert done.stdout == text and "Records that do not verify, in none of these figures: 1" in text
    assert "- image 6: `certificate` must have a label and a radius that follow from its votes" in text


def finished_of(folder, images):
    make_run(folder)
    write_run(folder, {**RUN, "images": images})
    return folder


def test_a_run_that_is_not_finished_says_so(tmp_path):
    whole, part = (finished_of(tmp_path / str(images), images) for images in (6, 10))
    reports = [Report.from_folder(folder) for folder in (whole, part)]
    assert [report.missing for report in reports] == [0, 4]
    assert ["Not finished: 4 of 10" in to_markdown(report) for report in reports] == [False, True]
    assert reports[1].to_dict()["missing"] == 4
