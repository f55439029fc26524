"""The command line of a training and its YAML file."""

import doctest
import json
from dataclasses import replace

import pytest
import yaml
from helpers.training import UNET

from diffusers_ndc.training import TrainingSettings, parse, settings_parser
from diffusers_ndc.training.settings import DEFAULT_UNET


LINE = ["--dataset", "d", "--output-dir", "o"]


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "training.yaml"
    values = {"dataset": "d", "output-dir": "o", "resolution": [28, 56], "flip": True, "p_mean": -0.3, "rotate": 10}
    file.write_text(yaml.safe_dump({**values, "unet_config": json.loads(UNET), "label_column": None}))
    parsed = parse(["--config", str(file), "--rotate", "5"])
    line = [*LINE, "--resolution", "28", "56", "--flip", "--p-mean", "-0.3", "--rotate", "5", "--unet-config", UNET]
    assert replace(parsed, unet_config=UNET) == parse(line)
    assert (parsed.resolution, parsed.flip, parsed.p_mean, parsed.rotate) == ([28, 56], True, -0.3, 5.0)
    assert parsed.unet_arguments == json.loads(UNET)
    assert parse(["--config", str(file), "--resolution", "14"]).resolution == [14]


def test_the_network_s_arguments_come_from_json_a_file_or_python(tmp_path):
    (tmp_path / "unet.json").write_text(UNET)
    for given in (UNET, str(tmp_path / "unet.json"), json.loads(UNET)):
        assert TrainingSettings("d", "o", unet_config=given).unet_arguments == json.loads(UNET)
    assert parse(LINE).unet_arguments == DEFAULT_UNET


def test_the_example_runs():
    result = doctest.testmod(settings_parser)
    assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize(
    "text, said",
    [
        ("dataste: d", "dataste"),
        ("resolution: [a]", "resolution"),
        ("seed: [1, 2]", "must be one value, got 2"),
        ("unet_config: {a: 2020-01-01}", "must be keys and values of JSON"),
        ("unet_config: &a {a: *a}", "Circular"),
        ("unet_config: {a: " + "[" * 6 + ", ".join("0" * 12_000) + "]" * 6 + "}", "at most some thousand"),
        ("dataset: {a: 1}", "got nested ones"),
        ("objective: gan", "gan"),
        ("p_mean: 1\np-mean: 2", "must have each key once, got p_mean twice"),
    ],
)
def test_an_invalid_file_is_an_error(tmp_path, capsys, text, said):
    file = tmp_path / "training.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse([*LINE, "--config", str(file)])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_is_required_is_named_as_it_is_typed(capsys):
    with pytest.raises(SystemExit):
        parse(["--dataset", "d"])
    assert "arguments are required: --output-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"resume": True}, "`--resume` must be .*, got none in"),
        ({"dataset": "./nowhere"}, "`--dataset` must be an existing folder or a Hub id"),
        ({"label_dropout": 1.0}, "`--label-dropout` must be .*, got 1"),
        ({"checkpointing_steps": 0}, "`--checkpointing-steps` must be at least 1, got 0"),
        ({"num_workers": -1}, "`--num-workers` must be at least 0, got -1"),
        ({"resolution": [1, 2, 3]}, r"`--resolution` must be .*, got \[1, 2, 3\]"),
        ({"resolution": [0]}, r"`--resolution` must be .*, got \[0\]"),
        ({"learning_rate": 0.0}, "`--learning-rate` must be a number above 0, got 0"),
        ({"sigma_data": float("nan")}, "`--sigma-data` must be a number above 0, got nan"),
        ({"seed": -1}, "`seed` must be .*-1"),
        ({"p_mean": float("inf")}, "`--p-mean` must be a finite number, got inf"),
        ({"zoom": -0.1}, "`--zoom` must be a number of at least 0, got -0.1"),
        ({"ema_decay": 1.1}, "`--ema-decay` must be a number from 0 to 1, got 1.1"),
        ({"unet_config": {"sample_size": 8}}, r"`--unet-config` must leave out \['sample_size'\]"),
        ({"unet_config": "{"}, "`--unet-config` must be JSON or a JSON file, got {"),
        ({"unet_config": "nowhere.json"}, "`--unet-config` must be JSON or a JSON file, got nowhere.json"),
        ({"unet_config": "[1]"}, "`--unet-config` must be keys and values in JSON"),
    ],
)
def test_settings_are_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{"dataset": "d", "output_dir": str(tmp_path), **changes}).check()
