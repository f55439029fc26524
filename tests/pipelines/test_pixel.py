import json
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, EDMEulerScheduler, ScoreSdeVeScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import (
    Certificate,
    Denoiser,
    NoisedDiffusionClassifierPipeline,
    NoiseLevels,
)


def test_classifies_whatever_people_hold(pipe):
    array = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    pictures = [PIL.Image.fromarray(image) for image in array]
    tensor = torch.from_numpy(array / np.float32(255))[:, None]
    reference = pipe(pictures, seed=0)
    assert reference.logits.shape == reference.probs.shape == (2, 3)
    assert reference.labels == reference.logits.argmax(1).tolist()
    torch.testing.assert_close(reference.probs, reference.logits.softmax(1))
    for images in (array[..., None], tensor, list(tensor), [array[0], pictures[1]]):
        torch.testing.assert_close(pipe(images, seed=0).logits, reference.logits)
    torch.testing.assert_close(pipe(pictures[1], seed=0).logits, reference.logits[1:])
    torch.testing.assert_close(pipe(image=pictures, seed=0).logits, reference.logits)
    labels, probs, logits = pipe(pictures, seed=0, return_dict=False)
    assert labels == reference.labels and torch.equal(logits, reference.logits)


def test_seed_and_generator(pipe, images):
    by_seed = pipe(images, seed=3).logits
    assert torch.equal(pipe(images, seed=3).logits, by_seed)
    assert not torch.equal(pipe(images).logits, pipe(images).logits)
    first, second = (pipe(images, generator=torch.Generator().manual_seed(1)).logits for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="`seed` must be None if `generator` is given, got 3"):
        pipe(images, seed=3, generator=torch.Generator())
    with pytest.raises(TypeError, match="`generator`"):
        pipe(images, generator=3)


def test_certify_and_predict_one_image_or_many(pipe, images):
    levels = NoiseLevels.log_grid(0.8, 9.0, 2)
    one = pipe.certify(images[0], n0=5, n=40, levels=levels, seed=1)
    many = pipe.certify(images, n0=5, n=40, levels=levels, seed=1)
    assert isinstance(one, Certificate) and one == many[0] and len(many) == 4
    assert all(certificate.verify() for certificate in many)
    assert pipe.predict(images[0], n=10, levels=levels, seed=1) == pipe.predict(images, n=10, levels=levels, seed=1)[0]


def test_noise_is_in_pixel_units_and_the_network_gets_twice_as_much(pipe, images, monkeypatch):
    """The copies carry the sigma that was asked for, and are denoised at that noise in model units."""
    noisy, sigmas = [], set()
    denoise = Denoiser.denoise

    def watched_denoise(self, x, sigma, class_labels=None, batch_size=None):
        if class_labels is None:  # the copies as they come
            noisy.append((x + 1) / 2)
            sigmas.add(sigma)
        return denoise(self, x, sigma, class_labels, batch_size)

    monkeypatch.setattr(Denoiser, "denoise", watched_denoise)
    pipe.certify(images[0], sigma=0.3, n0=50, n=150, levels=NoiseLevels((2.0,), (1.0,)), seed=0)
    noise = torch.cat(noisy) - images[0]
    assert noise.std().item() == pytest.approx(0.3, rel=0.03) and noise.mean().item() == pytest.approx(0, abs=0.01)
    assert sigmas == {0.6}


def test_certificates_that_stop_or_grow(pipe, images):
    settings = {"n0": 5, "n": 60, "levels": NoiseLevels.log_grid(0.8, 9.0, 2), "seed": 1}
    stopped = pipe.certify(images[0], radii=(0.25,), **settings)
    assert stopped.verify() and stopped.bound == "mixture" and stopped.n <= 60
    sharp = pipe.certify(images[0], resolution=0.01, **settings)
    assert sharp.verify() and sharp.bound == "mixture" and sharp.n <= 60
    curtailed = pipe.certify(images[0], radii=(0.25,), bound="clopper-pearson", **settings)
    assert curtailed.verify() and curtailed.n == 60 and sum(curtailed.counts.values()) <= 60
    grown = list(pipe.certify_iter(images[0], **settings))
    assert [certificate.n for certificate in grown] == [20, 40, 60]
    assert all(certificate.verify() for certificate in grown)
    assert grown[-1].counts == pipe.certify(images[0], bound="mixture", **settings).counts
    with pytest.raises(ValueError, match="single image"):
        pipe.certify_iter(images)


