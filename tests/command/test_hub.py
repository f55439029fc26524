"""`--model` with the Hub: what it lacks is told after one question."""

import time

import PIL.Image
import pytest

from diffusers_ndc.command import main
from diffusers_ndc.command.hub import check_on_hub


@pytest.fixture
def image(tmp_path):
    PIL.Image.new("L", (8, 8)).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


@pytest.fixture
def asked(hub, monkeypatch):
    """The files that the Hub is asked for."""
    paths, answer = [], hub.RequestHandlerClass.handle_any

    def note(self):
        paths.append(self.path)
        answer(self)

    monkeypatch.setattr(hub.RequestHandlerClass, "do_HEAD", note)
    return paths


def test_a_model_on_the_hub_or_in_a_folder_is_found(hub, asked, tmp_path):
    hub.add("me/model", {"model_index.json": b"{}"})
    check_on_hub("--model", "me/model")
    assert asked == ["/me/model/resolve/main/model_index.json"]
    check_on_hub("--model", str(tmp_path))
    assert len(asked) == 1


@pytest.mark.parametrize(
    "place, said",
    [
        ("no/model", "the Hub has no such repository"),
        ("me/other", "its repository on the Hub has no model_index.json"),
    ],
)
def test_what_the_hub_lacks_is_told_after_one_question(place, said, hub, asked, image, capsys):
    hub.add("me/other", {"weights.bin": b""})
    start = time.perf_counter()
    assert main(["certify", image, "--model", place, "--output", image + ".jsonl"]) == 1
    assert time.perf_counter() - start < 5 and len(asked) == 1
    error = capsys.readouterr().err
    assert f"`--model` must be an existing folder or a Hub id, got {place}, which is no folder; {said}" in error


def test_evaluations_refuse_such_models_too(hub, asked, capsys):
    hub.add("me/model", {"model_index.json": b"{}"})
    words = ["--dataset", "a/b", "--output", "o", "--method", "dds"]
    assert main(["evaluate", "--model", "no/model", *words]) == 2
    assert main(["plan", "--model", "me/model", *words, "--classifier", "no/classifier"]) == 2
    error = capsys.readouterr().err
    assert "`--model` must be" in error and "`--classifier` must be an existing folder or a Hub id" in error
    assert len(asked) == 3


def test_a_hub_that_is_down_is_not_asked_again(hub, asked):
    hub.broken = True
    with pytest.raises(ValueError, match="the Hub cannot be reached"):
        check_on_hub("--model", "me/model")
    assert len(asked) == 1


def test_a_hub_that_is_silent_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(hub.RequestHandlerClass, "do_HEAD", lambda self: time.sleep(3))
    monkeypatch.setattr("diffusers_ndc.command.hub.SECONDS", 0.3)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="the Hub (cannot be reached|does not answer)"):
        check_on_hub("--model", "me/model")
    assert time.perf_counter() - start < 2.5


def test_nothing_is_asked_offline_nor_for_an_impossible_id(hub, asked, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="it is not in the cache, and HF_HUB_OFFLINE is set"):
        check_on_hub("--model", "me/model")
    with pytest.raises(ValueError, match="it cannot be a Hub id"):
        check_on_hub("--model", "my model")
    assert asked == []


def test_a_model_in_the_cache_needs_no_hub(hub, monkeypatch):
    from huggingface_hub import hf_hub_download

    hub.add("me/model", {"model_index.json": b"{}"})
    hf_hub_download("me/model", "model_index.json")
    hub.broken = True
    check_on_hub("--model", "me/model")
