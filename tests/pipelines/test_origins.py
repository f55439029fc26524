"""A pipeline whose two networks are of different origin: from files, saved, found again in every way, certified."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from helpers import edm_files, openai_files
from helpers.networks import tiny_unet
from helpers.openai_files import flags

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels, OpenAIUNet2DModel
from diffusers_ndc.checkpoints import VPPrecondScheduler


LEVELS = NoiseLevels((1.0, 2.0), (1.0, 0.5))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Class-conditional and unconditional networks of EDM, and of OpenAI."""
    folder = tmp_path_factory.mktemp("published")
    edm = {name: edm_files.save_published(folder / f"{name}.pkl", edm_files.golden(name)[0]) for name in "ad"}
    return edm, {name: openai_files.save_golden(folder / f"{name}.pt", name) for name in "cd"}


@pytest.fixture(scope="module")
def openai_beside_edm(files):
    """EDM's preconditioning for the classes, epsilon of a cosine schedule without them."""
    edm, openai = files
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(
        edm["a"], openai["c"], unconditional_arguments=flags("c")
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def edm_beside_openai(files):
    """Epsilon of a cosine schedule for the classes, VP preconditioning, which diffusers does not have, without."""
    edm, openai = files
    pipe = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(openai["d"], edm["d"], **flags("d"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(edm_beside_openai, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "pipeline"
    edm_beside_openai.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures():
    """Two images in [0, 1] plus noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 16, 16)
    return torch.rand(shape, generator=generator) + 0.25 * torch.randn(shape, generator=generator)


def logits(pipe, pictures):
    pipe.set_progress_bar_config(disable=True)
    return pipe(pictures, sigma=0.25, levels=LEVELS, seed=0).logits


def test_checkpoints_to_certificate(openai_beside_edm, pictures, tmp_path):
    pipe = openai_beside_edm
    assert type(pipe.scheduler) is EDMEulerScheduler and type(pipe.unconditional_scheduler) is DDPMScheduler
    assert type(pipe.unconditional_unet) is OpenAIUNet2DModel
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unconditional_scheduler"] == ["diffusers", "DDPMScheduler"]
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert type(read.unconditional_scheduler) is DDPMScheduler
    assert torch.equal(logits(read, pictures), logits(pipe, pictures))

    image = pictures[0].clamp(0, 1)
    certificate = read.certify(image, sigma=0.25, n0=2, n=8, levels=LEVELS, seed=0)
    stated = certificate.base_classifier["unconditional_scheduler"]
    assert certificate.verify() and stated["beta_schedule"] == "squaredcos_cap_v2"
    assert certificate.agrees(pipe.replay(image, certificate))
    read.register_modules(unconditional_scheduler=DDPMScheduler())
    with pytest.raises(ValueError, match="unconditional_scheduler"):
        read.replay(image, certificate)


@pytest.mark.parametrize("arguments", [{"num_head": 4}, {"num_heads": 0}, [4]])
def test_refuses_other_arguments_of_the_unconditional_network(arguments, files):
    edm, openai = files
    with pytest.raises(ValueError, match="`unconditional_arguments` must be a dictionary|`num_heads` must be"):
        NoisedDiffusionClassifierPipeline.from_edm_checkpoint(edm["a"], openai["c"], unconditional_arguments=arguments)


def test_from_pipe_keeps_both(edm_beside_openai):
    again = NoisedDiffusionClassifierPipeline.from_pipe(edm_beside_openai)
    assert again.unconditional_scheduler is edm_beside_openai.unconditional_scheduler
    assert again.unet is edm_beside_openai.unet and again.unconditional_unet is edm_beside_openai.unconditional_unet


def test_schedulers_that_diffusers_does_not_have_are_saved(edm_beside_openai, folder, pictures, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unconditional_scheduler"] == ["diffusers_ndc_component", "VPPrecondScheduler"]
    read = NoisedDiffusionClassifierPipeline.from_pretrained(folder)
    assert type(read.unconditional_scheduler) is VPPrecondScheduler
    read.save_pretrained(tmp_path, variant="fp16", max_shard_size="1MB")
    again = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, variant="fp16", device_map="cpu")
    assert torch.equal(logits(again, pictures), logits(edm_beside_openai, pictures))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, edm_beside_openai, folder, pictures):
    read = NoisedDiffusionClassifierPipeline.from_pretrained(folder, dtype=dtype)
    assert read.unet.dtype == read.unconditional_unet.dtype == dtype
    torch.testing.assert_close(logits(read, pictures), logits(edm_beside_openai, pictures), rtol=0.05, atol=1.0)


def test_offloading(edm_beside_openai, folder, pictures):
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folder)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(logits(pipe, pictures), logits(edm_beside_openai, pictures))
    assert hasattr(pipe.unet, "_hf_hook") and hasattr(pipe.unconditional_unet, "_hf_hook")


LOAD = """
import sys, torch
from {package} import {pipeline}
pipe = {pipeline}.from_pretrained(sys.argv[1]{trust})
pipe.set_progress_bar_config(disable=True)
from diffusers_ndc import NoiseLevels
pictures = torch.load(sys.argv[2])
torch.save(pipe(pictures, sigma=0.25, levels=NoiseLevels((1.0, 2.0), (1.0, 0.5)), seed=0).logits, sys.argv[3])
print(type(pipe).__name__, type(pipe.scheduler).__name__, type(pipe.unconditional_scheduler).__name__)
"""
PLAIN = {"package": "diffusers", "pipeline": "DiffusionPipeline", "trust": ", trust_remote_code=True"}
NAMED = {"package": "diffusers_ndc", "pipeline": "NoisedDiffusionClassifierPipeline", "trust": ""}


@pytest.mark.parametrize("how", [NAMED, PLAIN], ids=["named", "plain"])
@pytest.mark.parametrize("place", [pytest.param("folder", marks=pytest.mark.slow), "hub"])
def test_fresh_processes_load_it(how, place, edm_beside_openai, folder, pictures, hub, tmp_path):
    hub.add("me/two", {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()})
    torch.save(pictures, tmp_path / "pictures")
    where = str(folder) if place == "folder" else "me/two"
    arguments = [where, tmp_path / "pictures", tmp_path / "logits"]
    result = subprocess.run([sys.executable, "-c", LOAD.format(**how), *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "NoisedDiffusionClassifierPipeline DDPMScheduler VPPrecondScheduler"
    torch.testing.assert_close(torch.load(tmp_path / "logits"), logits(edm_beside_openai, pictures), rtol=1e-5, atol=0)


@pytest.mark.parametrize("without_key", [False, True])
def test_folders_without_such_a_scheduler_have_one_for_both(without_key, pipe, images, tmp_path):
    """Also those whose index does not have the name."""
    pipe.register_modules(unconditional_unet=tiny_unet(None))
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    config = json.loads(index.read_text())
    assert config["unconditional_scheduler"] == [None, None]
    if without_key:
        del config["unconditional_scheduler"]
        index.write_text(json.dumps(config))
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)
    assert read.unconditional_scheduler is None
    read.set_progress_bar_config(disable=True)
    assert torch.equal(read(images, sigma=0.25, seed=0).logits, pipe(images, sigma=0.25, seed=0).logits)


def test_two_pipelines_parts_make_one(unet, images):
    """By hand, as the documentation has it; and it calibrates."""
    conditional = NoisedDiffusionClassifierPipeline(unet, EDMEulerScheduler(), null_class=3)
    pipe = NoisedDiffusionClassifierPipeline(
        conditional.unet,
        conditional.scheduler,
        unconditional_unet=tiny_unet(None),
        unconditional_scheduler=DDPMScheduler(),
        null_class=3,
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    pipe.calibrate(torch.rand(6, 1, 8, 8, generator=generator), [0, 1, 2] * 2, sigma=0.25, num_copies=1)
    certificate = pipe.certify(images[0], sigma=0.25, n0=2, n=8)
    assert certificate.verify() and "sifter" in certificate.base_classifier
    assert certificate.agrees(pipe.replay(images[0], certificate))


def test_refuses_other_images_and_a_scheduler_without_its_network(unet):
    with pytest.raises(ValueError, match="`unconditional_unet` must take images"):
        NoisedDiffusionClassifierPipeline(unet, EDMEulerScheduler(), tiny_unet(None, sample_size=16))
    with pytest.raises(ValueError, match="`unconditional_scheduler` must be None without"):
        NoisedDiffusionClassifierPipeline(unet, EDMEulerScheduler(), unconditional_scheduler=DDPMScheduler())
