"""A model on the Hub: pushed, and found again by every way of loading, each in a fresh process with an empty cache."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from helpers.runs import make_card_run
from huggingface_hub import metadata_load

from diffusers_ndc import NoiseLevels
from diffusers_ndc.evaluation.model_card import push_to_hub


REPO = "me/model"
LEVELS = NoiseLevels((2.5, 1.25), (0.75, 0.25))

PROGRAM = """
import sys, torch
from diffusers import DDPMPipeline, DiffusionPipeline
from diffusers_ndc import NoisedDiffusionClassifierPipeline
pipe = {load}
pipe.set_progress_bar_config(disable=True)
images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
print(type(pipe).__name__, *pipe(images, seed=0).logits.flatten().tolist())
"""

NULL = "id2label={0: 'a', 1: 'b', 2: 'c'}, null_class=3"
WAYS = {
    "named": "NoisedDiffusionClassifierPipeline.from_pretrained('me/model')",
    "named, revision": "NoisedDiffusionClassifierPipeline.from_pretrained('me/model', revision='main')",
    "named, variant": "NoisedDiffusionClassifierPipeline.from_pretrained('me/halves', variant='fp16')",
    "named, of a DDPM pipeline": f"NoisedDiffusionClassifierPipeline.from_pretrained('me/plain', {NULL})",
    "from_pipe": f"NoisedDiffusionClassifierPipeline.from_pipe(DDPMPipeline.from_pretrained('me/plain'), {NULL})",
    "plain": "DiffusionPipeline.from_pretrained('me/model', trust_remote_code=True)",
    "custom_pipeline": "DiffusionPipeline.from_pretrained('me/plain', custom_pipeline='me/model', "
    f"trust_remote_code=True, {NULL})",
}


def answer(load):
    """What a fresh process prints, or the end of its error."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(load=load)], capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else done.stderr[-600:]


def printed(pipe):
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return [str(value) for value in pipe(images, seed=0).logits.flatten().tolist()]


@pytest.fixture
def pushed(hub, pipe, unet):
    """The model pushed as itself, in files of a variant, and as plain diffusers has it."""
    pipe.push_to_hub(REPO)
    pipe.push_to_hub("me/halves", variant="fp16")
    DDPMPipeline(unet, DDPMScheduler()).push_to_hub("me/plain")
    return hub


@pytest.mark.parametrize(
    "way", [way if way in ("named", "plain") else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_every_way_of_loading(way, pushed, pipe):
    assert answer(WAYS[way]) == ["NoisedDiffusionClassifierPipeline", *printed(pipe)]


@pytest.mark.slow
def test_without_the_hub_the_cache_serves(pushed, pipe, monkeypatch):
    refused = answer("NoisedDiffusionClassifierPipeline.from_pretrained('me/model', local_files_only=True)")
    assert "Error" in refused
    expected = answer(WAYS["named"])
    pushed.broken = True
    assert answer(WAYS["named"].replace(")", ", local_files_only=True)")) == expected
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert answer(WAYS["named"]) == expected


@pytest.mark.slow
def test_an_earlier_revision_stays_what_it_was(pushed, pipe):
    before = printed(pipe)
    for weight in pipe.unet.parameters():
        weight.data *= 1.5
    first = len(pushed.repos[f"models/{REPO}"])
    pipe.push_to_hub(REPO)
    now = answer(WAYS["named"])
    assert now[1:] == printed(pipe) != before
    assert answer(WAYS["named, revision"].replace("'main'", f"'{first:040x}'"))[1:] == before


@pytest.mark.parametrize("sigma", [0.5, 12 / 255])
def test_a_push_brings_our_card_whose_usage_runs_as_written(hub, pipe, images, sigma):
    levels = replace(LEVELS, smoothing_sigma=sigma, method="apndc")
    pipe.register_to_config(levels={f"{sigma:g}": {"apndc": levels.to_dict()}})
    pipe.push_to_hub(REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert "has been pushed on the Hub" not in card and "apndc | 2.5 (0.75), 1.25 (0.25)" in card
    assert "What a certificate says, and what it does not" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"image": images[0]}
    exec(code, names)
    assert names["certificate"].sigma == sigma and names["certificate"].verify()
    assert names["certificate"].base_classifier["levels"] == levels.to_dict()


def test_a_push_leaves_own_text_and_results_in_the_card(hub, pipe, tmp_path):
    hub.add(REPO, {"README.md": b"---\nlicense: mit\n---\n# Own title\n\nOwn text.\n"})
    push_to_hub([make_card_run(tmp_path / "run", model=REPO)], REPO)
    results = hub.files(REPO)["README.md"].decode().partition("## Results")[2]
    pipe.save_pretrained(str(tmp_path / "saved"), push_to_hub=True, repo_id=REPO)
    card = tmp_path / "card.md"
    card.write_bytes(hub.files(REPO)["README.md"])
    metadata, text = metadata_load(card), card.read_text()
    assert metadata["license"] == "mit" and metadata["model-index"] and "diffusers-ndc" in metadata["tags"]
    assert "Own text." in text and results in text and text.count("What a certificate says") == 1
    assert json.loads(hub.files(REPO)["model_index.json"])["_class_name"][1] == "NoisedDiffusionClassifierPipeline"
