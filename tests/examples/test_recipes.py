"""The recipes, with tiny stand-ins: from the files to the table, and on after every kind of kill."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import cifar10_dds
import cifar10_edm
import imagenet64
import psutil
import pytest
import steps
from diffusers import UNet2DModel
from helpers.paths import EXAMPLES
from helpers.web import web as web
from huggingface_hub import constants
from stand_in import stand_in

from diffusers_ndc import EDMUNet2DModel, NoisedDiffusionClassifierPipeline
from diffusers_ndc.checkpoints import OpenAIUNet2DModel
from diffusers_ndc.checkpoints.openai_arguments import published
from diffusers_ndc.evaluation import load_task, parse, read_records
from diffusers_ndc.evaluation.verify import check_file


RECIPES = [module.RECIPE for module in (cifar10_edm, imagenet64, cifar10_dds)]
IMAGES = 3


def arguments(output, **changes):
    values = {
        "dataset": None,
        "classifier": None,
        "sigma": None,
        "limit": None,
        "num_processes": 1,
        "batch_size": None,
    }
    return argparse.Namespace(output=output, plan=False, dry_run=True, **{**values, **changes})


@pytest.fixture
def here(monkeypatch, tmp_path):
    """What a dry run in this process changes is changed back."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_facts_of_the_recipes(recipe, tmp_path):
    name = recipe.unconditional.rpartition("/")[2]
    kind = next((kind for kind in published() if name in kind["files"]), None)
    assert recipe.unconditional_arguments == (None if kind is None else kind["arguments"])
    task = load_task(recipe.task)
    assert set(recipe.published) <= set(task.radii)
    args = argparse.Namespace(output=tmp_path, classifier=None, limit=None, batch_size=None)
    for sigma in task.sigmas:
        settings = parse(steps.evaluation(recipe, args, task.dataset, sigma)[1:])
        settings.check()
        assert (settings.task, settings.sigma, settings.limit) == (task, sigma, task.images)
        assert settings.method == ("dds" if recipe.classifier else "apndc")
    args.limit, args.batch_size = 7, 16
    for dataset in (task.dataset, "a/copy"):
        fewer = parse(steps.evaluation(recipe, args, dataset, 0.5)[1:])
        fewer.check()
        assert (fewer.task, fewer.dataset, fewer.limit, fewer.batch_size) == (None, dataset, 7, 16)
        assert (fewer.skip, fewer.n, fewer.radii) == (task.skip, task.n, list(task.radii))


def test_another_command_in_the_same_folder_is_refused(tmp_path):
    steps.check_same_command(tmp_path / "recipe.json", {"dry_run": True, "limit": None})
    steps.check_same_command(tmp_path / "recipe.json", {"dry_run": True, "limit": None})
    with pytest.raises(ValueError, match="`--dry-run` must be True, with which .* was begun, got False. Take another"):
        steps.check_same_command(tmp_path / "recipe.json", {"dry_run": False, "limit": None})


