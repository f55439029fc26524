"""Runs notice other configurations with the same weights, and certificates of another base classifier."""

import hashlib
import json

import pytest
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser
from diffusers_ndc.evaluation.configurations import config_hash
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.replay import replay
from diffusers_ndc.evaluation.run import evaluate
from diffusers_ndc.evaluation.settings import Settings


@pytest.fixture
def made(small_model, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    model, data = small_model(tmp_path)
    settings = Settings(str(model), str(data), str(tmp_path / "run"), n0=3, n=30, limit=3, seed=1, batch_size=64)
    evaluate(settings)
    return settings


def change_file(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return values


def test_another_noise_schedule_is_another_run(made, tmp_path):
    """The weights are the same, the function is another one."""
    change_file(tmp_path / "model/scheduler/scheduler_config.json", lambda values: values.update(beta_end=0.03))
    for go_on in (lambda: evaluate(made), lambda: list(replay(tmp_path / "run"))):
        with pytest.raises(ValueError, match="config_hash"):
            go_on()


def test_only_what_differs_from_the_defaults_counts():
    """A value that a file states, and that is the default, is as good as none: versions add such values."""
    plain = config_hash(Denoiser(tiny_unet(), DDPMScheduler(), null_class=3))
    stated = DDPMScheduler(num_train_timesteps=1000, prediction_type="epsilon")
    assert config_hash(Denoiser(tiny_unet(), stated, null_class=3)) == plain
    other = DDPMScheduler(prediction_type="v_prediction")
    assert config_hash(Denoiser(tiny_unet(), other, null_class=3)) != plain
    unet = tiny_unet()
    unet.register_to_config(norm_eps=1e-3)
    assert config_hash(Denoiser(unet, DDPMScheduler(), null_class=3)) != plain


def test_a_run_of_an_earlier_version_goes_on_and_replays(made, tmp_path):
    """It has no hash of configurations, neither in its description nor in its id."""
    folder = tmp_path / "run"

    def forget(run):
        del run["config_hash"], run["id"]
        run["id"] = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]

    run = change_file(folder / "run.json", forget)
    (path,) = folder.glob("*.jsonl")
    records = [{**json.loads(line), "run": run["id"]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:2]))
    report = evaluate(made)
    assert len(report.outcomes) == 3 and "config_hash" not in json.loads((folder / "run.json").read_text())
    assert all(found.certificate.agrees(found.again) for found in replay(folder))


def test_a_certificate_of_another_base_classifier_counts_nowhere(made, tmp_path):
    folder = tmp_path / "run"
    (path,) = folder.glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[1]["certificate"]["base_classifier"]["method"] = "epndc"
    del records[1]["certificate"]["digest"]  # as a forger would leave it out
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    report = Report.from_folder(folder)
    assert len(report.outcomes) == 2 and list(report.rejected) == [records[1]["index"]]
    assert "base classifier" in report.rejected[records[1]["index"]]