def test_module_shares_the_networks_and_follows_them(pipe, images):
    module = pipe.classifier(sigma=0.25, seed=1)
    assert isinstance(module, torch.nn.Module) and module.denoiser.unet is pipe.unet
    x = images.clone().requires_grad_()
    module(x).sum().backward()
    assert x.grad.abs().sum() > 0
    pipe.scheduler = EDMEulerScheduler()
    assert not torch.allclose(pipe.classifier(sigma=0.25, seed=1)(images), module(images))


def test_progress_bar(pipe, images, capfd):
    pipe.set_progress_bar_config(disable=False)
    pipe.certify(images[:1], n0=2, n=8, levels=NoiseLevels((1.0,), (1.0,)))
    assert "10/10" in capfd.readouterr().err


def test_own_folder_round_trip(pipe, images, tmp_path):
    levels = NoiseLevels.log_grid(0.7, 5.0, 3)
    pipe.register_to_config(levels={"0.25": {"apndc": levels.to_dict()}})
    second = tiny_unet(num_class_embeds=None)
    pipe.register_modules(unconditional_unet=second)
    pipe.save_pretrained(tmp_path)
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert read.config.id2label == {0: "a", 1: "b", 2: "c"} and read.config.null_class == 3
    assert read.classifier(0.25).levels == levels != read.classifier(0.3).levels
    assert read.denoiser.null_source == "unconditional_unet"
    read.set_progress_bar_config(disable=True)
    assert torch.equal(read(images, sigma=0.25, seed=0).logits, pipe(images, sigma=0.25, seed=0).logits)


@pytest.mark.parametrize("arguments", [{"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_saved_variants_and_shards_load(pipe, images, tmp_path, arguments):
    pipe.save_pretrained(tmp_path, **arguments)
    variant = {"variant": arguments["variant"]} if "variant" in arguments else {}
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, **variant)
    assert torch.equal(read(images, seed=0).logits, pipe(images, seed=0).logits)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), DDIMScheduler(prediction_type="v_prediction")])
def test_ddpm_pipeline_folders_load_as_they_are(scheduler, unet, images, tmp_path):
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    plain = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert plain.denoiser.null_source == "class_mean" and plain(images).logits.shape == (4, 4)
    named = NoisedDiffusionClassifierPipeline.from_pretrained(
        tmp_path, null_class=3, id2label={0: "x", 1: "y", 2: "z"}
    )
    assert named.denoiser.null_source == "null_class" and named(images).logits.shape == (4, 3)


def test_from_pipe(unet, images):
    source = DDPMPipeline(unet, DDPMScheduler())
    pipe = NoisedDiffusionClassifierPipeline.from_pipe(source, null_class=3)
    assert pipe.unet is unet and pipe(images).logits.shape == (4, 3)
    back = NoisedDiffusionClassifierPipeline.from_pipe(pipe)
    assert back.config.null_class == 3


FRESH_PROCESS = """
import sys
from diffusers import DiffusionPipeline
path, custom = sys.argv[1], sys.argv[2] or None
pipe = DiffusionPipeline.from_pretrained(path, custom_pipeline=custom, trust_remote_code=True)
print(type(pipe).__module__, type(pipe).__name__, pipe.config.null_class)
"""


