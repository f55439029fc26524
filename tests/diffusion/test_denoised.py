"""Denoised smoothing with tiny, real classifiers of transformers."""

import math

import numpy as np
import pytest
import torch
from datasets import load_dataset
from diffusers import DDPMScheduler, EDMEulerScheduler
from helpers.networks import processor, tiny_unet, tiny_vit
from helpers.paths import MODEL
from PIL import Image
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from diffusers_ndc import (
    Certificate,
    DenoisedClassifier,
    Denoiser,
    NoisedDiffusionClassifierPipeline,
    SmoothedClassifier,
)
from diffusers_ndc.diffusion.denoised import preprocess, read_preprocessing


SIGMA = 0.25


@pytest.fixture
def denoiser():
    return Denoiser(tiny_unet(), DDPMScheduler(), null_class=3)


@pytest.fixture
def noisy(images):
    return images + SIGMA * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    return tmp_path


def test_logits_are_those_of_the_denoised_image_worked_out_by_hand(denoiser, folder, noisy):
    base = DenoisedClassifier.from_pretrained(denoiser, folder, SIGMA)
    x0_hat = denoiser(2 * noisy - 1, 0.5, torch.full((4,), 3))
    pixels = (x0_hat.clamp(-1, 1) + 1) / 2
    assert (x0_hat.abs() > 1).any(), "the clamp should have work to do"
    expected = tiny_vit().eval()((pixels - 0.4) / 0.3).logits
    assert torch.allclose(base(noisy), expected, atol=1e-5)
    unresized = DenoisedClassifier(denoiser, tiny_vit(), processor(do_resize=False), SIGMA)
    assert torch.allclose(unresized(noisy), expected, atol=1e-5)
    assert expected.std(dim=0).min() > 1e-3, "the images should differ"
    assert base.num_classes == 3 and base.evaluations == 4 and not base.randomized
    assert not any(module.training for module in base.modules())


def test_each_image_is_classified_by_itself(denoiser, noisy):
    together = DenoisedClassifier(denoiser, tiny_vit(), processor(), SIGMA)(noisy)
    for batch_size in (1, 3):
        base = DenoisedClassifier(denoiser, tiny_vit(), processor(), SIGMA, batch_size)
        assert torch.allclose(base(noisy), together, atol=1e-5)
        assert torch.allclose(base(noisy.flip(0)).flip(0), together, atol=1e-5)


def test_gradients_are_those_of_finite_differences(noisy):
    denoiser = Denoiser(tiny_unet().double(), EDMEulerScheduler(), null_class=3)
    settings = {"side": 16, "resample": 2}
    base = DenoisedClassifier(denoiser, tiny_vit(image_size=16).double(), processor(**settings), SIGMA)
    image = noisy[:1].double().requires_grad_()
    assert base(image).dtype == torch.float64
    torch.autograd.gradcheck(base, image, eps=1e-6, atol=1e-4, fast_mode=True)
    (gradient,) = torch.autograd.grad(base(image)[0, 0], image)
    assert gradient.abs().max() > 1e-3


def test_networks_keep_their_dtypes(denoiser, noisy):
    exact = DenoisedClassifier(Denoiser(tiny_unet(), DDPMScheduler(), null_class=3), tiny_vit(), processor(), SIGMA)
    mixed = DenoisedClassifier(exact.denoiser, tiny_vit().bfloat16(), processor(), SIGMA)
    assert (mixed.settings["dtype"], mixed.settings["classifier_dtype"]) == ("float32", "bfloat16")
    half = DenoisedClassifier(denoiser, tiny_vit(), processor(), SIGMA).to(torch.bfloat16)
    assert (half.settings["dtype"], half.settings["classifier_dtype"]) == ("bfloat16", "bfloat16")
    reference = exact(noisy)
    for base in (mixed, half):
        logits = base(noisy)
        assert logits.dtype == torch.float32 and not torch.equal(logits, reference)
        assert (logits - reference).abs().max() < 0.1 * reference.std()
    with torch.autocast("cpu", torch.bfloat16):
        assert exact.settings["classifier_dtype"] == "autocast bfloat16"


