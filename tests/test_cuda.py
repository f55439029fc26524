"""What only a CUDA device can show: the same noise and votes as on the CPU, half precision, memory, and no waiting.

`pytest -m cuda` runs all of this on a machine with a card. `pytest tests/test_cuda.py --device cpu` runs on the CPU
what does not need one, so that these tests themselves stay in order.
"""

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet
from helpers.paths import EXAMPLES
from helpers.sifters import random_sift, sifter_of

from diffusers_ndc import (
    Denoiser,
    NoisedDiffusionClassifier,
    NoisedDiffusionClassifierPipeline,
    NoiseLevels,
    SiftingRule,
    SmoothedClassifier,
)
from diffusers_ndc.certification.smoothing_noise import SmoothingNoise
from diffusers_ndc.common.noise import standard_normal
from diffusers_ndc.common.prefetch import NoiseAhead
from diffusers_ndc.diffusion import batch_size as trials
from diffusers_ndc.diffusion import classifier, sifting
from diffusers_ndc.diffusion.open_copies import in_one_copy
from diffusers_ndc.diffusion.sifting import SiftingPool


pytestmark = pytest.mark.cuda

CERTIFY = {"sigma": 0.25, "n0": 5, "n": 40, "seed": 3}
LEVELS = NoiseLevels((2.0, 4.0), (1.0, 0.5), SiftingRule((0.1,)))


@pytest.fixture
def device(request):
    """The device under test."""
    name = request.config.getoption("--device")
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; `--device cpu` runs what does not")
    return torch.device(name)


@pytest.fixture
def card(device):
    """A CUDA device, for tests that mean nothing elsewhere."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return device


@pytest.fixture
def exact_convolutions(monkeypatch):
    """Convolutions in float32: CUDA rounds their inputs to TF32 otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def image():
    """A grey image of 8 bits."""
    return torch.randint(256, (1, 8, 8), generator=torch.Generator().manual_seed(1)) / 255


@pytest.fixture
def load(tmp_path):
    """A function that loads a small pipeline with a sifter to a device."""
    pipe = NoisedDiffusionClassifierPipeline(
        tiny_unet(), DDPMScheduler(), null_class=3, sifter=sifter_of(random_sift())
    )
    pipe.save_pretrained(tmp_path / "model")

    def load(device, **settings):
        pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "model", **settings)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    return load


def classifier_on(device, batch_size=16, size=8, sifts=True):
    """A classifier with a rule and a sifter, which has full and smaller batches and drops classes."""
    denoiser = Denoiser(tiny_unet(sample_size=size).to(device), DDPMScheduler(), null_class=3)
    sift = random_sift().to(device) if sifts else None
    return NoisedDiffusionClassifier(denoiser, 0.25, "apndc", LEVELS, batch_size, sift=sift)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_the_cpu_s_bit_by_bit(device, dtype):
    shape, seeds = (3, 32, 32), list(range(20))
    expected = standard_normal(shape, seeds, dtype, torch.device("cpu"))
    assert torch.equal(standard_normal(shape, seeds, dtype, device).cpu(), expected)
    ahead = NoiseAhead()
    ahead.expect(shape, seeds[::2], dtype)
    found = ahead.standard_normal(shape, seeds, dtype, device)
    assert found.device.type == device.type and torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("grid", [None, 16])
def test_noisy_copies_are_the_cpu_s(device, image, grid):
    noise, seeds = SmoothingNoise(0.25, grid), list(range(20))
    found, expected = noise.noisy_copies(image.to(device), seeds).cpu(), noise.noisy_copies(image, seeds)
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if grid else 1e-6)


@pytest.mark.parametrize("settings", [{}, {"radii": [0.1, 0.2]}, {"grid": 16}, {"sift": False}], ids=str)
def test_certificates_replay_on_the_other_kind_of_device(device, load, image, settings, exact_convolutions):
    there, here = load(device), load("cpu")
    for maker, other in ((there, here), (here, there)):
        certificate = maker.certify(image, **CERTIFY, **settings)
        again = other.replay(image, certificate)
        assert certificate.device == maker.device.type and again.device == other.device.type
        assert certificate.agrees(again) and certificate.evaluations == again.evaluations
        assert certificate.counts == again.counts


def test_tf32_convolutions_move_near_ties_only(device, load, image):
    certificate = load(device).certify(image, **CERTIFY)
    assert certificate.agrees(load("cpu").replay(image, certificate))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(device, load, image, dtype):
    pipe = load(device)
    with torch.autocast(device.type, dtype):
        certificate = pipe.certify(image, **CERTIFY, batch_size="auto")
        assert certificate.base_classifier["dtype"] == f"autocast {dtype}".replace("torch.", "")
        assert certificate.agrees(pipe.replay(image, certificate))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(device, load, image, dtype):
    pipe = load(device, dtype=dtype)
    certificate = pipe.certify(image, **CERTIFY)
    assert certificate.verify() and certificate.agrees(load("cpu", dtype=dtype).replay(image, certificate))


