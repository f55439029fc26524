"""The embedded model and the real test digits beside it."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import load_dataset
from helpers.paths import MODEL

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline
from diffusers_ndc.common.json import differences
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.records import read_records
from diffusers_ndc.evaluation.subject import weight_hash
from diffusers_ndc.pipelines.model_card import model_section


@pytest.fixture(scope="module")
def pipe():
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def digits():
    return load_dataset(str(MODEL / "data"), split="test")


def test_the_test_digits_are_a_thousand_of_ten_classes(digits):
    assert np.bincount(digits["label"]).tolist() == [100] * 10
    assert digits.features["label"].names == [str(digit) for digit in range(10)]
    assert digits[0]["image"].size == (28, 28) and digits[0]["image"].mode == "L"


def test_the_first_digits_lie_there_as_files_too(digits):
    paths = sorted((MODEL / "digits").glob("*.png"))
    assert [int(path.stem[-1]) for path in paths] == digits[:8]["label"]
    for path, digit in zip(paths, digits[:8]["image"], strict=True):
        assert PIL.Image.open(path).mode == "L" and np.array_equal(PIL.Image.open(path), digit)


def test_model_is_small_and_knows_its_classes(pipe):
    weights = MODEL / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 3_000_000
    assert pipe.config.id2label == {digit: str(digit) for digit in range(10)}
    assert pipe.denoiser.null_source == "null_class"


def test_classifies_clean_and_noisy_digits(pipe, digits):
    images, labels = list(digits["image"][:60]), np.array(digits["label"][:60])
    assert (np.array(pipe(images, seed=0).labels) == labels).mean() >= 0.9
    clean = torch.from_numpy(np.stack(images) / np.float32(255))[:, None]
    noisy = clean + 0.25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert (np.array(pipe(noisy, sigma=0.25, seed=0).labels) == labels).mean() >= 0.85


def test_certifies_digits(pipe, digits):
    images, labels = list(digits["image"][:3]), digits["label"][:3]
    certificates = pipe.certify(images, sigma=0.25, n0=10, n=60, alpha=0.001, seed=0)
    assert [certificate.label for certificate in certificates] == labels
    assert all(certificate.radius > 0.1 and certificate.verify() for certificate in certificates)


@pytest.mark.slow
def test_method_and_smoothing_noise_of_other_kinds(pipe, digits):
    image, label = digits[0]["image"], digits[0]["label"]
    for method, sigma in (("epndc", 0.25), ("apndc-clean", 0.25), ("apndc", 0.5)):
        certificate = pipe.certify(image, sigma=sigma, method=method, n0=5, n=20, alpha=0.01, seed=0)
        assert certificate.label == label and certificate.base_classifier["method"] == method


def test_the_card_lists_the_levels_of_the_model(pipe):
    section = model_section("examples/mnist", pipe._usage(), pipe._all_levels())
    assert section in (MODEL / "README.md").read_text()


@pytest.mark.parametrize("name", ["clean", "sigma-0.25", "sigma-0.5", "sigma-1.0"])
def test_the_runs_beside_the_model_are_its_own_and_verify(pipe, name):
    report = Report.from_folder(MODEL / "evaluation" / name)
    assert report.rejected == report.failed == {} and report.missing == 0
    classifier = pipe.classifier(report.run["sigma"], report.run["method"])
    assert report.run["weight_hash"] == weight_hash(classifier)
    assert differences(report.run["base_classifier"], classifier.settings) == {}
    assert f"| {name} | correct" in (MODEL / "README.md").read_text()


def test_a_certificate_beside_the_model_is_cast_again(pipe, digits):
    """The cheapest of a run with many votes; on other hardware a few of them may move."""
    records = read_records(MODEL / "evaluation" / "sigma-0.25").values()
    record = min(records, key=lambda record: record["certificate"]["evaluations"])
    certificate = Certificate.from_dict(record["certificate"])
    again = pipe.replay(digits[record["index"]]["image"], certificate)
    assert certificate.votes_moved(again) <= 0.02 * certificate.votes
    with pytest.raises(ValueError, match="image_hash"):
        pipe.replay(digits[record["index"] + 1]["image"], certificate)
    with pytest.raises(ValueError, match="about a base classifier that this pipeline makes"):
        pipe.replay(digits[0]["image"], replace(certificate, base_classifier={"method": "dds"}))
