"""Models that visitors' links name: ids of the Hub alone, without programs, and only a few at a time."""

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.app import models
from diffusers_ndc.app.models import Models, RefusedModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved pipeline of colour images and three classes."""
    folder = tmp_path_factory.mktemp("model")
    pipe = NoisedDiffusionClassifierPipeline(
        tiny_unet(in_channels=3, out_channels=3),
        DDPMScheduler(),
        id2label={0: "cat", 1: "dog", 2: "owl"},
        null_class=3,
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def fetched(saved, monkeypatch):
    """Serves the saved pipeline under every id; the ids that were fetched."""
    ids = []

    def fetch(hub_id, folder):
        ids.append(hub_id)
        shutil.copytree(saved, folder, dirs_exist_ok=True)

    monkeypatch.setattr(models, "fetch", fetch)
    return ids


@pytest.mark.parametrize(
    "place",
    [
        "/etc",
        "..",
        "../models",
        "~/model",
        "./model",
        "a/../b",
        "a/b/c",
        "C:\\model",
        "a",
        "",
        "a/b\n",
        "a/..b",
        "http://x/y",
    ],
)
def test_a_link_names_no_folder(fetched, place):
    with pytest.raises(RefusedModel, match="NAMESPACE/NAME"):
        Models().load_linked(place)
    assert not fetched


def test_a_link_never_reads_a_folder_of_the_name_of_an_id(saved, tmp_path, monkeypatch):
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "model").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedModel, match="someone/model cannot be loaded"):  # there is no network in tests
        Models().load_linked("someone/model")


def test_a_linked_model_has_its_own_classes_and_is_loaded_once(fetched):
    ours = Models()
    ours.device = "cpu"
    for _ in range(2):
        assert ours.load_linked("a/one") == "a/one"
    model = ours.find("a/one")
    assert model.names == {0: "cat", 1: "dog", 2: "owl"} and model.channels == 3 and not model.sketches
    assert fetched == ["a/one"]


def test_few_models_are_kept_and_one_that_is_gone_is_refused(fetched):
    ours = Models()
    ours.device = "cpu"
    for hub_id in ("a/one", "a/two", "a/one", "a/three"):
        ours.load_linked(hub_id)
    assert list(ours.linked) == ["a/one", "a/three"]
    with pytest.raises(RefusedModel, match="a/two is not loaded any more"):
        ours.find("a/two")


def test_nobody_waits_for_a_model_that_another_visitor_loads(saved, monkeypatch):
    ours, fetching, go_on = Models(), threading.Event(), threading.Event()
    ours.device = "cpu"

    def fetch(hub_id, folder):
        fetching.set()
        assert go_on.wait(60)
        shutil.copytree(saved, folder, dirs_exist_ok=True)

    monkeypatch.setattr(models, "fetch", fetch)
    first = threading.Thread(target=ours.load_linked, args=["a/one"])
    first.start()
    assert fetching.wait(60)
    for hub_id in ("a/one", "a/two"):
        with pytest.raises(RefusedModel, match="Another model is being loaded"):
            ours.load_linked(hub_id)
    go_on.set()
    first.join()
    assert ours.load_linked("a/one") == "a/one"


def test_the_files_of_a_linked_model_are_deleted_and_it_still_works(fetched, monkeypatch, tmp_path):
    monkeypatch.setattr(models.tempfile, "tempdir", str(tmp_path))
    ours = Models()
    ours.device = "cpu"
    pipe = ours.find(ours.load_linked("a/one")).pipe
    assert not list(tmp_path.iterdir())
    assert pipe.predict(torch.zeros(3, 8, 8), 0.25, n=2).counts


def test_a_linked_model_of_huge_pictures_is_refused_before_it_runs(saved, monkeypatch):
    def fetch(hub_id, folder):
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        config = Path(folder, "unet", "config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 100_000}))

    monkeypatch.setattr(models, "fetch", fetch)
    ours = Models()
    ours.device = "cpu"
    with pytest.raises(RefusedModel, match="too large"):
        ours.load_linked("a/one")


def test_parts_of_other_libraries_are_refused(saved, tmp_path):
    models.check_parts(saved)
    index = json.loads((saved / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "unet": ["os", "system"]}))
    with pytest.raises(RefusedModel, match="parts"):
        models.check_parts(tmp_path)


def test_only_weights_and_json_are_fetched_and_nothing_too_large(monkeypatch, tmp_path):
    asked = {}
    files = [
        SimpleNamespace(rfilename="unet/x.safetensors", size=5),
        SimpleNamespace(rfilename="evil.py", size=10**12),
    ]
    monkeypatch.setattr(models.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=files, sha="abc"))
    monkeypatch.setattr(models, "snapshot_download", lambda hub_id, **options: asked.update(options))
    models.fetch("a/one", str(tmp_path))
    patterns = ["*.json", "*.safetensors", "*.txt"]
    assert asked == {"allow_patterns": patterns, "token": False, "revision": "abc", "local_dir": str(tmp_path)}
    files[0].size = 10**12
    for name in ("unet/x.safetensors", "unet/.safetensors", ".json"):
        files[0].rfilename = name
        with pytest.raises(RefusedModel, match="too large"):
            models.fetch("a/one", str(tmp_path))


def test_a_model_that_cannot_be_loaded_is_a_message(tmp_path):
    ours = Models()
    assert "cannot be loaded" in ours.load_own(str(tmp_path), "cpu")
    with pytest.raises(RefusedModel, match="could not be loaded"):
        ours.find("")
