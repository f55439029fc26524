"""The training program, run as people run it: a folder of images in, a pipeline folder out."""

import runpy
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Image
from helpers.paths import EXAMPLES

from diffusers_ndc import NoisedDiffusionClassifierPipeline


SCRIPT = EXAMPLES / "train_class_conditional.py"
UNET = (
    '{"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, '
    '"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 8 x 8 colour images, `train/<class>/<number>.png`."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (root / "train" / name).mkdir(parents=True)
        for number in range(12):
            pixels = (level + rng.integers(-40, 40, (8, 8, 3))).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(root / "train" / name / f"{number}.png")
    return root


def train(folder, output, *options, launcher=(sys.executable,)):
    command = [*launcher, SCRIPT, "--dataset", folder, "--output-dir", output, "--unet-config", UNET]
    command += ["--batch-size", 8, "--lr-warmup-steps", 1, "--checkpointing-steps", 2, *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_trains_resumes_and_classifies(folder, tmp_path):
    result = train(folder, tmp_path, "--max-train-steps", 4, "--learning-rate", 0.01)
    assert result.returncode == 0, result.stderr
    early = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)

    refused = train(folder, tmp_path, "--max-train-steps", 60)
    assert refused.returncode != 0 and "--resume" in refused.stderr

    options = ("--max-train-steps", 60, "--learning-rate", 0.01, "--p-mean", 0.0, "--shift", 1, "--flip")
    result = train(folder, tmp_path, "--resume", *options)
    assert result.returncode == 0, result.stderr
    assert "4/60" not in result.stderr and "56/56" in result.stderr, "it did not go on from step 4"

    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert not torch.equal(pipe.unet.conv_in.weight, early.unet.conv_in.weight)
    assert pipe.config.id2label == {0: "dark", 1: "light"} and pipe.config.null_class == 2
    dark, light = (PIL.Image.open(folder / "train" / name / "0.png") for name in ("dark", "light"))
    assert pipe([dark, light], seed=0).labels == [0, 1]


def test_ddpm_objective_on_two_processes_with_mixed_precision(folder, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    launcher += ["--num_machines", 1, "--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", 0]
    options = ("--objective", "ddpm", "--prediction-type", "v_prediction", "--label-dropout", 0)
    result = train(folder, tmp_path, "--max-train-steps", 3, *options, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert "3/3" in result.stderr
    assert (tmp_path / "checkpoints" / "checkpoint_0" / "random_states_1.pkl").exists(), "there was no second process"
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert pipe.scheduler.config.prediction_type == "v_prediction" and pipe.unet.dtype == torch.float32
    assert pipe.denoiser.null_source == "class_mean" and pipe.denoiser.num_classes == 2


def test_classes_may_be_plain_numbers(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    program = runpy.run_path(str(SCRIPT))
    pictures = [PIL.Image.new("L", (8, 8))] * 12
    for numbers in (range(12), range(1, 13)):
        rows = Dataset.from_dict({"image": pictures, "label": list(numbers)})
        rows.cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
        args = program["parse_args"](["--dataset", str(tmp_path), "--output-dir", str(tmp_path / "out")])
        if numbers[0] == 0:
            assert program["load_images"](args)[1] == [str(number) for number in range(12)]  # in their order
        else:
            with pytest.raises(ValueError, match="`--label-column` label must be 0, 1, 2, ..., got"):
                program["load_images"](args)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--resume",), "`--resume` must be .*, got none in"),
        (("--image-column", "picture"), "--image-column.*'picture'"),
        (("--batch-size", 100), "`--batch-size` must be at most 24 .*, got 100"),
        (("--label-dropout", 1), "`--label-dropout` must be .*, got 1"),
        (("--checkpointing-steps", 0), "`--checkpointing-steps` must be at least 1, got 0"),
    ],
)
def test_refuses_before_any_work(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # as Python does for a program that it runs
    program = runpy.run_path(str(SCRIPT))
    arguments = ["--dataset", folder, "--output-dir", tmp_path, *options]
    with pytest.raises(ValueError, match=message):
        program["train"](program["parse_args"]([str(argument) for argument in arguments]))
