"""Runs of the method `gaussian`: an image classifier by itself, without a diffusion model."""

import shutil

import pytest
from accelerate.state import AcceleratorState
from datasets import load_dataset
from helpers.networks import processor, tiny_vit

from diffusers_ndc import Certificate, ImageClassifier, SmoothedClassifier
from diffusers_ndc.evaluation.plan import plan_run
from diffusers_ndc.evaluation.records import read_records, read_run
from diffusers_ndc.evaluation.replay import replay
from diffusers_ndc.evaluation.run import evaluate
from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.settings_parser import parse
from diffusers_ndc.evaluation.verify import check_file
from diffusers_ndc.pipelines.inputs import to_pixel_batch


LINE = ["--dataset", "d", "--output", "o", "--method", "gaussian"]


@pytest.fixture
def places(small_model, tmp_path):
    """A classifier of the names b, a and c, and the images of a, b and c."""
    AcceleratorState._reset_state(reset_partial_state=True)
    _, data = small_model(tmp_path)
    names = {"id2label": {0: "b", 1: "a", 2: "c"}, "label2id": {"b": 0, "a": 1, "c": 2}}
    tiny_vit(**names).save_pretrained(tmp_path / "vit")
    processor().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit", data


@pytest.fixture
def settings(places, tmp_path):
    classifier, data = places

    def make(output="run", **changes):
        values = {"n0": 3, "n": 40, "seed": 3, "batch_size": 64, "radii": [0.1], "classifier": str(classifier)}
        return Settings(None, str(data), str(tmp_path / output), method="gaussian", **{**values, **changes})

    return make


def test_the_records_are_what_the_smoothed_classifier_says_and_reports_name_the_classifier(settings, places, tmp_path):
    report = evaluate(settings())
    records = read_records(tmp_path / "run")
    assert [record["label"] for record in records.values()] == [1] * 4 + [0] * 4 + [2] * 4  # by the ViT's names
    pictures = list(load_dataset(str(places[1]), split="test")["image"])
    images, _ = to_pixel_batch(pictures, 1, (8, 8))
    smoothed = SmoothedClassifier(ImageClassifier.from_pretrained(places[0]), 0.25)
    expected = smoothed.certify(images, n0=3, n=40, seed=3)
    assert [Certificate.from_dict(record["certificate"]) for record in records.values()] == expected
    run = read_run(tmp_path / "run")
    assert run["model"] is None and run["classifier"] == str(places[0]) and len(run["weight_hash"]) == 32
    assert len(report.outcomes) == 12 and not report.rejected
    (file,) = (tmp_path / "run").glob("*.jsonl")
    assert [flaw for _, _, flaw in check_file(file)] == [None] * 12

    text, page, card = ((tmp_path / "run" / name).read_text() for name in ("report.md", "report.html", "README.md"))
    assert all("an image classifier by itself" in one and "None" not in one for one in (text, page, card))
    assert f"classifier {places[0]}" in text
    assert (
        "# vit\n" in card and "| run | " in card and "pipe.certify" not in card and "What a certificate says" in card
    )


def test_votes_are_cast_again_also_by_a_classifier_that_moved(settings, places, tmp_path):
    evaluate(settings(limit=4, stop_early=True))
    shutil.move(places[0], tmp_path / "moved")
    with pytest.raises(ValueError, match="`--classifier` must be an existing folder or a Hub id"):
        next(replay(tmp_path / "run"))
    found = list(replay(tmp_path / "run", model=str(tmp_path / "moved")))
    assert len(found) == 4 and all(one.certificate.agrees(one.again) for one in found)
    tiny_vit(initializer_range=0.4).save_pretrained(tmp_path / "moved")
    with pytest.raises(ValueError, match="must hold a run of this model .*\n  .*"):
        next(replay(tmp_path / "run", model=str(tmp_path / "moved")))


@pytest.mark.slow
def test_a_run_goes_on_and_is_planned(settings, tmp_path):
    evaluate(settings())
    (file,) = (tmp_path / "run").glob("*.jsonl")
    complete = read_records(tmp_path / "run")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:30])
    assert len(evaluate(settings()).outcomes) == 12
    again = read_records(tmp_path / "run")
    assert {i: one["certificate"] for i, one in again.items()} == {
        i: one["certificate"] for i, one in complete.items()
    }
    plan = plan_run(settings("planned", limit=3, plan_images=3))
    assert [forecast.sigma for forecast in plan.plan.forecasts] == [0.25] and not (tmp_path / "planned").exists()


def test_there_is_no_model_on_the_command_line(capsys):
    parsed = parse([*LINE, "--classifier", "c"])
    parsed.check()
    assert parsed.model is None and parsed.to_dict()["model"] is None
    with pytest.raises(SystemExit):
        parse([*LINE[:4]])
    assert "--model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model, changes, named",
    [
        ("m", {"method": "gaussian", "classifier": "c"}, "`--model` must be left out with --method gaussian, got m"),
        (None, {"method": "gaussian"}, "`--classifier` must be given with --method gaussian, got none"),
        (None, {"method": "gaussian", "classifier": "c", "sift": "none"}, "`--sift` must be left out .*got none"),
        (None, {}, "`--model` must be given with --method apndc, got none"),
    ],
)
def test_settings_that_do_not_go_together_raise(model, changes, named):
    with pytest.raises(ValueError, match=named):
        Settings(model, "d", "o", **changes).check()