@pytest.mark.parametrize(
    "own_folder, custom",
    [(True, ""), *(pytest.param(False, custom, marks=pytest.mark.slow) for custom in (".", "pipeline.py"))],
)
def test_plain_diffusion_pipeline_loads_it_in_a_fresh_process(own_folder, custom, pipe, tmp_path):
    """By `model_index.json` of its own folder, or by `custom_pipeline=` (folder or file) on a DDPMPipeline's
    folder."""
    own, stock = tmp_path / "own", tmp_path / "stock"
    pipe.save_pretrained(own)
    DDPMPipeline(pipe.unet, pipe.scheduler).save_pretrained(stock)
    arguments = [str(own), ""] if own_folder else [str(stock), str(own / custom)]
    result = subprocess.run([sys.executable, "-c", FRESH_PROCESS, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = f"diffusers_ndc.pipelines.pixel NoisedDiffusionClassifierPipeline {3 if own_folder else None}"
    assert result.stdout.strip() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_classifies_certifies_and_replays(pipe, images, tmp_path, dtype):
    pipe.save_pretrained(tmp_path)
    half = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    half.set_progress_bar_config(disable=True)
    assert half.unet.dtype == dtype
    logits = half(images, sigma=0.25, seed=0).logits
    torch.testing.assert_close(logits, pipe(images, sigma=0.25, seed=0).logits, rtol=0.05, atol=1.0)
    certificates = half.certify(images, sigma=0.25, n0=5, n=30, seed=0, batch_size="auto")
    for image, certificate in zip(images, certificates, strict=True):
        assert certificate.base_classifier["dtype"] == str(dtype).removeprefix("torch.") and certificate.verify()
        assert certificate.agrees(half.replay(image, certificate, batch_size=7))
    with pytest.raises(ValueError, match="base_classifier.dtype"):
        pipe.replay(images[0], certificates[0])


def test_dtype_device_and_casts(pipe, images, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    out = half(images, sigma=0.25, seed=0)
    assert out.logits.dtype == torch.float32
    torch.testing.assert_close(out.logits, pipe(images, sigma=0.25, seed=0).logits, rtol=0.05, atol=1.0)
    assert pipe.to("cpu", torch.bfloat16).unet.dtype == torch.bfloat16
    assert pipe.certify(images[0], n0=1, n=1).base_classifier["dtype"] == "bfloat16"


def test_offload_order_names_every_network(pipe):
    assert pipe.model_cpu_offload_seq.split("->") == ["unconditional_unet", "unet"]
    others = {"scheduler", "unconditional_scheduler", *pipe._exclude_from_cpu_offload}
    assert {"unet", "unconditional_unet"} == {name for name in pipe.components if name not in others}


def test_cpu_offload(pipe, images):
    """The base class's hooks, on the accelerator where there is one, else from CPU to CPU."""
    pipe.register_modules(unconditional_unet=tiny_unet(num_class_embeds=None))
    expected = pipe(images, sigma=0.25, seed=0).logits
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    pipe.enable_model_cpu_offload(device=device)
    out = pipe(images, sigma=0.25, seed=0)
    assert hasattr(pipe.unet, "_hf_hook") and pipe.unet.device.type == "cpu"
    if device.type == "cpu":
        torch.testing.assert_close(out.logits, expected)
    assert pipe.certify(images[0], n0=2, n=10).verify()


def test_sequential_offload(pipe, images):
    """Weights that are nowhere between two calls: what they are computed in is still known."""
    expected = pipe.certify(images[0], n0=2, n=10, seed=0)
    cpu_offload(pipe.unet, torch.device("cpu"))
    assert pipe.unet.device.type == "meta"
    assert pipe.certify(images[0], n0=2, n=10, seed=0) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert pipe.certify(images[0], n0=1, n=1).base_classifier["dtype"] == "autocast bfloat16"


def test_layerwise_casting(pipe, images):
    expected = pipe(images, seed=0).logits
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert pipe.unet.conv_in.weight.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(pipe(images, seed=0).logits, expected, rtol=0.2, atol=20.0)


def test_hooks_are_freed_after_every_call(pipe, images, monkeypatch):
    freed = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    certificate = pipe.certify(images[0], n0=1, n=2)
    calls = [
        lambda: pipe(images),
        lambda: pipe.predict(images, n=2),
        lambda: pipe.certify_unsmoothed(images[0], n0=1, n=2, levels=NoiseLevels((3.0,), (1.0,))),
        lambda: list(pipe.certify_iter(images[0], n0=1, n=2)),
        lambda: next(pipe.certify_iter(images[0], n0=1, n=200)),  # and left there
        lambda: pipe.replay(images[0], certificate),
    ]
    for number, call in enumerate(calls, start=2):
        call()
        assert len(freed) == number


def test_the_progress_bar_knows_how_many_draws_there_are(pipe, images, monkeypatch):
    totals, bar = [], SimpleNamespace(update=lambda count: None)
    monkeypatch.setattr(pipe, "progress_bar", lambda total: totals.append(total) or nullcontext(bar))
    for settings in ({}, {"radii": [0.05]}, {"n0": 4}):
        pipe.certify(images[:2], n=50, **settings)
    assert totals == [2 * 150, 2 * 60, 2 * 54]


def test_dropout_is_not_left_on(pipe, images):
    """It would be noise that no seed says."""
    pipe.unet = tiny_unet(dropout=0.5)
    assert torch.equal(pipe(images, seed=0).logits, pipe(images, seed=0).logits)
    pipe.unet.train()
    for call in (lambda: pipe(images), lambda: pipe.certify(images), lambda: pipe.classifier(0.25)):
        with pytest.raises(ValueError, match="training mode, where its Dropout changes the answers"):
            call()


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"unet": tiny_unet(num_class_embeds=None)}, "no class embedding"),
        ({"scheduler": ScoreSdeVeScheduler()}, "known noise level"),
        ({"id2label": {0: "a", 1: "b"}}, "`id2label`"),
        ({"id2label": {0: "a", 1: "b", 3: "c"}}, "`id2label`"),
        ({"id2label": {"a": 0, "b": 1, "c": 2}}, "`id2label`"),
        ({"id2label": ["a", "b", "c"]}, "`id2label`"),
        ({"id2label": {0: "a", 1: "b", 2: "c", 3: "d"}}, "`id2label`"),
        ({"null_class": 7}, "`null_class`"),
        ({"levels": {"0.25": {"apndc": {"sigmas": [1.0], "weights": [-1.0]}}}}, "`weights`"),
        ({"levels": {"quarter": {"apndc": {"sigmas": [1.0], "weights": [1.0]}}}}, "`levels`"),
        ({"levels": {"0.25": {"dc": {"sigmas": [1.0], "weights": [1.0]}}}}, "`sigma` .*0.25"),
    ],
)
def test_refuses_components_and_config(unet, arguments, match):
    with pytest.raises(ValueError, match=match):
        NoisedDiffusionClassifierPipeline(**{"unet": unet, "scheduler": DDPMScheduler(), "null_class": 3, **arguments})


