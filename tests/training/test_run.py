"""A training: a folder of images in, a pipeline folder out."""

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from helpers.training import UNET, make_images

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.training import TrainingSettings, train
from diffusers_ndc.training.checkpoints import LAST_FILE, whole_checkpoints
from diffusers_ndc.training.images import augment, load_images
from diffusers_ndc.training.objective import build_denoiser, draw_noise_levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data"))


def settings_of(folder, output, **changes):
    given = {"unet_config": UNET, "batch_size": 8, "lr_warmup_steps": 1, "checkpointing_steps": 2, **changes}
    return TrainingSettings(str(folder), str(output), **given)


def test_a_training_that_is_resumed_goes_on(folder, tmp_path):
    """From its last checkpoint, with the optimizer, the averaged weights and the order of the images in it."""
    train(settings_of(folder, tmp_path, max_train_steps=2))
    early = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`--output-dir` must hold no checkpoints for a new run"):
        train(settings_of(folder, tmp_path, max_train_steps=4))
    train(settings_of(folder, tmp_path, max_train_steps=4, resume=True))
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert not torch.equal(pipe.unet.conv_in.weight, early.unet.conv_in.weight)
    assert pipe.config.id2label == {0: "dark", 1: "light"} and pipe.config.null_class == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint_0", "checkpoint_1"]


def test_a_checkpoint_that_a_kill_left_without_its_end_is_passed_over(folder, tmp_path):
    train(settings_of(folder, tmp_path, max_train_steps=6))
    checkpoints = tmp_path / "checkpoints"
    torn = checkpoints / "checkpoint_2" / LAST_FILE
    torn.write_bytes(torn.read_bytes()[:1000])
    assert [path.name for path in whole_checkpoints(checkpoints)] == ["checkpoint_1"]
    train(settings_of(folder, tmp_path, max_train_steps=6, resume=True))
    assert [path.name for path in whole_checkpoints(checkpoints)] == ["checkpoint_1", "checkpoint_2"]
    for path in checkpoints.iterdir():
        (path / LAST_FILE).unlink()
    train(settings_of(folder, tmp_path, max_train_steps=2, resume=True))  # none is left: anew
    assert [path.name for path in whole_checkpoints(checkpoints)] == ["checkpoint_0"]


def test_a_training_that_diverges_ends_before_it_replaces_a_checkpoint(folder, tmp_path):
    train(settings_of(folder, tmp_path, max_train_steps=2, learning_rate=1e30, lr_warmup_steps=1000))
    early = (tmp_path / "checkpoints" / "checkpoint_0" / "model.safetensors").read_bytes()
    (tmp_path / "training.json").unlink()
    with pytest.raises(FloatingPointError, match="must be finite, got NaN or infinity within the 4 steps so far"):
        train(settings_of(folder, tmp_path, max_train_steps=20, learning_rate=1e30, resume=True))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_0"]
    assert (tmp_path / "checkpoints" / "checkpoint_0" / "model.safetensors").read_bytes() == early


def test_checkpoints_of_other_distances_keep_their_order(folder, tmp_path):
    train(settings_of(folder, tmp_path, max_train_steps=6))
    train(settings_of(folder, tmp_path, max_train_steps=9, checkpointing_steps=3, resume=True))
    assert [path.name for path in whole_checkpoints(tmp_path / "checkpoints")] == ["checkpoint_2", "checkpoint_3"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"objective": "ddpm"}, "`--objective` must be edm, with which the training in .* was begun, got ddpm"),
        ({"batch_size": 4}, "`--batch-size` must be 8,"),
        ({"unet_config": None}, "`--unet-config` must be {'block_out_channels': .8, 8.,"),
    ],
)
def test_a_training_is_not_resumed_with_other_settings(folder, tmp_path, changes, said):
    settings_of(folder, tmp_path).record()
    (tmp_path / "checkpoints" / "checkpoint_0").mkdir(parents=True)
    settings_of(folder, tmp_path, max_train_steps=99, checkpointing_steps=5, resume=True).check()
    with pytest.raises(ValueError, match=said):
        settings_of(folder, tmp_path, resume=True, **changes).check()
    (tmp_path / "training.json").unlink()  # a training from before there was one
    settings_of(folder, tmp_path, resume=True, **changes).check()


