"""EDM checkpoints as pipelines: converted, saved, found again in every way, and put to work."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from helpers.edm_files import golden, save_published
from helpers.paths import EXAMPLES

from diffusers_ndc import EDMUNet2DModel, NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.checkpoints import EDMCheckpoint, VPPrecondScheduler


CONVERT = EXAMPLES / "convert_edm_checkpoint.py"
LEVELS = NoiseLevels((1.0, 2.0), (1.0, 0.5))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The golden networks as published pickles, by their letters."""
    folder = tmp_path_factory.mktemp("published")
    return {name: save_published(folder / f"{name}.pkl", golden(name)[0]) for name in ("a", "b", "c2", "e")}


@pytest.fixture(scope="module")
def pictures():
    """Two clean images in [0, 1]."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def logits(pipe, pictures):
    pipe.set_progress_bar_config(disable=True)
    return pipe(pictures, levels=LEVELS, seed=0).logits


def test_checkpoint_to_certificate(files, pictures, tmp_path):
    names = {label: f"class {label}" for label in range(10)}
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(files["a"], files["e"], names)
    assert pipe.config.id2label == names and pipe.config.null_class is None
    assert pipe.denoiser.num_classes == 10 and pipe.denoiser.null_source == "unconditional_unet"
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == index["unconditional_unet"] == ["diffusers_ndc_component", "EDMUNet2DModel"]
    shim = (tmp_path / "unet" / "diffusers_ndc_component.py").read_text()
    assert "from diffusers_ndc.checkpoints import EDMUNet2DModel" in shim

    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert type(read.unet) is type(read.unconditional_unet) is EDMUNet2DModel
    assert torch.equal(logits(read, pictures), logits(pipe, pictures))
    certificate = read.certify(pictures[0], sigma=0.25, n0=2, n=8, levels=LEVELS, seed=0)
    assert certificate.verify() and certificate.base_classifier["null_source"] == "unconditional_unet"
    again = NoisedDiffusionClassifierPipeline.from_pipe(read)
    assert again.unet is read.unet and again.unconditional_unet is read.unconditional_unet


def test_without_an_unconditional_network_the_class_mean_serves(files):
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(files["c2"])
    assert type(pipe.unet) is UNet2DModel and pipe.unet.config.num_class_embeds == 10
    assert (pipe.denoiser.null_source, pipe.denoiser.null_evaluations) == ("class_mean", 10)


def test_null_class_is_the_label_of_all_zeros(files, tmp_path):
    """If asked for, or if the network was trained with label dropout."""
    checkpoint, numbers = golden("a")
    dropped = EDMCheckpoint("EDMPrecond", {**checkpoint.init_kwargs, "label_dropout": 0.1}, checkpoint.state_dict, "")
    for path, null_class in [(files["a"], 10), (save_published(tmp_path / "dropped.pkl", dropped), None)]:
        pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(path, null_class=null_class)
        assert pipe.config.null_class == 10 and pipe.denoiser.null_source == "null_class"
        with torch.no_grad():
            h = pipe.denoiser(numbers["in.x"], numbers["in.sigma"])
        torch.testing.assert_close(h, numbers["out.D_uncond"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("names", [{0: "a", 1: "b"}, {label: str(label) for label in range(11)}])
def test_refuses_another_number_of_names(names, files):
    with pytest.raises(ValueError, match="`id2label`.*10 classes"):
        NoisedDiffusionClassifierPipeline.from_edm_checkpoint(files["a"], id2label=names)


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """A saved pipeline with a network and a scheduler that diffusers does not have: NCSN++, under VP."""
    path = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(files["b"])
    pipe.register_modules(scheduler=VPPrecondScheduler())
    pipe.save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, files, pictures, tmp_path):
    """Weights are halved, the frequencies of the time embedding are not, however the network is cast."""
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(files["b"])
    pipe.save_pretrained(tmp_path)
    expected = logits(pipe, pictures)
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, dtype=dtype)
    for half in (read, pipe.to(dtype=dtype)):
        assert half.unet.dtype == dtype and half.unet.time_proj.frequencies.dtype == torch.float32
        assert half.denoiser.dtype == str(dtype).removeprefix("torch.")
        torch.testing.assert_close(logits(half, pictures), expected, rtol=0.05, atol=1.0)


@pytest.mark.parametrize("arguments", [{"variant": "fp16"}, {"max_shard_size": "500KB"}])
def test_variants_and_shards(arguments, folder, pictures, tmp_path):
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path, **arguments)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) == (1 if "variant" in arguments else 4)
    variant = {"variant": arguments["variant"]} if "variant" in arguments else {}
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, device_map="cpu", **variant)
    assert torch.equal(logits(read, pictures), logits(pipe, pictures))


def test_offloading(folder, pictures):
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folder)
    expected = logits(pipe, pictures)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(logits(pipe, pictures), expected) and hasattr(pipe.unet, "_hf_hook")


LOAD = """
import sys
from {package} import {pipeline}
pipe = {pipeline}.from_pretrained(sys.argv[1]{trust})
print(type(pipe).__name__, type(pipe.unet).__name__, type(pipe.scheduler).__name__, pipe.denoiser.num_classes)
"""
PLAIN = {"package": "diffusers", "pipeline": "DiffusionPipeline", "trust": ", trust_remote_code=True"}
NAMED = {"package": "diffusers_ndc", "pipeline": "NoisedDiffusionClassifierPipeline", "trust": ""}
EXPECTED = "NoisedDiffusionClassifierPipeline EDMUNet2DModel VPPrecondScheduler 10"


@pytest.mark.parametrize("how", [NAMED, PLAIN], ids=["named", "plain"])
@pytest.mark.parametrize("place", [pytest.param("folder", marks=pytest.mark.slow), "hub"])
def test_fresh_processes_load_it(how, place, folder, hub):
    hub.add("me/edm", {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()})
    where = str(folder) if place == "folder" else "me/edm"
    result = subprocess.run([sys.executable, "-c", LOAD.format(**how), where], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == EXPECTED


def test_plain_diffusers_asks_for_trust(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)


def test_the_program_converts_and_says_what_it_found(files, tmp_path):
    command = [sys.executable, CONVERT, files["a"], "--unconditional", files["e"], "--output", tmp_path / "out"]
    result = subprocess.run([*command, "--class-names", *"abcdefghij"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "EDMUNet2DModel (DDPM++), images 3 x 16 x 16, 10 class embeddings, 442,035 parameters" in result.stdout
    assert "EDMEulerScheduler, noise levels 0.002 to 80" in result.stdout and "unconditional_unet" in result.stdout
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "out")
    assert read.config.id2label[9] == "j"
