"""Model cards of small runs with known figures, and their push to a Hub on this machine."""

import re
import subprocess
import sys

import pytest
from datasets import load_dataset
from helpers.paths import MODEL
from helpers.runs import CARD_SETTINGS, IMAGES, make_card_run, make_run
from huggingface_hub import ModelCard, constants, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from diffusers_ndc import NoiseLevels
from diffusers_ndc.evaluation import model_card
from diffusers_ndc.evaluation.figures import Outcome, Report
from diffusers_ndc.evaluation.model_card import fill_card, main, push_to_hub
from diffusers_ndc.evaluation.records import read_run, write_run
from diffusers_ndc.pipelines.model_card import markers


BEGIN, END = markers("results")

OWN = """---
license: mit
pipeline_tag: other
tags: own-tag
model-index:
- name: first
  results:
  - task: {type: image-classification}
    dataset: {name: digits, type: digits, split: test}
    metrics:
    - {type: accuracy, value: 0.5}
    source: {name: A paper, url: https://example.org}
- name: second
  results:
  - task: {type: image-classification}
    dataset: {name: digits, type: digits, split: test}
    metrics:
    - {type: accuracy, value: 0.25}
---
# Own title

Own text.
"""


def report(folder, **settings):
    return Report.from_folder(make_card_run(folder, **settings))


def plain_report(name="plain"):
    """A run of the diffusion classifier without a certificate: correct for two of three images."""
    settings = {**CARD_SETTINGS, "method": "dc", "dataset": "digits", "sigma": 0.0, "radii": [0.0]}
    settings |= {"n0": None, "n": None, "alpha": None}
    outcomes = [Outcome(label, predicted, 0.0, 100, 1.0) for label, predicted in ((0, 0), (1, 1), (1, 2))]
    return Report(name, settings, outcomes, {}, {})


def results(card):
    """What a reader of the metadata finds: value by run, metric and radius."""
    _, found = model_index_to_eval_results(metadata_load(card)["model-index"])
    ours = [result for result in found if result.metric_args]
    return {(r.metric_args["run"], r.metric_type, r.metric_args.get("radius")): r.metric_value for r in ours}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_metadata_are_those_of_the_reports(tmp_path):
    reports = [report(tmp_path / "a", dataset="uoft-cs/cifar10"), report(tmp_path / "b", dataset=str(tmp_path))]
    card = tmp_path / "README.md"
    fill_card(reports, card)
    data = ModelCard.load(card).data
    assert data.library_name == "diffusers" and data.pipeline_tag == "image-classification"
    assert data.tags == ["diffusers-ndc", "certified-robustness", "randomized-smoothing"]
    assert data.datasets == ["uoft-cs/cifar10"] and data.model_name == "digits"
    found = results(card)
    for name, one in zip("ab", reports, strict=True):
        assert found.pop((name, "average_certified_radius", None)) == one.average_radius
        for radius in (0.0, 0.25, 0.5):
            assert found.pop((name, "certified_accuracy", radius)) == one.at(radius).value
    assert found == {}
    args = data.eval_results[-1].metric_args
    assert {
        **args,
        "sigma": 0.5,
        "n0": 10,
        "n": 100,
        "alpha": 0.001,
        "method": "apndc",
        "count": 2,
        "total": 6,
    } == args
    names = [result.metric_name for result in data.eval_results]
    assert len(set(names)) == len(names) == 8


def test_text_has_the_figures_the_levels_and_the_picture(tmp_path):
    card = tmp_path / "card" / "README.md"
    many = NoiseLevels.reference_grid(1.0)
    base_classifier = {**CARD_SETTINGS["base_classifier"], "levels": many.to_dict()}
    failed = [{"index": 6, "failed": "OSError: truncated"}]
    reports = [report(tmp_path / "a", extra=failed), report(tmp_path / "b", base_classifier=base_classifier)]
    fill_card(reports, card)
    text = card.read_text()
    low, high = reports[0].at(0.25).interval
    assert f"| a | correct, and certified at l2 radius 0.25 | 50.0% | 3 of 6 | {low:.1%} to {high:.1%} |" in text
    assert (
        f"| a | digits, test | apndc | 0.5 | 10 | 100 | 0.001 | {reports[0].average_radius:.3f} | 0123456789ab" in text
    )
    assert "| 0.5 | apndc | 2.5 (0.75), 1.25 (0.25); classes are sifted after each level |" in text
    assert f"| 0.5 | apndc | {len(many)} from {min(many.sigmas):.3g} to 2.98 |" in text
    assert "figures of a leave out images that failed (1)" in text and "figures of b" not in text
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert (card.parent / picture).stat().st_size > 0