def test_refuses_a_folder_without_classes(tmp_path):
    DDPMPipeline(tiny_unet(num_class_embeds=None), DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no class embedding"):
        NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)


CALIBRATED_FOR_HALF = NoiseLevels((2.0,), (1.0,), smoothing_sigma=0.5, method="apndc")


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda p, x: p(x * 255), ValueError, "`images` must have values in"),
        (lambda p, x: p(x - 0.5), ValueError, "`images` must have values in"),
        (lambda p, x: p(x * 255, sigma=0.25), ValueError, "`images` must have values in"),
        (lambda p, x: p(x * float("nan")), ValueError, "without NaN, got nan"),
        (lambda p, x: p(x * float("nan"), sigma=0.25), ValueError, "without NaN, got nan"),
        (lambda p, x: p(x[:, :, :7]), ValueError, "8 x 8"),
        (lambda p, x: p(x.repeat(1, 3, 1, 1)), ValueError, r"\(N, 1, height, width\)"),
        (lambda p, x: p("digit.png"), TypeError, "`images`"),
        (lambda p, x: p(x, sigma=-1.0), ValueError, "`sigma`"),
        (lambda p, x: p(x, sigma=500.0), ValueError, "`sigma`"),
        (lambda p, x: p(x, sigma=0.25, method="dc"), ValueError, "`sigma`"),
        (lambda p, x: p(x, method="svm"), ValueError, "`method`"),
        (lambda p, x: p.predict(x, sigma=0.0), ValueError, "`sigma`"),
        (lambda p, x: p.certify(x, sigma=0.25, method="dc"), ValueError, "`sigma`"),
        (lambda p, x: p.certify(x + 1), ValueError, "`images` must have values in"),
        (lambda p, x: p.certify(x, alpha=1.5), ValueError, "`alpha`"),
        (lambda p, x: p.certify(x, n0=-1), ValueError, "`n0`"),
        (lambda p, x: p.certify(x, bound="guess"), ValueError, "`bound`"),
        (lambda p, x: p.certify(x, resolution=0.0), ValueError, "`resolution`"),
        (lambda p, x: p.certify(x, radii=(0.25, 1.0), n=10_000), ValueError, "`radii`.*0.7936"),
        (
            lambda p, x: p.certify(x, levels=CALIBRATED_FOR_HALF),
            ValueError,
            "`levels` must be calibrated for sigma=0.25.*got .*sigma=0.5",
        ),
        (lambda p, x: p.certify(x, n=-5), ValueError, "`n`"),
        (lambda p, x: p.certify(x, batch_size=0), ValueError, "`batch_size`"),
        (lambda p, x: p.certify(x, radii=(-0.5,)), ValueError, "`radii`"),
        (lambda p, x: p.certify_iter(x[0], n=0), ValueError, "`n`"),
        (lambda p, x: p.predict(x, n=0), ValueError, "`n`"),
        (lambda p, x: p(), TypeError, "`images` or `image` must be given, got neither"),
        (lambda p, x: p(x, image=x), TypeError, "`images` or `image` must be given, got both"),
        (lambda p, x: p.replay(x, None), TypeError, "`certificate` must be of type .*, got NoneType"),
    ],
)
def test_refuses_bad_input_before_any_network_call(pipe, images, monkeypatch, call, error, match):
    def never(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(pipe.unet, "forward", never)
    with pytest.raises(error, match=match):
        call(pipe, images)


def test_saved_class_name_serves_both_ways_of_loading(pipe, tmp_path):
    """The list form is for the plain DiffusionPipeline; the named class reads it back through a private hook."""
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "NoisedDiffusionClassifierPipeline"]
    assert "pip install git+https://github.com/diffusers-ndc/diffusers-ndc" in (tmp_path / "pipeline.py").read_text()
    config = NoisedDiffusionClassifierPipeline.load_config(tmp_path)
    assert config["_class_name"] == "NoisedDiffusionClassifierPipeline"
