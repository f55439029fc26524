"""The block of Modular Diffusers: its certificates are the pipeline's, from folders, from a Hub, and by the CLI."""

import json
import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler, ModularPipelineBlocks
from diffusers.modular_pipelines import InputParam, OutputParam, SequentialPipelineBlocks
from helpers.edm_files import golden, save_published
from helpers.models import LARGE_IMAGES, latent_model
from helpers.networks import tiny_unet
from helpers.sifters import random_sift, sifter_of

from diffusers_ndc import (
    ClassifierBlock,
    LatentDiffusionClassifierPipeline,
    NoisedDiffusionClassifierPipeline,
    NoiseLevels,
)
from diffusers_ndc.pipelines.block import INPUTS


REPO = "me/model"
SETTINGS = {"sigma": 0.5, "n0": 4, "n": 40, "seed": 3}

PROGRAM = """
import torch
from diffusers import DiffusionPipeline, ModularPipeline, ModularPipelineBlocks
images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
def show(pipe):
    if isinstance(pipe, ModularPipeline):
        certificates = pipe(image=images, output="certificates", **{settings})
    else:
        certificates = pipe.certify(images, **{settings})
    print([[certificate.counts, certificate.radius] for certificate in certificates])
"""

WAYS = {
    "modular": "pipe = ModularPipeline.from_pretrained('{name}', trust_remote_code=True)\npipe.load_components()",
    "blocks": "blocks = ModularPipelineBlocks.from_pretrained('{name}', trust_remote_code=True)\n"
    "pipe = blocks.init_pipeline('{name}')\npipe.load_components()",
    "plain": "pipe = DiffusionPipeline.from_pretrained('{name}', trust_remote_code=True)",
    "named": "from diffusers_ndc import NoisedDiffusionClassifierPipeline\n"
    "pipe = NoisedDiffusionClassifierPipeline.from_pretrained('{name}')",
}


class PixelBlock(ClassifierBlock):
    pipeline_class = NoisedDiffusionClassifierPipeline


class LatentBlock(ClassifierBlock):
    pipeline_class = LatentDiffusionClassifierPipeline


class Darken(ModularPipelineBlocks):
    """A block of somebody else."""

    @property
    def inputs(self):
        return [InputParam(name="image", required=True)]

    @property
    def intermediate_outputs(self):
        return [OutputParam(name="images")]

    def __call__(self, components, state):
        state.set("images", state.get("image") / 2)
        state.set("image", None)
        return components, state


