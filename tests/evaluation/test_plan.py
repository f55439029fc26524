"""`evaluate --plan`: the trial takes other images than the run, the run's numbers are said, and nothing is written."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from helpers.paths import EXAMPLES

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.evaluation.data import load_labelled_images
from diffusers_ndc.evaluation.plan import plan_run, trial_images
from diffusers_ndc.evaluation.records import read_run
from diffusers_ndc.evaluation.run import evaluate
from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.settings_parser import parse


QUICK = {
    "n0": 3,
    "n": 60,
    "alpha": 0.1,
    "radii": [0.05, 0.1],
    "stop_early": True,
    "plan_images": 4,
    "seed": 1,
    "batch_size": 64,
}


@pytest.fixture
def folders(small_model, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    return small_model(tmp_path)


@pytest.fixture
def settings(folders, tmp_path):
    def settings(**changes):
        places = {"model": str(folders[0]), "dataset": str(folders[1]), "output": str(tmp_path / "run")}
        return Settings(**{**places, **QUICK, **changes})

    return settings


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_whole_run_is_estimated_and_nothing_is_written(settings, tmp_path):
    before = files_in(tmp_path)
    result = plan_run(settings(limit=5))
    assert files_in(tmp_path) == before and not (tmp_path / "run").exists()
    assert (result.images, result.processes, result.shared) == (5, 1, 0)
    assert result.run == result.plan.at(0.25) and result.run.radii == (0.05, 0.1)
    assert result.evaluations.value == 5 * result.run.evaluations.value
    assert result.seconds.high == 5 * result.run.seconds.high
    text = result.to_markdown()
    assert "This run, of 5 images with sigma 0.25 and radii 0.05, 0.1, is estimated to take" in text
    assert "with 1 process, and" in text and "GiB" in text and "optimistic" not in text


def test_several_processes_share_the_time(settings):
    result = plan_run(settings(limit=5))
    shared = replace(result, processes=2)
    assert shared.seconds.value == result.seconds.value / 2 and shared.evaluations == result.evaluations
    assert "with 2 processes" in shared.to_markdown()


@pytest.mark.parametrize("changes, shared", [({"limit": 8}, 0), ({"skip": 2}, 0), ({"limit": 10}, 2), ({}, 4)])
def test_the_trial_takes_images_that_the_run_does_not_take(settings, changes, shared):
    chosen = settings(**changes)
    data = load_labelled_images(chosen)
    trial = trial_images(chosen, data)
    assert len(set(trial.indices)) == 4 and len(set(trial.indices) & set(data.indices)) == shared
    everything = load_labelled_images(settings())
    for number, index in enumerate(trial.indices):
        assert np.array_equal(trial.image(number), everything.image(index))
    assert trial.labels(3, None) == [everything.labels(3, None)[index] for index in trial.indices]


def test_a_stream_is_tried_on_the_images_of_the_run(settings):
    """The rest of the stream is not read, as here, where there is none."""
    data = load_labelled_images(settings(limit=6))
    chosen = settings(streaming=True, limit=6, dataset="nowhere")
    assert set(trial_images(chosen, data).indices) < set(data.indices)


def test_a_trial_on_the_images_of_the_run_is_said_to_be_optimistic(settings):
    text = plan_run(settings()).to_markdown()
    assert "4 of the 4 images of the trial are images of the run" in text and "optimistic" in text


def test_the_sigmas_that_the_model_was_calibrated_for_are_compared(settings, folders):
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folders[0])
    table = {f"{sigma:g}": {"apndc": NoiseLevels((3.0, 5.0), (1.0, 0.5)).to_dict()} for sigma in (0.0, 0.5, 1.0)}
    table["0"] = {"dc": NoiseLevels((3.0, 5.0), (1.0, 0.5)).to_dict()}
    pipe.register_to_config(levels=table)
    pipe.save_pretrained(folders[0])
    plan = plan_run(settings(limit=4, sigma=0.3)).plan
    assert plan.sigmas == [0.3, 0.5, 1.0]
    assert plan_run(settings(limit=4, sigma=0.3, method="epndc")).plan.sigmas == [0.3]


def test_a_fixed_number_of_copies_is_planned_too(settings):
    result = plan_run(settings(limit=4, stop_early=False, n0=10))
    assert 60 < result.run.copies.value <= 70


def test_images_that_cannot_be_read_are_left_out(settings, folders):
    for name in "abc":
        (folders[1] / "test" / name / "3.png").write_bytes(b"no image")
    result = plan_run(settings(limit=3, plan_images=9))
    assert result.plan.images == 6
    for path in (folders[1] / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="`--split` must have two images or more that can be read"):
        plan_run(settings(limit=3))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"method": "dc"}, "`--plan` must be left out with --method dc"),
        ({"plan_images": 1}, "`--plan-images` must be 2 or more, got 1"),
        ({"n": 0}, "`--n` must be 1 or more"),
        ({"radii": [9.0]}, "`--radii` must have one of at most"),
        ({"dataset": "./nowhere"}, "`--dataset` must be"),
    ],
)
def test_bad_settings_are_refused(settings, changes, said):
    chosen = settings(limit=4)
    values = {**vars(chosen), **changes}
    with pytest.raises(ValueError, match=said):
        plan_run(Settings(**values))


def test_a_run_is_not_started_for_a_plan_and_does_not_record_its_options(settings, tmp_path):
    with pytest.raises(ValueError, match="`--plan` must be left out for a run"):
        evaluate(settings(plan=True, limit=2))
    assert not (tmp_path / "run").exists()
    evaluate(settings(limit=2))
    assert not {"plan", "plan_images"} & set(read_run(tmp_path / "run"))


def test_the_command_line_has_the_options():
    parsed = parse(["--model", "m", "--dataset", "d", "--output", "o", "--plan", "--plan-images", "7"])
    assert (parsed.plan, parsed.plan_images) == (True, 7)
    assert parse(["--model", "m", "--dataset", "d", "--output", "o"]).plan is False


@pytest.fixture
def words(folders, tmp_path):
    options = ["--model", folders[0], "--dataset", folders[1], "--output", tmp_path / "run", "--limit", 4, "--n", 60]
    return [*map(str, options), "--stop-early", "--radii", "0.05", "--alpha", "0.1", "--plan", "--plan-images", "4"]


def test_the_program_prints_the_plan(words, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("sys.argv", ["evaluate.py", *words])
    importlib.import_module("evaluate").main()
    printed = capsys.readouterr().out
    assert "| sigma | radius | certified accuracy |" in printed and "This run, of 4 images" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_several_processes_print_one_plan(words, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(EXAMPLES / "evaluate.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("This run, of 4 images") == 1 and "with 2 processes" in result.stdout
    assert not (tmp_path / "run").exists()
