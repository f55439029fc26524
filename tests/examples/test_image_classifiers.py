"""The training program of image classifiers: a folder of images in, a classifier for the evaluation out."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet
from helpers.paths import EXAMPLES

from diffusers_ndc import DenoisedClassifier, Denoiser, ImageClassifier


VIT = {"model_type": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS = {
    "vit": json.dumps({**VIT, "intermediate_size": 32}),
    "resnet": json.dumps({"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 8 x 8 grey images, `<split>/<class>/<number>.png`."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name, level in (("dark", 60), ("light", 190)):
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = (level + rng.integers(-40, 40, (8, 8))).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def train(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import train_image_classifier as program

    def train(*options, config="resnet"):
        words = ["--dataset", folder, "--output-dir", tmp_path / "out", "--batch-size", 8, "--config", CONFIGS[config]]
        return program.train(program.parse_args([str(word) for word in (*words, *options)]))

    train.program = program
    return train


@pytest.mark.parametrize("config, sigma", [("resnet", 0.25), ("vit", 0)])
def test_two_steps_make_a_classifier_of_the_evaluation(train, tmp_path, capsys, config, sigma):
    train("--epochs", 1, "--sigma", sigma, "--flip", config=config)
    base = ImageClassifier.from_pretrained(tmp_path / "out")
    assert (base.num_classes, base.id2label) == (2, {0: "dark", 1: "light"})
    assert (base.image_size, base.image_channels) == ((8, 8), 1)
    assert base(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    denoiser = Denoiser(tiny_unet(), DDPMScheduler(), null_class=3)
    DenoisedClassifier.from_pretrained(denoiser, tmp_path / "out", 0.25)
    printed = capsys.readouterr().out
    assert "accuracy on test, sigma 0: " in printed and ("sigma 0.25: " in printed) == (sigma > 0)


@pytest.mark.slow
def test_training_goes_on_and_learns(train, tmp_path, capsys):
    options = ("--sigma", 0.25, "--learning-rate", 0.01)
    train("--epochs", 8, *options)
    whole = ImageClassifier.from_pretrained(tmp_path / "out")
    noise = torch.Generator().manual_seed(0)
    images = torch.full((40, 1, 8, 8), 60 / 255)
    images[20:] = 190 / 255
    noisy = images + 0.25 * torch.randn(images.shape, generator=noise)
    with whole.inference():
        assert (whole(noisy).argmax(1) == torch.arange(40) // 20).float().mean() > 0.9
    with pytest.raises(ValueError, match="`--output-dir` must hold no checkpoints"):
        train("--epochs", 8, *options)
    with pytest.raises(ValueError, match="`--epochs` and `--batch-size` must be .* 16 steps in all, got 20 steps"):
        train("--epochs", 10, *options, "--resume")
    last = tmp_path / "out" / "checkpoints" / "checkpoint_7" / "custom_checkpoint_0.pkl"
    last.write_bytes(last.read_bytes()[:100])  # as after a kill at the end of epoch 8
    capsys.readouterr()
    train("--epochs", 8, *options, "--resume")
    bars = capsys.readouterr().err
    assert "epoch 8/8" in bars and "epoch 7/8" not in bars
    again = ImageClassifier.from_pretrained(tmp_path / "out")
    with whole.inference():
        assert torch.allclose(whole(noisy), again(noisy), atol=1e-4)


def test_noise_is_added_in_pixel_units_and_not_clipped(train):
    images = torch.tensor([[0, 255]], dtype=torch.uint8).expand(1, 1, 500, 2)

    class Processor:
        image_mean, image_std = [0.5], [0.5]

    pixels = train.program.prepare(images, 0.5, Processor) / 2 + 0.5
    noise = pixels - images / 255
    assert abs(noise.std() - 0.5) < 0.05 and abs(noise.mean()) < 0.05
    assert (pixels < 0).float().mean() > 0.2 and (pixels > 1).float().mean() > 0.2


@pytest.mark.parametrize(
    "options, message",
    [
        (("--resume",), "`--resume` must be given with a folder that has a checkpoint"),
        (("--sigma", -1), "`--sigma` must be a finite noise level .*got -1"),
        (("--epochs", 0), "`--epochs` must be at least 1, got 0"),
        (("--config", '{"depths": [1]}'), "`--config` must have a `model_type`, got"),
        (("--config", '{"model_type": "resnet", "depth": [1]}'), "arguments of a ResNetConfig, got .'depth'. too"),
    ],
)
def test_refuses_before_any_work(train, options, message):
    with pytest.raises(ValueError, match=message):
        train(*options)