@pytest.fixture
def pipe():
    """A pipeline with levels and a sifter for the settings' sigma."""
    levels = NoiseLevels((2.5, 1.25), (0.75, 0.25), smoothing_sigma=0.5, method="apndc")
    pipe = NoisedDiffusionClassifierPipeline(
        tiny_unet(),
        DDPMScheduler(),
        id2label={0: "a", 1: "b", 2: "c"},
        null_class=3,
        levels={"0.5": {"apndc": levels.to_dict()}},
        sifter=sifter_of(random_sift(sigma=0.5)),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loaded(block, folder):
    pipe = block.init_pipeline(str(folder))
    pipe.load_components()
    return pipe


def answers(name, *ways):
    """What a fresh process prints for each way of loading, or the end of its error."""
    loads = [f"{WAYS[way].format(name=name)}\nshow(pipe)\n" for way in ways]
    program = "\n".join([PROGRAM.format(settings=SETTINGS), *loads])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr[-800:]


def printed(pipe):
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return f"{[[each.counts, each.radius] for each in pipe.certify(images, **SETTINGS)]}\n"


def test_the_block_certifies_as_the_pipeline(pipe, images, tmp_path):
    pipe.save_modular(tmp_path)
    modular = loaded(PixelBlock(), tmp_path)
    state = modular(images=images, **SETTINGS)
    expected = pipe.certify(images, **SETTINGS)
    assert state.get("certificates") == expected
    assert state.get("predictions") == [certificate.label for certificate in expected]
    (single,) = modular(image=images[0], output="certificates", **SETTINGS)
    assert single == expected[0] and single.verify() and single.agrees(pipe.replay(images[0], single))
    other = modular(image=images, output="certificates", **{**SETTINGS, "seed": 4})
    assert [each.counts for each in other] != [each.counts for each in expected]


def test_without_smoothing_the_block_classifies_as_the_pipeline(pipe, images, tmp_path):
    pipe.save_modular(tmp_path)
    outputs = ["predictions", "certificates", "pictures"]
    found = loaded(PixelBlock(), tmp_path)(image=images, sigma=0.0, seed=3, output=outputs)
    assert found["predictions"] == pipe(images, seed=3).labels and found["certificates"] == []
    assert all(isinstance(picture, PIL.Image.Image) for picture in found["pictures"]) and len(found["pictures"]) == 4


def test_pictures_show_the_image_and_have_a_caption_below(pipe, images, tmp_path):
    pipe.save_modular(tmp_path)
    picture = loaded(PixelBlock(), tmp_path)(image=images[0], output="pictures", **SETTINGS)[0]
    shown = np.asarray(picture)
    assert shown.shape[1:] == (256, 3) and shown.shape[0] > 256
    assert np.array_equal(shown[16:256:32, 16::32, 0], (images[0, 0] * 255).round().numpy())
    assert shown[256:].min() < 128 and shown[256:].max() == 255


def test_every_argument_of_certify_is_an_input_but_for_the_levels():
    assert set(signature(PixelBlock.pipeline_class.certify).parameters) - set(INPUTS) == {"self", "images", "levels"}
    assert {param.name: param.default for param in PixelBlock().inputs}["alpha"] == 0.001
    assert "max_evaluations" in PixelBlock().doc and "certificates" in PixelBlock().doc


def test_it_works_behind_blocks_of_others(pipe, images, tmp_path):
    pipe.save_modular(tmp_path)
    blocks = SequentialPipelineBlocks.from_blocks_dict({"darken": Darken, "certify": PixelBlock})
    found = loaded(blocks, tmp_path)(image=images, output="certificates", **SETTINGS)
    assert found == pipe.certify(images / 2, **SETTINGS)


def test_wrong_inputs_and_missing_components_raise(pipe, images, tmp_path):
    pipe.save_modular(tmp_path)
    modular = PixelBlock().init_pipeline(str(tmp_path))
    with pytest.raises(ValueError, match=r"load_components.*'unet', 'scheduler'"):
        modular(image=images)
    modular.load_components()
    for given, message in (({}, "neither"), ({"image": images, "images": images}, "both")):
        with pytest.raises(TypeError, match=message):
            modular(**given)
    with pytest.raises(ValueError, match="alpha"):
        modular(image=images, alpha=2)


def test_a_file_is_no_folder_to_save_in(pipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="save_directory"):
        pipe.save_modular(tmp_path / "file", push_to_hub=True)


def test_a_model_without_a_component_does_not_load_another_models(pipe, images, tmp_path):
    other = NoisedDiffusionClassifierPipeline(pipe.unet, DDPMScheduler(), tiny_unet(None), null_class=3)
    other.save_modular(tmp_path)
    assert loaded(PixelBlock(), tmp_path).unconditional_unet is not None
    pipe.save_modular(tmp_path)
    assert (tmp_path / "unconditional_unet").exists()
    assert loaded(PixelBlock(), tmp_path).unconditional_unet is None


def test_a_moved_folder_loads_its_own_components(pipe, images, tmp_path):
    pipe.save_modular(tmp_path / "before", repo_id=REPO)  # which is not asked
    (tmp_path / "before").rename(tmp_path / "after")
    modular = loaded(PixelBlock(), tmp_path / "after")
    assert modular(image=images, output="certificates", **SETTINGS) == pipe.certify(images, **SETTINGS)


def test_networks_and_schedulers_of_this_package_are_named_by_their_public_module(tmp_path):
    path = save_published(tmp_path / "a.pkl", golden("a")[0])
    pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(path)
    pipe.save_modular(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "modular_model_index.json").read_text())
    assert index["unet"][2]["type_hint"] == ["diffusers_ndc.checkpoints", "EDMUNet2DModel"]
    modular = loaded(PixelBlock(), tmp_path / "model")
    assert type(modular.unet) is type(pipe.unet) and type(modular.scheduler) is type(pipe.scheduler)
    assert all(torch.equal(a, b) for a, b in zip(modular.unet.parameters(), pipe.unet.parameters(), strict=True))