@pytest.mark.slow
def test_a_compiled_network(device, load, image):
    certificate = load(device).certify(image, **CERTIFY)
    pipe = load(device)
    pipe.unet.compile(dynamic=True, backend="inductor" if device.type == "cuda" else "eager")
    assert certificate.agrees(pipe.replay(image, certificate, batch_size=16))
    assert certificate.agrees(pipe.replay(image, certificate, batch_size="auto"))


def test_a_model_that_is_offloaded_to_the_cpu(device, load, image):
    certificate = load(device).certify(image, **CERTIFY)
    pipe = load("cpu")
    pipe.enable_model_cpu_offload(device=device)
    assert certificate.agrees(pipe.replay(image, certificate))
    found = pipe.certify(image, **CERTIFY, batch_size="auto")
    assert found.device == device.type and certificate.agrees(found)
    assert next(pipe.unet.parameters()).device.type == "cpu"


def test_the_batch_size_that_is_found_changes_no_vote(device, image):
    found = classifier_on(device, "auto")
    settings = {"n0": 5, "n": 40, "seed": 0, "radii": [0.1], "max_evaluations": 500}
    images = image.to(device)[None]
    (certificate,) = SmoothedClassifier(found, 0.25).certify(images, **settings)
    assert found.network_batch in {2**k for k in range(13)}
    (again,) = SmoothedClassifier(classifier_on(device, 3), 0.25).certify(images, **settings)
    assert certificate.agrees(again) and certificate.evaluations == again.evaluations


def test_the_trial_ends_where_memory_ends(device, image, monkeypatch):
    """On a card memory is really short; elsewhere the network says so."""
    size = 256 if device.type == "cuda" else 16
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 2**29) / total)
    base = classifier_on(device, "auto", size)
    evaluate, sizes = base.evaluate, []

    def short_of_memory(images):
        sizes.append(len(images))
        if device.type != "cuda" and len(images) > 4:
            raise torch.OutOfMemoryError("no memory for more than 4 images")
        evaluate(images)

    monkeypatch.setattr(base, "evaluate", short_of_memory)
    monkeypatch.setattr(trials, "GROWTH", 0.0)  # goes on although larger batches are no faster
    monkeypatch.setattr(trials, "SECONDS", 60.0)
    try:
        smoothed = SmoothedClassifier(base, 0.25)
        images = image.repeat(1, size // 8, size // 8).to(device)[None]
        (certificate,) = smoothed.certify(images, n0=1, n=10, seed=0)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert certificate.n == 10 and base.network_batch < max(sizes), "memory did not end"


@pytest.mark.slow
def test_two_processes_share_a_run(device, small_model, tmp_path):
    """Each process has a card of its own, as `accelerate launch` deals them out."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model, data = small_model(tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(EXAMPLES / "evaluate.py"), "--model", str(model), "--dataset", str(data)]
    command += ["--n0", "3", "--n", "20", "--output", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    files = list((tmp_path / "run").glob("*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(files) == 2 and len(records) == 12
    assert {record["certificate"]["device"] for record in records} == {device.type}
    assert all(record["batch_size"] >= 1 for record in records)


def test_the_card_is_waited_for_as_often_as_it_must(card, image, monkeypatch):
    """Once for the candidates of added copies, for the classes that are left, and for the votes of decided copies."""
    smoothed = SmoothedClassifier(classifier_on(card), 0.25)
    images = image.to(card)[None]
    smoothed.certify(images, n0=1, n=80, seed=0)  # warms up
    needed = []
    step = SiftingPool.step

    def counted(*values):
        needed.append("classes")
        return in_one_copy(*values)

    def counted_step(pool):
        decided = step(pool)
        needed.extend(["votes"] * bool(decided.keys))
        return decided

    monkeypatch.setattr(classifier, "in_one_copy", counted)
    monkeypatch.setattr(sifting, "in_one_copy", counted)
    monkeypatch.setattr(SiftingPool, "step", counted_step)

    def waits(n):
        """Places of the waits, and the number of those that are needed."""
        needed.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                smoothed.certify(images, n0=1, n=n, seed=0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = Counter(
            f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)
        )
        return places, len(needed)

    (many, needed_by_many), (few, needed_by_few) = waits(80), waits(20)
    more = many - few  # by place; what an image costs, however many copies it has, is in both
    assert more.total() == needed_by_many - needed_by_few > 0, f"needed {needed_by_many - needed_by_few}, got {more}"


def test_a_batch_is_scored_without_waiting(card, image):
    base = classifier_on(card, sifts=False)  # no copy is decided when it is added
    copies = image.to(card).expand(8, -1, -1, -1)
    with base.inference():
        base(copies, list(range(8)))  # warms up
        pool = base.pool()
        pool.add(base._copies(copies, list(range(8))))
        rows = pool._rows_to_score(pool.copies)
        torch.cuda.set_sync_debug_mode("error")
        try:
            pool._score(pool.copies, rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
