"""Image classifiers of transformers by themselves, on noisy images, with tiny, real networks."""

import math

import pytest
import torch
from helpers.networks import processor, tiny_vit
from transformers import ResNetConfig, ResNetForImageClassification

from diffusers_ndc import Certificate, ImageClassifier, SmoothedClassifier


SIGMA = 0.5


@pytest.fixture
def noisy(images):
    return images + SIGMA * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    return tmp_path


def test_logits_are_those_of_the_normalised_noisy_image(folder, noisy):
    """Nothing is clipped: with clipping the logits would differ, and a certificate would still be sound, but worse."""
    base = ImageClassifier.from_pretrained(folder)
    assert torch.allclose(base(noisy), tiny_vit().eval()((noisy - 0.4) / 0.3).logits, atol=1e-5)
    assert noisy.min() < 0 and noisy.max() > 1
    assert not torch.allclose(base(noisy), base(noisy.clamp(0, 1)), atol=1e-3), "clipping should make a difference"
    plain = ImageClassifier(tiny_vit(), processor(do_normalize=False, do_resize=False))
    assert torch.allclose(plain(noisy), tiny_vit().eval()(noisy).logits, atol=1e-5)
    assert (base.image_size, base.image_channels, plain.image_size) == ((8, 8), 1, None)
    assert base.num_classes == 3 and base.evaluations == 12 and not base.randomized


def test_each_image_is_classified_by_itself_also_with_batch_norm(noisy):
    torch.manual_seed(0)
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    network = ResNetForImageClassification(config).train()
    network(pixel_values=noisy)  # moves the running mean and variance
    together = ImageClassifier(network, processor())(noisy)
    assert not any(module.training for module in network.modules())
    for batch_size in (1, 3, "auto"):
        base = ImageClassifier(network, processor(), batch_size)
        assert torch.allclose(base(noisy), together, atol=1e-5)
        assert torch.allclose(base(noisy.flip(0)).flip(0), together, atol=1e-5)
        assert base.evaluations == 8, "a trial does not count"


def test_gradients_are_those_of_finite_differences(noisy):
    base = ImageClassifier(tiny_vit().double(), processor())
    image = noisy[:1].double().requires_grad_()
    assert base(image).dtype == torch.float64
    torch.autograd.gradcheck(base, image, eps=1e-6, atol=1e-4, fast_mode=True)


def test_certificates_say_what_was_spent_and_how(folder, images):
    def certify(batch, batch_size):
        base = ImageClassifier.from_pretrained(folder, batch_size)
        return base, SmoothedClassifier(base, SIGMA).certify(batch, n0=7, n=60, seed=3)

    base, certificates = certify(images, 64)
    for certificate in certificates:
        assert certificate.evaluations == sum(certificate.selection_counts.values()) + 60
        assert Certificate.from_dict(certificate.to_dict()).verify()
    assert base.evaluations == sum(certificate.evaluations for certificate in certificates)
    assert len({str(certificate.counts) for certificate in certificates}) > 1
    assert (
        certificates[0].base_classifier
        == base.settings
        == {
            "method": "gaussian",
            "architecture": "ViTForImageClassification",
            "image_size": [8, 8],
            "image_mean": [0.4],
            "image_std": [0.3],
            "dtype": "float32",
        }
    )
    assert certify(images[1:3], 13)[1] == certificates[1:3]
    with torch.autocast("cpu", torch.bfloat16):
        assert base.settings["dtype"] == "autocast bfloat16"


def test_refuses_what_does_not_fit(folder, noisy):
    with pytest.raises(TypeError, match="`classifier` must be .*got Linear"):
        ImageClassifier(torch.nn.Linear(1, 1), processor())
    with pytest.raises(ValueError, match="`batch_size` must be .*got 0"):
        ImageClassifier(tiny_vit(), processor(), 0)
    with pytest.raises(ValueError, match="size with height and width, or do_resize=False.*shortest_edge"):
        ImageClassifier(tiny_vit(), processor(size={"shortest_edge": 8}))
    with pytest.raises(ValueError, match="`image_processor`.*do_center_crop"):
        ImageClassifier(tiny_vit(), processor(do_center_crop=True))
    broken = tiny_vit()
    broken.classifier.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="`classifier` must have finite weights"):
        ImageClassifier(broken, processor())
    base = ImageClassifier(tiny_vit(), processor())
    with pytest.raises(FloatingPointError, match="Logits must be finite"):
        base(noisy * math.nan)
    for wrong in (noisy[:, :, :4], noisy.expand(-1, 3, -1, -1), noisy[0], noisy[:0]):
        with pytest.raises(ValueError, match=r"`images` must have the shape \(N, 1, 8, 8\)"):
            base(wrong)
    with pytest.raises(TypeError, match="`images` must be a dense floating-point tensor"):
        base(noisy.long())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="`classifier_id` must be .* image processor"):
        ImageClassifier.from_pretrained(folder)
