"""`diffusers-ndc evaluate`, `plan`, `verify`, `replay`, `report` and `push` with a run of a tiny model."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.runs import make_card_run, record_of

from diffusers_ndc.command import main
from diffusers_ndc.evaluation.records import read_records


@pytest.fixture(scope="module")
def folders(small_model, tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def words(folders):
    options = ["--model", folders[0], "--dataset", folders[1], "--limit", 4, "--n", 40, "--radii", "0.05"]
    return [str(option) for option in [*options, "--stop-early", "--alpha", "0.1"]]


@pytest.fixture(scope="module")
def folder(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a"
    assert main(["evaluate", *words, "--output", str(path)]) == 0
    return path


def test_a_run_is_reported_verified_and_replayed(folder, tmp_path, capsys):
    (records,) = folder.glob("*.jsonl")
    assert len(read_records(folder)) == 4 and (folder / "report.md").exists()
    assert main(["report", str(folder), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == capsys.readouterr().out
    assert main(["verify", str(records)]) == 0 and capsys.readouterr().out.count("sound") == 4
    assert main(["replay", str(folder), "--count", "2"]) == 0 and capsys.readouterr().out.count("again") == 2
    assert main(["replay", str(folder), "--count", "5"]) == 1
    assert main(["replay", str(folder), "--dataset", str(tmp_path)]) == 1


def test_a_run_of_other_settings_is_an_error_of_one_line(folder, words, capsys):
    assert main(["evaluate", *words, "--seed", "7", "--output", str(folder)]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "`--output` must be a new folder" in error[0] and "seed" in error[0]


def test_a_plan_needs_no_output(words, capsys):
    assert main(["plan", *words, "--plan-images", "4"]) == 0
    assert "This run, of 4 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, words, said",
    [
        ("evaluate", ["--limit", "0"], "`--limit` must be 1 or more, got 0"),
        ("evaluate", ["--dataset", "~/nowhere"], "`--dataset` must be an existing folder"),
        ("evaluate", ["--model", "no/such/model"], "`--model` must be an existing folder"),
        ("plan", ["--method", "dc"], "`--plan` must be left out with --method dc"),
    ],
)
def test_wrong_settings_have_the_exit_code_2(command, words, said, capsys):
    assert main([command, "--model", "m", "--dataset", "d", "--output", "o", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_works_under_accelerate_launch(words, folder, tmp_path):
    """With two processes, and without a progress bar."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "diffusers_ndc", "evaluate", *words, "--output", str(tmp_path / "two"), "--quiet"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert "image/s" not in result.stderr and "s/image" not in result.stderr and "100%" not in result.stderr
    one, two = read_records(folder), read_records(tmp_path / "two")
    assert [record["certificate"]["counts"] for record in two.values()] == [
        record["certificate"]["counts"] for record in one.values()
    ]


def test_runs_that_do_not_verify_are_an_error(tmp_path, capsys):
    folder = make_card_run(tmp_path / "run", extra=[record_of(9, 0, 0, 60, 1, 1.0, radius=2.0)])
    with pytest.raises(SystemExit, match="do not verify"):
        main(["report", str(folder)])
    assert main(["verify", *map(str, folder.glob("*.jsonl"))]) == 1
    assert "FLAWED" in capsys.readouterr().out


def test_a_model_and_its_runs_are_pushed(hub, folders, folder, capsys):
    assert main(["push", "me/model", str(folders[0]), str(folder)]) == 0
    files = hub.files("me/model")
    assert {"model_index.json", "evaluation/a/run.json", "evaluation/a/report.md", "README.md"} <= set(files)
    assert b"certified_accuracy" in files["README.md"]
    hub.broken = True
    assert main(["push", "me/model", str(folder)]) == 1
    assert capsys.readouterr().err.count("error: The push to me/model failed") == 1


@pytest.mark.parametrize("words", [["me", "."], ["me/model", "."], ["me/model", "nowhere"]])
def test_a_push_needs_an_id_and_folders(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["push", *words])
    assert ended.value.code == 2


def test_calibrate_saves_levels(folders, tmp_path, capsys):
    model = shutil.copytree(folders[0], tmp_path / "model")
    words = ["--split", "test", "--limit", "9", "--sigma", "0.25", "--num-levels", "2", "--sift", "losses"]
    assert main(["calibrate", "--model", str(model), "--dataset", str(folders[1]), *words]) == 0
    assert "sigma 0.25: level (weight)" in capsys.readouterr().out
    assert (model / "model_index.json").read_text() != (folders[0] / "model_index.json").read_text()


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--model", "nowhere", "--dataset", "digits"],
            "`--model` must be the folder of a saved pipeline, got nowhere",
        ),
        (["--model", ".", "--dataset", "./digits"], "`--dataset` must be an existing folder"),
        (["--model", ".", "--dataset", "digits", "--limit", "0"], "`--limit` must be 1 or more, got 0"),
    ],
)
def test_calibrate_refuses_options_before_any_work(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err
