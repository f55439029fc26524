"""Checkpoints of OpenAI as pipelines: converted, saved, found again in every way, and put to work."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from helpers.openai_files import flags, golden, save_golden

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels, OpenAIUNet2DModel


LEVELS = NoiseLevels((1.0, 2.0), (1.0, 0.5))
OTHER = {"num_heads": 4, "use_new_attention_order": False, "rescale_timesteps": True}
"""Arguments of the network `c` that it does not share with `d`."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The small networks as files of OpenAI, by their letters."""
    folder = tmp_path_factory.mktemp("published")
    return {name: save_golden(folder / f"{name}.pt", name) for name in "acdef"}


@pytest.fixture(scope="module")
def pipe(files):
    """Class-conditional with heads of two widths, and unconditional with rescaled timesteps."""
    pipe = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
        files["d"], files["c"], **flags("d"), unconditional_arguments=OTHER
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures():
    """Two clean images in [0, 1]."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def logits(pipe, pictures):
    pipe.set_progress_bar_config(disable=True)
    return pipe(pictures, levels=LEVELS, seed=0).logits


def test_checkpoint_to_certificate(pipe, folder, pictures):
    assert pipe.denoiser.num_classes == 10 and pipe.denoiser.null_source == "unconditional_unet"
    assert type(pipe.scheduler) is DDPMScheduler and pipe.denoiser.sigma_range[1] > 1e4
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == index["unconditional_unet"] == ["diffusers_ndc_component", "OpenAIUNet2DModel"]
    read = NoisedDiffusionClassifierPipeline.from_pretrained(folder)
    assert type(read.unet) is type(read.unconditional_unet) is OpenAIUNet2DModel
    assert torch.equal(logits(read, pictures), logits(pipe, pictures))
    certificate = read.certify(pictures[0], sigma=0.25, n0=2, n=8, levels=LEVELS, seed=0)
    assert certificate.verify() and certificate.base_classifier["null_source"] == "unconditional_unet"


def test_from_pipe_keeps_both_networks(pipe):
    again = NoisedDiffusionClassifierPipeline.from_pipe(pipe)
    assert again.unet is pipe.unet and again.unconditional_unet is pipe.unconditional_unet


def settings(network):
    """The configuration as JSON, where tuples are lists."""
    return {key: json.dumps(value) for key, value in network.config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name, network", [("a", UNet2DModel), ("d", OpenAIUNet2DModel), ("e", OpenAIUNet2DModel)])
@torch.no_grad()
def test_saved_networks_are_the_same(name, network, files, tmp_path):
    """Read back by their own class, without this package where they are stock, and as parts of a pipeline."""
    pipe = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(files[name], **flags(name))
    assert type(pipe.unet) is network and pipe.denoiser.null_source == "class_mean"
    pipe.save_pretrained(tmp_path)
    numbers = golden(name)[1]
    arguments = (numbers["in.x"], numbers["in.t"], numbers["in.labels"])
    expected = pipe.unet(*arguments).sample
    for read in (network.from_pretrained(tmp_path / "unet"), type(pipe).from_pretrained(tmp_path).unet):
        assert settings(read) == settings(pipe.unet)
        assert torch.equal(read(*arguments).sample, expected)
    torch.testing.assert_close(expected, numbers["out.raw"], rtol=0, atol=2e-5)


def test_variants_and_shards(pipe, pictures, tmp_path):
    expected = logits(pipe, pictures)
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="1MB")
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, variant="fp16", device_map="cpu")
    assert torch.equal(logits(read, pictures), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, pipe, folder, pictures):
    read = NoisedDiffusionClassifierPipeline.from_pretrained(folder, dtype=dtype)
    assert read.unet.dtype == dtype and read.unconditional_unet.time_proj.scale == 0.25
    torch.testing.assert_close(logits(read, pictures), logits(pipe, pictures), rtol=0.05, atol=1.0)


def test_number_of_names_is_the_number_of_classes(files):
    arguments = {name: value for name, value in flags("d").items() if name != "num_classes"}
    names = {0: "bird", 1: "car", 2: "cat"}
    pipe = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(files["d"], id2label=names, **arguments)
    assert pipe.denoiser.num_classes == 3 and pipe.config.id2label == names
    with pytest.raises(ValueError, match="`num_classes` must be at most 10"):
        NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
            files["d"], id2label={label: str(label) for label in range(11)}, **arguments
        )
    with pytest.raises(ValueError, match="`id2label`"):
        NoisedDiffusionClassifierPipeline.from_openai_checkpoint(files["d"], id2label=names, **flags("d"))


@pytest.mark.parametrize("arguments", [{"num_head": 4}, {"num_heads": 0}, [4]])
def test_refuses_other_unconditional_arguments(arguments, files):
    with pytest.raises(ValueError, match="`unconditional_arguments` must be a dictionary|`num_heads` must be"):
        NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
            files["d"], files["c"], **flags("d"), unconditional_arguments=arguments
        )


LOAD = """
import sys, torch
from {package} import {pipeline}
pipe = {pipeline}.from_pretrained(sys.argv[1]{trust})
pipe.set_progress_bar_config(disable=True)
from diffusers_ndc import NoiseLevels
pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
logits = pipe(pictures, levels=NoiseLevels((1.0, 2.0), (1.0, 0.5)), seed=0).logits
torch.save(logits, sys.argv[2])
print(type(pipe).__name__, type(pipe.unet).__name__, pipe.unconditional_unet.config.timestep_scale)
"""
PLAIN = {"package": "diffusers", "pipeline": "DiffusionPipeline", "trust": ", trust_remote_code=True"}
NAMED = {"package": "diffusers_ndc", "pipeline": "NoisedDiffusionClassifierPipeline", "trust": ""}


@pytest.mark.parametrize("how", [NAMED, PLAIN], ids=["named", "plain"])
@pytest.mark.parametrize("place", [pytest.param("folder", marks=pytest.mark.slow), "hub"])
def test_fresh_processes_load_it(how, place, pipe, folder, pictures, hub, tmp_path):
    hub.add("me/adm", {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()})
    where = str(folder) if place == "folder" else "me/adm"
    result = subprocess.run(
        [sys.executable, "-c", LOAD.format(**how), where, tmp_path / "logits"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "NoisedDiffusionClassifierPipeline OpenAIUNet2DModel 0.25"
    torch.testing.assert_close(torch.load(tmp_path / "logits"), logits(pipe, pictures), rtol=1e-5, atol=0)


def test_plain_diffusers_asks_for_trust(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)