@pytest.mark.parametrize("null_class, evaluations", [(3, 1), (None, 4)])
def test_certificates_say_what_was_spent_and_how(folder, images, null_class, evaluations):
    denoiser = Denoiser(tiny_unet(), DDPMScheduler(), null_class=null_class)

    def certify(batch, batch_size):
        base = DenoisedClassifier.from_pretrained(denoiser, folder, SIGMA, batch_size=batch_size)
        return base, SmoothedClassifier(base, SIGMA).certify(batch, n0=7, n=60, seed=3)

    base, certificates = certify(images, 64)
    for certificate in certificates:
        draws = sum(certificate.selection_counts.values()) + 60
        assert certificate.evaluations == draws * evaluations
        assert Certificate.from_dict(certificate.to_dict()).verify()
    assert base.evaluations == sum(certificate.evaluations for certificate in certificates)
    assert len({str(certificate.counts) for certificate in certificates}) > 1
    assert (
        certificates[0].base_classifier
        == base.settings
        == {
            "method": "dds",
            "classifier": str(folder),
            "preprocessing": {
                "size": {"height": 8, "width": 8},
                "resample": "bilinear",
                "image_mean": [0.4],
                "image_std": [0.3],
            },
            "null_source": "class_mean" if null_class is None else "null_class",
            "dtype": "float32",
            "classifier_dtype": "float32",
        }
    )
    assert certify(images[1:3], 13)[1] == certificates[1:3]


def test_copies_of_several_images_share_full_batches(denoiser, images):
    base, sizes = DenoisedClassifier(denoiser, tiny_vit(), processor(), SIGMA, batch_size=16), []
    base.classifier.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    SmoothedClassifier(base, SIGMA).predict(images, n=21)
    assert sizes == [16] * 5 + [4]


def test_names_of_classes(denoiser):
    assert DenoisedClassifier(denoiser, tiny_vit(), processor(), SIGMA).id2label is None
    names = {0: "cat", 1: "dog", 2: "LABEL_2"}
    assert DenoisedClassifier(denoiser, tiny_vit(id2label=names), processor(), SIGMA).id2label == names


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(
    "size", [{"height": 12, "width": 12}, {"height": 56, "width": 40}, {"shortest_edge": 14}, {"shortest_edge": 41}]
)
@pytest.mark.parametrize("settings", [{}, {"do_normalize": False}])
def test_preprocessing_on_tensors_is_that_of_the_image_processor(resample, size, settings):
    """Up to PIL's rounding to whole numbers, in a picture of low contrast: no kernel overshoots the range."""
    digit = load_dataset(str(MODEL / "data"), split="test")[0]["image"]
    picture = np.stack([np.array(digit), np.array(digit.rotate(90)), 255 - np.array(digit)], axis=-1)[:, 4:]
    picture = 64 + picture // 2
    theirs = ViTImageProcessor(
        size=size, resample=resample, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.25, 0.5), **settings
    )
    wanted = theirs(Image.fromarray(picture), return_tensors="pt").pixel_values
    ours = preprocess(torch.from_numpy(picture).movedim(-1, 0)[None] / 255, 3, **read_preprocessing(theirs, 3))
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() < 1.5 / 255 / (1 if settings else 0.2)


def test_a_resized_image_stays_in_its_range():
    """The cubic kernel overshoots at an edge."""
    edge = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    (resized,) = preprocess(edge, 1, **read_preprocessing(processor(16, resample=3, do_normalize=False), 1))
    assert resized.min() == 0 and resized.max() == 1


