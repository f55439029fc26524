"""Runs side by side: figures that can be worked out by hand, and pairs over the images that both runs have."""

import json

import pytest
from helpers.runs import IMAGES, OTHERS, make_run, record_of

from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.report import write_report
from diffusers_ndc.evaluation.side_by_side import SideBySide


@pytest.fixture
def reports(tmp_path):
    """Two methods on six images, the second on four of them too, with another sigma, and early."""
    runs = {
        "likelihood": {"method": "apndc", "n0": 10},
        "classifier": {"method": "gaussian", "model": None, "classifier": "/there/cnn", "n0": 10, "images": OTHERS},
        "few": {"method": "dds", "n0": 10, "images": IMAGES[:4], "stop_early": True, "radii": [0.25]},
    }
    return [Report.from_folder(make_run(tmp_path / name, **settings)) for name, settings in runs.items()]


def test_the_table_by_hand(reports):
    text = SideBySide(reports).to_markdown()
    row = "| likelihood | apndc | 0.5 | 100 | 6 | 66.7% (22.3 to 95.7) | 50.0% (11.8 to 88.2) | 33.3% (4.3 to 77.7) |"
    assert f"{row} {reports[0].average_radius:.3f} |" in text
    assert "| classifier | gaussian with cnn | 0.5 | 100 | 6 |" in text
    few = text[text.index("| few |") :].splitlines()[0].split(" | ")
    assert few[4:8] == [
        "4",
        *(
            f"{s.value:.1%} ({100 * s.interval[0]:.1f} to {100 * s.interval[1]:.1f})"
            for s in (reports[2].at(0), reports[2].at(0.25))
        ),
        "-",
    ]
    quartiles = [int(1e4 * reports[0].p_lower_quantiles[percent]) / 1e4 for percent in (25, 50, 75)]
    cells = " | ".join(f"{value:.4f}" for value in quartiles)
    assert f"| likelihood | apndc | 0.5 | {cells} | 350 | 250 | 3.50 | 2.50 |" in text
    assert "do not rest on the same settings: stop_early (None, True)." in text


def test_pairs_are_compared_on_the_images_of_both(reports):
    values = SideBySide(reports).to_dict()["pairs"]
    assert [(pair["first"], pair["second"], pair["images"]) for pair in values] == [
        ("likelihood", "classifier", 6),
        ("likelihood", "few", 4),
        ("classifier", "few", 4),
    ]
    (clean, quarter, half), fewer = values[0]["radii"], values[1]["radii"]
    assert (quarter["both"], quarter["only_first"], quarter["only_second"], quarter["neither"]) == (1, 2, 1, 2)
    assert quarter["difference"] == pytest.approx(1 / 6) and quarter["p_value"] == 1
    assert clean["difference"] == half["difference"] == 0
    assert [at["radius"] for at in fewer] == [0, 0.25], "an early run answers for its own radii alone"
    assert all(at["difference"] == 0 for at in fewer) and values[1]["evaluations"] == [250, 250]
    assert values[0]["average_radius"] == pytest.approx([report.average_radius for report in reports[:2]])
    text = SideBySide(reports).to_markdown()
    assert (
        "| likelihood | classifier | 0.5 | 6 | +0.0 (1 : 1; p = 1) | +16.7 (2 : 1; p = 1) | +0.0 (2 : 2; p = 1) |"
        in text
    )
    early = "| likelihood | few | 0.5 | 4 | +0.0 (0 : 0; p = 1) | +0.0 (0 : 0; p = 1) | - | - |"
    assert early in text, "the average radius of an early run is limited, that of the other is not"
    assert values[1]["average_radius"] is None
    assert "Not on the same images" not in text


def test_runs_without_images_in_common_are_named(reports, tmp_path):
    """As of another data set, or of the same one in another size."""
    records = [{**record_of(index, *image), "image_hash": f"{index + 100:032x}"} for index, image in enumerate(IMAGES)]
    for record in records:
        certificate = {**record["certificate"], "image_hash": record["image_hash"]}
        del certificate["digest"]
        record["certificate"] = certificate
    larger = Report.from_folder(make_run(tmp_path / "larger", [], records))
    assert len(larger.outcomes) == 6
    beside = SideBySide([*reports[:1], larger])
    assert beside.pairs == []
    assert "**Not on the same images: likelihood and larger.**" in beside.to_markdown()


def test_runs_of_other_sigmas_without_certificates_or_on_other_images_have_no_pair(reports, tmp_path):
    clean = {"index": 0, "label": 0, "predicted": 0, "evaluations": 5, "seconds": 1.0}
    runs = [
        Report.from_folder(make_run(tmp_path / "clean", [], [clean], alpha=None, n=None, sigma=0.0, radii=[0.0])),
        Report.from_folder(make_run(tmp_path / "other", [], [{"index": 0, "failed": "x"}], sigma=0.25)),
        *reports[:1],
    ]
    beside = SideBySide(runs)
    assert beside.pairs == [] and [report.name for report in beside.rows] == ["clean", "other", "likelihood"]
    text = beside.to_markdown()
    assert "| clean | - | - | - | 1 | 100.0% (2.5 to 100.0) | - | - | - |" in text
    assert "McNemar" not in text and "Without some of their images: other (1)." in text


def test_the_report_of_several_runs_has_the_table_and_that_of_one_has_none(reports, tmp_path):
    folders = [tmp_path / report.name for report in reports]
    text, _ = write_report(folders, tmp_path / "out")
    assert SideBySide(reports).to_markdown() in text
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["side_by_side"] == json.loads(json.dumps(SideBySide(reports).to_dict()))
    alone, _ = write_report(folders[:1], tmp_path / "one")
    assert "Side by side" not in alone and "side_by_side" not in (tmp_path / "one" / "report.json").read_text()


@pytest.mark.parametrize("settings, largest", [({}, "0.001"), ({"stop_early": True, "radii": [0.25]}, "0.000")])
def test_a_run_with_too_few_copies_for_a_radius_is_named(settings, largest, reports, tmp_path):
    """All of 10 votes: the 10th root of 0.001 is 0.501, or less where the bound holds at all numbers of copies."""
    assert "no radius beyond" not in SideBySide(reports).to_markdown()
    short = Report.from_folder(make_run(tmp_path / "short", [], [{"index": 0, "failed": "x"}], n=10, **settings))
    assert f"whatever the classifier: short ({largest})." in SideBySide([*reports, short]).to_markdown()