def test_classes_may_be_plain_numbers(tmp_path):
    pictures = [PIL.Image.new("L", (8, 8))] * 12
    settings = TrainingSettings(str(tmp_path), str(tmp_path / "out"))
    for numbers in (range(12), range(1, 13)):
        rows = Dataset.from_dict({"image": pictures, "label": list(numbers)})
        rows.cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
        if numbers[0] == 0:
            assert load_images(settings).class_names == [str(number) for number in range(12)]  # in their order
        else:
            with pytest.raises(ValueError, match="`--label-column` label must be 0, 1, 2, ... for each image, got"):
                load_images(settings)


@pytest.mark.parametrize("unknown", [-1, None])
def test_images_without_a_class_are_refused(tmp_path, unknown):
    """Data sets mark them so; training would end at the first of them."""
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    rows = {"image": [PIL.Image.new("L", (8, 8))] * 3, "label": [0, 1, unknown]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=f"for each image, got .{unknown}.\\."):
        load_images(TrainingSettings(str(tmp_path), str(tmp_path / "out")))


def test_images_get_one_size_and_the_network_has_it(folder, tmp_path):
    data = load_images(settings_of(folder, tmp_path, resolution=[4, 8]))
    assert (data.size, data.channels, data.class_names) == ((4, 8), 3, ["dark", "light"])
    row = data.rows[0]
    assert row["images"].shape == (3, 4, 8) and 0 <= row["images"].min() <= row["images"].max() <= 1
    denoiser = build_denoiser(settings_of(folder, tmp_path, label_dropout=0.0), data)
    assert denoiser.image_size == (4, 8) and denoiser.null_source == "class_mean"
    assert load_images(settings_of(folder, tmp_path)).size == (8, 8)


def test_images_without_augmentation_stay_as_they_are(folder, tmp_path):
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(augment(images, settings_of(folder, tmp_path)), images, atol=1e-6)
    torch.manual_seed(0)
    flipped = augment(images.repeat(8, 1, 1, 1), settings_of(folder, tmp_path, flip=True)).view(8, 3, 1, 8, 8)
    mirrored = torch.isclose(flipped, images.flip(-1), atol=1e-6).all(dim=(2, 3, 4))
    unchanged = torch.isclose(flipped, images, atol=1e-6).all(dim=(2, 3, 4))
    assert (mirrored ^ unchanged).all() and mirrored.any() and unchanged.any()
    assert not torch.allclose(augment(images, settings_of(folder, tmp_path, shift=2.0)), images, atol=1e-3)


def test_the_ddpm_objective_is_the_error_of_the_network_s_own_prediction(folder, tmp_path):
    """The weights turn the error of the denoised image into that of `epsilon`, `v` or the image."""
    for kind in ("epsilon", "v_prediction", "sample"):
        settings = settings_of(folder, tmp_path, objective="ddpm", prediction_type=kind)
        denoiser = build_denoiser(settings, load_images(settings))
        torch.manual_seed(1)
        sigma, weight = draw_noise_levels(5, denoiser.scheduler, torch.device("cpu"), settings)
        clean, noise = torch.rand(5, 3, 8, 8) * 2 - 1, torch.randn(5, 3, 8, 8)
        alpha = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
        step = sigma.view(-1, 1, 1, 1)
        with torch.no_grad():
            denoised = denoiser(clean + step * noise, sigma, torch.zeros(5, dtype=torch.long))
        predicted_noise = (clean + step * noise - denoised) / step
        errors = {
            "epsilon": predicted_noise - noise,
            "sample": denoised - clean,
            "v_prediction": alpha.sqrt() * (predicted_noise - noise) - (1 - alpha).sqrt() * (denoised - clean),
        }
        expected = (errors[kind] ** 2).mean(dim=(1, 2, 3))
        actual = weight * ((denoised - clean) ** 2).mean(dim=(1, 2, 3))
        assert torch.allclose(actual, expected, rtol=1e-3)


def test_the_loss_of_edm_has_its_weights(folder, tmp_path):
    settings = settings_of(folder, tmp_path, p_mean=0.0, p_std=0.5, sigma_data=0.8)
    sigma, weight = draw_noise_levels(4000, None, torch.device("cpu"), settings)
    assert abs(sigma.log().mean()) < 0.05 and abs(sigma.log().std() - 0.5) < 0.05
    assert np.allclose(weight, (sigma**2 + 0.64) / (0.8 * sigma) ** 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_column": "picture"}, "--image-column.*'picture'"),
        ({"split": "nothing"}, "`--dataset` must be a data set that can be loaded, .* --split nothing"),
        ({"batch_size": 100}, "`--batch-size` must be at most 24 .*, got 100"),
    ],
)
def test_data_that_do_not_fit_are_refused(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings_of(folder, tmp_path, **changes))