def test_preprocessing_leaves_out_what_the_processor_leaves_out():
    images = torch.rand(2, 1, 8, 8)
    nothing = read_preprocessing(processor(do_resize=False, do_normalize=False), 1)
    assert torch.equal(preprocess(images, 1, **nothing), images)
    grey = preprocess(images, 3, **read_preprocessing(processor(do_resize=False, mean=(0.1, 0.2, 0.3)), 3))
    for channel, mean in enumerate((0.1, 0.2, 0.3)):
        assert torch.allclose(grey[:, channel], (images[:, 0] - mean) / 0.3)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_pad": True}, "do_pad"),
        ({"crop_pct": 0.875}, "crop_pct"),
        ({"do_rescale": False}, "do_rescale=True.*got False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=1/255.*0.0078"),
        ({"resample": 1}, "resample=1"),
        ({"size": {"shortest_edge": 8, "longest_edge": 9}}, "longest_edge"),
        ({"mean": (0.5, 0.5, 0.5)}, "image_mean.*got .0.5, 0.5, 0.5."),
        ({"std": (0.5, 0.5)}, "image_std"),
    ],
)
def test_refuses_a_processor_that_does_something_else(denoiser, settings, match):
    with pytest.raises(ValueError, match=f"`image_processor`.*must have.*{match}"):
        DenoisedClassifier(denoiser, tiny_vit(), processor(**settings), SIGMA)


@pytest.mark.parametrize("sigma, error", [(0, ValueError), (0.004, ValueError), (100.0, ValueError), ("1", TypeError)])
def test_refuses_noise_that_the_denoiser_does_not_know(denoiser, sigma, error):
    with pytest.raises(error, match="`sigma` must be .*got"):
        DenoisedClassifier(denoiser, tiny_vit(), processor(), sigma)


def test_refuses_what_does_not_fit(denoiser, folder, noisy):
    with pytest.raises(TypeError, match="`classifier` must be .*got Linear"):
        DenoisedClassifier(denoiser, torch.nn.Linear(1, 1), processor(), SIGMA)
    with pytest.raises(ValueError, match="`classifier` must take as many channels as the denoiser has .1.*got 2"):
        DenoisedClassifier(denoiser, tiny_vit(num_channels=2), processor(), SIGMA)
    with pytest.raises(ValueError, match="`batch_size` must be .*got 0"):
        DenoisedClassifier(denoiser, tiny_vit(), processor(), SIGMA, batch_size=0)
    base = DenoisedClassifier(denoiser, tiny_vit(), processor(), SIGMA)
    with pytest.raises(ValueError, match="`images` must have the shape"):
        base(noisy[:, :, :4])
    for value in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match="must be finite"):
            base(noisy.index_fill(3, torch.tensor([0]), value))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="`classifier_id` must be .* image processor"):
        DenoisedClassifier.from_pretrained(denoiser, folder, SIGMA)


def test_certifies_real_digits_with_a_classifier_trained_on_clean_ones(tmp_path):
    rows = load_dataset(str(MODEL / "data"), split="test")
    digits = torch.from_numpy(np.stack(list(rows["image"])) / np.float32(255))[:, None]
    labels = torch.tensor(rows["label"])
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
    )
    network, epochs = ResNetForImageClassification(config).train(), 8
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=16 * epochs)
    for _ in range(epochs):
        for part in (200 + torch.randperm(800)).split(50):
            optimizer.zero_grad()
            network(pixel_values=(digits[part] - 0.5) / 0.5, labels=labels[part]).loss.backward()
            optimizer.step()
            schedule.step()
    network.save_pretrained(tmp_path)
    processor(28, mean=(0.5,), std=(0.5,)).save_pretrained(tmp_path)

    denoiser = NoisedDiffusionClassifierPipeline.from_pretrained(MODEL).denoiser
    base = DenoisedClassifier.from_pretrained(denoiser, tmp_path, SIGMA)
    certificates = SmoothedClassifier(base, SIGMA).certify(digits[:20], n0=5, n=40, seed=0)
    right = [certificate.label == label for certificate, label in zip(certificates, labels[:20].tolist(), strict=True)]
    assert sum(right) >= 14
    assert max(certificate.radius for certificate in certificates) > 0.2
    noisy = digits[:200] + SIGMA * torch.randn(200, 1, 28, 28)
    with base.inference():
        denoised = (base(noisy).argmax(1) == labels[:200]).float().mean()
        plain = (base.classifier((noisy - 0.5) / 0.5).logits.argmax(1) == labels[:200]).float().mean()
    assert denoised > 0.8 and denoised > plain + 0.1, "it is the denoising that makes the noise bearable"
