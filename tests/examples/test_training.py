"""The training program, run as people run it: a folder of images in, a pipeline folder out."""

import subprocess
import sys

import PIL.Image
import pytest
import torch
from helpers.paths import EXAMPLES
from helpers.training import UNET, make_images

from diffusers_ndc import NoisedDiffusionClassifierPipeline


PROGRAM = [sys.executable, EXAMPLES / "train_class_conditional.py"]
LAUNCHED = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
LAUNCHED += ["--num_machines", 1, "--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", 0]
LAUNCHED += ["-m", "diffusers_ndc", "train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data"))


def train(folder, output, *options, program=PROGRAM):
    command = [*program, "--dataset", folder, "--output-dir", output, "--unet-config", UNET]
    command += ["--batch-size", 8, "--lr-warmup-steps", 1, "--checkpointing-steps", 2, *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_trains_resumes_and_classifies(folder, tmp_path):
    options = ("--learning-rate", 0.01, "--p-mean", 0.0, "--shift", 1, "--flip")
    result = train(folder, tmp_path, "--max-train-steps", 4, *options)
    assert result.returncode == 0, result.stderr
    early = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)

    result = train(folder, tmp_path, "--resume", "--max-train-steps", 60, *options)
    assert result.returncode == 0, result.stderr
    assert "4/60" not in result.stderr and "56/56" in result.stderr, "it did not go on from step 4"

    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert not torch.equal(pipe.unet.conv_in.weight, early.unet.conv_in.weight)
    assert pipe.config.id2label == {0: "dark", 1: "light"} and pipe.config.null_class == 2
    dark, light = (PIL.Image.open(folder / "train" / name / "0.png") for name in ("dark", "light"))
    assert pipe([dark, light], seed=0).labels == [0, 1]


@pytest.mark.slow
def test_ddpm_objective_on_two_processes_with_mixed_precision(folder, tmp_path):
    """By the command; the program above is the same."""
    options = ("--objective", "ddpm", "--prediction-type", "v_prediction", "--label-dropout", 0)
    result = train(folder, tmp_path, "--max-train-steps", 3, *options, program=LAUNCHED)
    assert result.returncode == 0, result.stderr
    assert "3/3" in result.stderr
    assert (tmp_path / "checkpoints" / "checkpoint_0" / "random_states_1.pkl").exists(), "there was no second process"
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert pipe.scheduler.config.prediction_type == "v_prediction" and pipe.unet.dtype == torch.float32
    assert pipe.denoiser.null_source == "class_mean" and pipe.denoiser.num_classes == 2