def test_a_model_is_replaced_as_a_whole(pipe, tmp_path):
    """Also if a kill comes between the two renames, or leaves a half-written model."""
    model = tmp_path / "model"
    steps.save(pipe, model)
    model.rename(tmp_path / "model.old")
    (tmp_path / "model.new").mkdir()
    steps.go_back(model)
    assert NoisedDiffusionClassifierPipeline.from_pretrained(model).config.levels is None
    pipe.register_to_config(levels={"0.25": {}})
    steps.save(pipe, model)
    assert NoisedDiffusionClassifierPipeline.from_pretrained(model).config.levels == {"0.25": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--limit", "0"], "`--limit` must be 1 or more, got 0"),
        (["--num-processes", "-1"], "`--num-processes` must be 1 or more, got -1"),
        (["--sigma", "0.5", "0.3"], "argument --sigma: invalid choice: 0.3"),
    ],
)
def test_options_are_refused_before_any_work(options, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["cifar10_edm.py", "--output", str(tmp_path / "out"), *options])
    monkeypatch.setattr(steps, "follow", None)
    with pytest.raises(SystemExit):
        steps.main(cifar10_edm.RECIPE, "")
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def start(output, recipe="cifar10_edm"):
    command = [sys.executable, EXAMPLES / "recipes" / f"{recipe}.py", "--output", output, "--dry-run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def finish(process):
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return output


def read_until(process, words):
    """Read what a recipe prints, up to a line with these words."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


def kill(*processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=300)


def results(output):
    """Records and table of a finished recipe, without what differs between two runs of the same."""
    records = read_records(output / "sigma-0.25")
    for record in records.values():
        del record["seconds"], record["run"]
    return records, (output / "comparison.md").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder of a dry run, and what it printed."""
    output = tmp_path_factory.mktemp("undisturbed")
    return output, finish(start(output))


@pytest.mark.slow
def test_from_the_files_to_the_table(undisturbed):
    output, printed = undisturbed
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(output / "model")
    assert type(pipe.unet) is type(pipe.unconditional_unet) is EDMUNet2DModel and pipe.unet.config.sample_size == 32
    assert list(pipe.config.levels) == ["0.25"] and pipe.sifter.find(0.25, "apndc") is not None
    assert printed.index("is estimated to take") < printed.index("certifying"), "the cost must be told before"
    (file,) = (output / "sigma-0.25").glob("*.jsonl")
    flaws = [flaw for _, _, flaw in check_file(file)]
    assert flaws == [None] * IMAGES
    table = (output / "comparison.md").read_text()
    assert printed.endswith(table + "\n") and "these figures mean nothing" in table
    assert "| over 80% |" in table and "| 70.7% |" in table and f"| images | {IMAGES} |" in table


@pytest.mark.slow
def test_nothing_is_done_twice(here, undisturbed, monkeypatch, capsys):
    output, _ = undisturbed
    before = results(output)
    monkeypatch.setattr("sys.argv", ["cifar10_edm.py", "--output", str(output), "--dry-run"])
    monkeypatch.setattr(steps, "run", None)
    steps.main(cifar10_edm.RECIPE, "")
    printed = capsys.readouterr().out
    assert "model: is there" in printed and "model: is calibrated" in printed and "sigma-0.25: is finished" in printed
    assert results(output) == before


@pytest.mark.slow
def test_a_killed_recipe_goes_on(undisturbed, tmp_path):
    """Killed with all its processes in the calibration; alone in the run, whose process then goes on by itself."""
    recipe = start(tmp_path)
    read_until(recipe, "calibrating")
    time.sleep(0.5)
    kill(psutil.Process(recipe.pid))
    assert (tmp_path / "model").is_dir() and not (tmp_path / "plan-sigma-0.25.md").exists()

    recipe = start(tmp_path)
    read_until(recipe, "certifying")
    process = psutil.Process(recipe.pid)
    while not list((tmp_path / "sigma-0.25").glob("*.jsonl")):
        time.sleep(0.05)
    family = process.children(recursive=True)
    assert family
    kill(process)
    assert not (tmp_path / "sigma-0.25" / "done").exists()

    printed = finish(start(tmp_path))
    for skipped in ("model: is there", "model: is calibrated"):
        assert skipped in printed
    assert "downloading" not in printed and "calibrating" not in printed and "a short trial" not in printed
    assert results(tmp_path) == results(undisturbed[0])


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on(here, web, tmp_path):
    with stand_in(cifar10_edm.RECIPE, tmp_path / "stand-in") as recipe:
        content = (tmp_path / "stand-in" / "networks" / "edm-cifar10-32x32-cond-vp.pkl").read_bytes()
        cut = web.add("edm-cifar10-32x32-cond-vp.pkl", content, breaks=[100_000] + [0] * 20)
        with pytest.raises(OSError, match="`path` .* must be a file that can be downloaded"):
            steps.convert(replace(recipe, conditional=cut), tmp_path / "model")
        assert not (tmp_path / "model").exists()
        web.files["edm-cifar10-32x32-cond-vp.pkl"].breaks.clear()
        web.requests.clear()
        steps.convert(replace(recipe, conditional=cut), tmp_path / "model")
        assert web.ranges == ["bytes=100000-"]

        headers = {"Range": "bytes=100000-", "If-Range": f'"{cut[-64:]}"'}
        request = urllib.request.Request(recipe.conditional.partition("#")[0], headers=headers)
        with urllib.request.urlopen(request) as rest:
            assert rest.status == 206 and rest.read() == content[100_000:]


@pytest.mark.slow
def test_denoised_smoothing_with_an_image_classifier(here, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["cifar10_dds.py", "--output", str(tmp_path), "--dry-run", "--limit", "2"])
    steps.main(cifar10_dds.RECIPE, "")
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "model")
    assert type(pipe.unconditional_unet) is OpenAIUNet2DModel and pipe.config.levels is None
    records = read_records(tmp_path / "sigma-0.25")
    assert [record["certificate"]["base_classifier"]["method"] for record in records.values()] == ["dds", "dds"]
    assert "| 79.3% |" in (tmp_path / "comparison.md").read_text()


@pytest.mark.slow
def test_imagenet_with_networks_of_two_origins(here, monkeypatch, tmp_path):
    """But for the plan, whose trial takes long with these networks."""
    monkeypatch.setattr("sys.argv", ["imagenet64.py", "--output", str(tmp_path), "--dry-run", "--limit", "1"])
    steps.write(tmp_path / "plan-sigma-0.25.md", "The plan of before.")
    steps.main(imagenet64.RECIPE, "")
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "model")
    assert type(pipe.unet) is UNet2DModel and type(pipe.unconditional_unet) is OpenAIUNet2DModel
    assert pipe.unconditional_scheduler is not None and pipe.unet.config.sample_size == 64
    (record,) = read_records(tmp_path / "sigma-0.25").values()
    assert record["certificate"]["base_classifier"]["null_source"] == "unconditional_unet"
    assert json.loads((tmp_path / "recipe.json").read_text())["limit"] == 1
