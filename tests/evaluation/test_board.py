"""Entries for the public board of certified robustness: what they say, and which runs have none."""

import sys

import pytest
import yaml
from helpers.runs import IMAGES, make_card_run

from diffusers_ndc.evaluation.board import board_entries
from diffusers_ndc.evaluation.records import read_run, write_run
from diffusers_ndc.evaluation.report import main


def test_an_entry_has_the_certified_accuracy_at_each_radius(tmp_path):
    text, reasons = board_entries([make_card_run(tmp_path / "a", dataset="uoft-cs/cifar10")])
    small, large = yaml.safe_load(text)
    assert small["setting"] == r"uoft-cs/cifar10,&nbsp; \(\ell_2\), &nbsp; \(\epsilon=0.25\)"
    (record,) = small["records"]
    assert record == {
        "score": "50.00%",
        "title": "me/digits (diffusers-ndc)",
        "link": "https://huggingface.co/me/digits",
        "venue": None,
        "prob": True,
        "comment": "method apndc, sigma 0.5, n 100, alpha 0.001; 3 of 6 images",
    }
    assert large["records"][0]["score"] == "33.33%" and reasons == {}  # 2 of 6, not rounded up
    assert "title, link and venue of your paper" in text


def test_the_best_of_several_runs_comes_first(tmp_path):
    few = make_card_run(tmp_path / "few", images=IMAGES[:1])
    text, _ = board_entries([make_card_run(tmp_path / "all"), few])
    assert [record["score"] for record in yaml.safe_load(text)[0]["records"]] == ["100.00%", "50.00%"]


def test_runs_that_do_not_qualify_are_named_with_the_reason(tmp_path):
    def runs():
        yield make_card_run(tmp_path / "failed", extra=[{"index": 6, "failed": "OSError: truncated"}]), "1 failed"
        unfinished = make_card_run(tmp_path / "unfinished")
        write_run(unfinished, {**read_run(unfinished), "images": 1000})
        yield unfinished, "994 have no record"
        yield make_card_run(tmp_path / "flat", radii=[0.0]), "above 0"
        yield make_card_run(tmp_path / "other alpha", alpha=0.01), "at most 0.001, got 0.01"
        clean = {"sigma": 0.0, "n0": None, "n": None, "alpha": None, "radii": [0.0], "method": "dc"}
        yield make_card_run(tmp_path / "clean", **clean), "no certificates"

    expected = {str(folder): message for folder, message in runs()}
    text, reasons = board_entries(expected)
    assert text == "" and set(reasons) == set(expected)
    for folder, message in expected.items():
        assert message in reasons[folder]


def test_command_prints_the_entries_and_names_the_others(tmp_path, monkeypatch, capsys):
    good, bad = make_card_run(tmp_path / "good"), make_card_run(tmp_path / "bad", alpha=0.01)
    for folders, code in (([good, bad], None), ([bad], 1), ([tmp_path / "none"], 1)):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, folders), "--board"])
        with pytest.raises(SystemExit) as raised:
            main()
        assert bool(raised.value.code) == bool(code)
        printed = capsys.readouterr()
        if good in folders:
            assert yaml.safe_load(printed.out)[0]["records"][0]["score"] == "50.00%"
            assert f"not for the board: {bad}: `alpha` must be at most 0.001" in printed.err
        else:
            assert printed.out == ""
    assert not list(tmp_path.glob("**/report.md"))