@pytest.mark.slow
def test_a_latent_model_is_a_block_too(tmp_path):
    pipe, _, _ = latent_model()
    pipe.save_modular(tmp_path)
    modular = loaded(LatentBlock(), tmp_path)
    settings = {**SETTINGS, "n": 5}
    assert modular(image=LARGE_IMAGES, output="certificates", **settings) == pipe.certify(LARGE_IMAGES, **settings)


@pytest.mark.slow
def test_all_ways_live_in_one_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    pipe.save_modular(tmp_path)
    assert answers(tmp_path, *WAYS) == len(WAYS) * printed(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["modular", "plain"])  # each with an empty cache
def test_both_kinds_live_in_one_repository(way, pipe, hub, tmp_path):
    pipe.push_to_hub(REPO)
    pipe.save_modular(tmp_path, push_to_hub=True, repo_id=REPO)
    assert answers(REPO, way) == printed(pipe)


def test_a_push_adds_the_use_of_the_block_to_the_card(pipe, hub, tmp_path):
    hub.add(REPO, {"README.md": b"---\nlicense: mit\n---\n# Own title\n\nOwn text.\n"})
    for _ in range(2):
        pipe.save_modular(tmp_path, push_to_hub=True, repo_id=REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert "Own text." in card and "license: mit" in card and "modular-diffusers" in card
    assert card.count('ModularPipeline.from_pretrained("me/model", trust_remote_code=True)') == 1
    assert card.count("What a certificate says") == 1
    index = json.loads(hub.files(REPO)["modular_model_index.json"])
    assert index["unet"][2]["pretrained_model_name_or_path"] == REPO


@pytest.mark.slow
def test_usage_in_the_card_runs_as_written(pipe, hub, tmp_path):
    pipe.save_modular(tmp_path, push_to_hub=True, repo_id=REPO)
    (code,) = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)
    program = f"import torch\nimage = torch.rand(1, 8, 8)\n{code}\nassert certificate.sigma == 0.5"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]


def cli(*arguments):
    """What `diffusers-cli` prints."""
    line = [str(Path(sys.executable).with_name("diffusers-cli")), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout


@pytest.mark.slow
def test_diffusers_cli_shows_the_inputs_and_runs_the_block(pipe, images, tmp_path):
    model, picture = tmp_path / "model", tmp_path / "image.png"
    pipe.save_modular(model)
    shown = json.loads(cli("--format", "json", "schema", "--model", model, "--trust-remote-code"))
    assert shown["pipeline_class"] == "NoisedDiffusionClassifierBlock"
    assert {"image", "sigma", "n", "alpha"} < {entry["name"] for entry in shown["inputs"]}
    PIL.Image.fromarray((images[0, 0] * 255).byte().numpy()).save(picture)
    inputs = json.dumps({"image": [str(picture)] * 2, "sigma": 0.5, "n": 40})
    options = ["--trust-remote-code", "--output-key", "pictures", "--seed", 0, "--output", f"{tmp_path / 'out'}/"]
    cli("run", "--model", model, "--pipeline-kwargs", inputs, *options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.png", "0001.png"]
