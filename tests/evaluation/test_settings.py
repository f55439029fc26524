"""The command line of the evaluation and its YAML file."""

import json

import numpy as np
import pytest
import yaml

from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.settings_parser import parse


LINE = ["--model", "m", "--dataset", "d", "--output", "o"]


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    settings = {"model": "m", "dataset": "d", "output": "o", "radii": [0.5, 0.25], "stop-early": True, "limit": 5}
    file.write_text(yaml.safe_dump({**settings, "label_column": None, "skip": 2}))
    parsed = parse(["--limit", "7", "--config", str(file)])
    assert parsed == parse([*LINE, "--radii", "0.25", "0.5", "--stop-early", "--skip", "2", "--limit", "7"])
    assert (parsed.radii, parsed.stop_early, parsed.limit) == ([0.25, 0.5], True, 7)
    assert parse(["--config", str(file), "--radii", "1", "--stop_early", "false"]).radii == [1.0]


def test_selection_copies_depend_on_stopping():
    assert (parse(LINE).n0, parse([*LINE, "--stop-early"]).n0) == (100, 10)
    assert parse([*LINE, "--n0", "0"]).n0 == 0


def test_a_batch_size_is_auto_or_a_number():
    """A run that states a number has the settings of one from before there was "auto"."""
    assert parse(LINE).to_dict()["batch_size"] == "auto"
    assert parse([*LINE, "--batch-size", "64"]) == Settings("m", "d", "o", batch_size=64)
    assert parse([*LINE, "--batch-size", "64"]).to_dict()["batch_size"] == 64


def test_clean_classification_has_no_settings_of_a_certificate():
    parsed = parse([*LINE, "--method", "dc", "--sigma", "0.5", "--stop-early"])
    values = parsed.to_dict()
    assert [values[name] for name in ("sigma", "radii", "n0", "n", "alpha")] == [0.0, [0.0], None, None, None]
    assert not parsed.certifies
    parsed.check()


@pytest.mark.parametrize(
    "text, said",
    [
        ("modell: m", "modell"),
        ("- model", "list"),
        ("limit: many", "many"),
        ("{", "cannot be read"),
        ("method: fgsm", "fgsm"),
    ],
)
def test_an_invalid_file_is_an_error(tmp_path, capsys, text, said):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        parse([*LINE, "--config", str(file)])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("line", [LINE[:4], [*LINE, "--bogus", "1"], [*LINE, "--config", "nowhere.yaml"]])
def test_unknown_options_and_missing_files_exit(capsys, line):
    with pytest.raises(SystemExit):
        parse(line)
    error = capsys.readouterr().err
    assert any(word in error for word in ("--output", "--bogus", "nowhere.yaml"))


def test_help_tells_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], "What it does.")
    printed = " ".join(capsys.readouterr().out.split())
    for phrase in ("What it does.", "pixel units", "Default: 0.25 0.5 0.75 1.0.", "--config FILE"):
        assert phrase in printed
    assert "None" not in printed


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"limit": 0}, "`--limit` .*got 0"),
        ({"skip": 0}, "`--skip` .*got 0"),
        ({"batch_size": 0}, '`--batch-size` must be a whole number of at least 1 or "auto", got 0'),
        ({"batch_size": "many"}, "`--batch-size` .*got 'many'"),
        ({"grid": 0}, "`grid` .*\\b0\\b"),
        ({"n": 0}, "`--n` .*got 0"),
        ({"n0": -1}, "`--n0` .*got -1"),
        ({"sigma": 0.0}, "`--sigma` .*got 0"),
        ({"sigma": -1.0}, "`sigma` .*got -1.0"),
        ({"alpha": 2.0}, "alpha.*2.0"),
        ({"seed": -1}, "`seed` .*got -1"),
        ({"radii": [-0.5]}, "`--radii` .*-0.5"),
        ({"radii": [float("nan")]}, "`--radii` .*nan"),
        ({"radii": []}, r"`--radii` .*\[\]"),
        ({"patience": 0.0}, "`--patience` .*got 0"),
        ({"classifier": "c"}, "`--classifier` .*got c"),
    ],
)
def test_values_out_of_range_raise(changes, named):
    with pytest.raises(ValueError, match=named):
        Settings("m", "d", "o", **changes).check()


def test_numbers_of_numpy_s_types_are_plain_or_refused():
    small = Settings("m", "d", "o", sigma=np.float32(0.25), alpha=np.float16(0.001), patience=np.uint8(9))
    small.check()
    assert json.loads(json.dumps(small.to_dict()))["alpha"] == float(np.float16(0.001))
    for name in ("n", "n0", "limit", "skip"):
        with pytest.raises(TypeError, match=f"`--{name}` must be a whole number, got np.uint8"):
            Settings("m", "d", "o", **{name: np.uint8(20)}).check()