def test_the_card_says_that_a_run_is_not_finished(tmp_path):
    card, path = tmp_path / "README.md", make_card_run(tmp_path / "a")
    write_run(path, {**read_run(path), "images": 1000})  # six have records
    fill_card([Report.from_folder(path)], card)
    assert "a is not finished: 994 of its images have no record yet." in card.read_text()
    fill_card([report(tmp_path / "b")], card)
    assert "not finished" not in card.read_text()


def test_filling_twice_changes_nothing_and_own_content_stays(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(OWN)
    reports = [report(tmp_path / "a")]
    fill_card(reports, card)
    once = card.read_text()
    fill_card(reports, card)
    assert card.read_text() == once
    assert "# Own title\n\nOwn text.\n" in once and "# digits" not in once

    edited = once.replace("Own text.", "New own text.") + "\nMore below.\n"
    card.write_text(edited)
    fill_card([report(tmp_path / "b")], card)
    text = card.read_text()
    assert "New own text.\n\n<!--" in text and text.endswith(f"{END}\n\nMore below.\n") and text.count(BEGIN) == 1
    assert {name for name, *_ in results(card)} == {"b"} and "| a |" not in text

    metadata = metadata_load(card)
    assert metadata["license"] == "mit" and metadata["pipeline_tag"] == "other"
    assert metadata["tags"][0] == "own-tag" and metadata["tags"].count("diffusers-ndc") == 1
    first, second = metadata["model-index"]
    assert first["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.5}]
    assert first["results"][0]["source"]["url"] == "https://example.org" and "source" not in first["results"][1]
    assert second["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.25}] and len(second["results"]) == 1


@pytest.mark.parametrize(
    "damaged",
    [
        f"# Title\n{BEGIN}\n",
        f"# Title\n{END}\n",
        f"{END}\n{BEGIN}\n",
        f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n",
        "---\n- a list\n---\n",
        "---\nmodel-index:\n- name: no results\n---\n",
    ],
)
def test_a_damaged_card_raises_and_is_left_alone(tmp_path, damaged):
    card = tmp_path / "README.md"
    card.write_text(damaged)
    with pytest.raises(ValueError):
        fill_card([report(tmp_path / "a")], card)
    assert card.read_text() == damaged


def test_runs_of_one_name_or_without_results_raise(tmp_path):
    one = report(tmp_path / "a")
    failed = report(tmp_path / "b", images=[], extra=[{"index": 0, "failed": "OSError: truncated"}])
    bare = Report.from_folder(make_run(tmp_path / "c"))
    for reports, message in (
        ([], "names"),
        ([one, one], "names"),
        ([failed], "no result"),
        ([bare], "base_classifier"),
    ):
        with pytest.raises(ValueError, match=message):
            fill_card(reports, tmp_path / "README.md")
    assert not (tmp_path / "README.md").exists()


def test_runs_without_certificates_and_with_another_classifier(tmp_path):
    """A plain accuracy is named as such and promises nothing; an external classifier has no levels."""
    plain = tmp_path / "plain" / "README.md"
    fill_card([plain_report()], plain)
    assert results(plain) == {("plain", "accuracy", 0.0): 2 / 3}
    text = plain.read_text()
    assert "| plain | correct, no certificate | 66.7% | 2 of 3 |" in text
    assert "ertif" not in re.sub("certified-robustness|no certificate|average certified radius", "", text)
    assert [path.name for path in plain.parent.iterdir()] == ["README.md"]

    both = tmp_path / "both" / "README.md"
    outside = {"method": "dds", "classifier": "someone/vit"}
    fill_card([plain_report(), report(tmp_path / "dds", method="dds", base_classifier=outside)], both)
    assert ("dds", "certified_accuracy", 0.25) in results(both) and ("plain", "accuracy", 0.0) in results(both)
    assert "What a certificate says" in both.read_text() and "pipe.certify" not in both.read_text()


def test_usage_runs_as_written(tmp_path):
    fill_card([report(tmp_path / "a", radii=[0.0, 0.25, 0.5])], tmp_path / "README.md", str(MODEL))
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    digits = load_dataset(str(MODEL / "data"), split="test")
    names = {"image": digits[0]["image"]}
    exec(code, names)
    certificate = names["certificate"]
    assert certificate.sigma == 0.5 and certificate.label == digits[0]["label"] and certificate.radius >= 0.25


def test_push_to_an_empty_repository_then_another_run(hub, tmp_path):
    first, second = make_card_run(tmp_path / "first"), make_card_run(tmp_path / "second", images=IMAGES[:3])
    local = files_of(first)
    push_to_hub([first], "me/digits")
    files = hub.files("me/digits")
    (records,) = first.glob("*.jsonl")
    for path in (records, first / "run.json"):
        assert files[f"evaluation/first/{path.name}"] == path.read_bytes()
    assert {"report.md", "report.json", "certified_accuracy.png"} < {
        name.removeprefix("evaluation/first/") for name in files if name.startswith("evaluation/")
    }
    assert 'from_pretrained("me/digits")' in files["README.md"].decode() and files["certified_accuracy.png"]
    assert files_of(first) == local

    push_to_hub([second], "me/digits")
    card = tmp_path / "card.md"
    card.write_bytes(hub.files("me/digits")["README.md"])
    assert {name for name, *_ in results(card)} == {"first", "second"}
    assert files.items() - {(name, files[name]) for name in ("README.md", "certified_accuracy.png")} <= (
        hub.files("me/digits").items()
    )
    commits = len(hub.repos["models/me/digits"])
    push_to_hub([second], "me/digits")
    assert len(hub.repos["models/me/digits"]) == commits


def test_push_fills_the_card_of_a_repository_and_replaces_a_run_of_the_same_name(hub, tmp_path):
    weights = {"unet/diffusion_pytorch_model.safetensors": b"weights"}
    hub.add("me/digits", {"README.md": OWN.encode(), **weights})
    push_to_hub([make_card_run(tmp_path / "old" / "a")], "me/digits", card=tmp_path / "not-looked-at.md")
    push_to_hub([make_card_run(tmp_path / "new" / "a", images=IMAGES[:1])], "me/digits")
    files = hub.files("me/digits")
    card = tmp_path / "card.md"
    card.write_bytes(files["README.md"])
    assert "# Own title\n\nOwn text.\n" in card.read_text() and metadata_load(card)["license"] == "mit"
    assert results(card)["a", "certified_accuracy", 0.0] == 1.0
    records = [content for name, content in files.items() if name.endswith(".jsonl")]
    assert records == [path.read_bytes() for path in (tmp_path / "new" / "a").glob("*.jsonl")]
    assert weights.items() <= files.items()


@pytest.mark.parametrize("trouble", ["broken", "no token", "no network", "pushed between", "bad name"])
def test_a_push_that_fails_says_how_to_repeat_it_and_leaves_all_as_it_was(hub, tmp_path, monkeypatch, trouble):
    folder, repo_id = make_card_run(tmp_path / "a"), "me/digits"
    hub.add(repo_id, {"README.md": OWN.encode()})
    local = files_of(folder)
    if trouble == "broken":
        hub.broken = True
    elif trouble == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif trouble == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif trouble == "bad name":
        repo_id = "a/b/c"
    else:
        write_report = model_card.write_report
        monkeypatch.setattr(
            model_card, "write_report", lambda *of: (hub.add(repo_id, {"other": b""}), write_report(*of))
        )
    with pytest.raises(OSError) as raised:
        push_to_hub([folder], repo_id)
    message = str(raised.value)
    assert f"still in {folder}" in message
    assert f"diffusers_ndc.evaluation.model_card {folder} --card {folder}/README.md --push-to-hub {repo_id}" in message
    assert files_of(folder) == local
    assert hub.files("me/digits")["README.md"].decode() == OWN
    assert not any(name.startswith("evaluation/") for name in hub.files("me/digits"))


def test_command_fills_a_card_and_pushes_it(hub, tmp_path):
    card = tmp_path / "model" / "README.md"
    card.parent.mkdir()
    card.write_text(OWN)
    folders = [make_card_run(tmp_path / name) for name in ("a", "b")]
    options = [*folders, "--card", card, "--push-to-hub", "me/digits"]
    line = [sys.executable, "-m", "diffusers_ndc.evaluation.model_card", *map(str, options)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {name for name, *_ in results(card)} == {"a", "b"} and "Own text." in card.read_text()
    pushed = hub.files("me/digits")["README.md"].decode()
    assert pushed == card.read_text() and (card.parent / "certified_accuracy.png").exists()
    assert not (folders[0] / "README.md").exists()


def test_command_fills_a_runs_own_card_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    folder, other = make_card_run(tmp_path / "a"), make_card_run(tmp_path / "b")
    for folders in ([folder], [tmp_path / "none"], [folder, other]):
        monkeypatch.setattr(sys, "argv", ["model_card", *map(str, folders)])
        if folders == [folder]:
            main()
            assert capsys.readouterr().out == f"{folder / 'README.md'}\n" and results(folder / "README.md")
        else:
            with pytest.raises(SystemExit) as raised:
                main()
            assert raised.value.code and not list(tmp_path.glob("[!a]*/README.md"))
