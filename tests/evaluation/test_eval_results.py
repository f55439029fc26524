"""Results in the Hub's `.eval_results` form: read back by the Hub's own reader, and pushed with the model card."""

import yaml
from helpers.runs import IMAGES, make_card_run
from huggingface_hub import parse_eval_result_entries

from diffusers_ndc.evaluation.eval_results import FILE, write_eval_results
from diffusers_ndc.evaluation.figures import Outcome, Report
from diffusers_ndc.evaluation.model_card import fill_card, push_to_hub


ON_HUB = "uoft-cs/cifar10"


def report(folder, **settings):
    return Report.from_folder(make_card_run(folder, **settings))


def read(text):
    return parse_eval_result_entries(yaml.safe_load(text))


def test_a_card_comes_with_the_figures_of_the_reports(tmp_path):
    failed = [{"index": 6, "failed": "OSError: truncated"}]
    one, other = report(tmp_path / "a", dataset=ON_HUB, extra=failed), report(tmp_path / "b", dataset="digits")
    fill_card([one, other], tmp_path / "README.md")
    entries = read((tmp_path / FILE).read_text())
    assert {entry.task_id: entry.value for entry in entries} == {
        "average_certified_radius": one.average_radius,
        "certified_accuracy_l2_0": one.at(0).value,
        "certified_accuracy_l2_0.25": one.at(0.25).value,
        "certified_accuracy_l2_0.5": one.at(0.5).value,
    }
    assert {entry.dataset_id for entry in entries} == {ON_HUB} and entries[0].source_url is None
    assert entries[2].notes == (
        "a: method apndc, sigma 0.5, n0 10, n 100, alpha 0.001, seed 0; 3 of 6 images, 1 left out"
    )


def test_without_a_data_set_of_the_hub_there_is_no_file(tmp_path):
    write_eval_results([report(tmp_path / "a", dataset=ON_HUB)], tmp_path)
    assert (tmp_path / FILE).exists()
    (tmp_path / ".eval_results" / "of-others.yaml").write_text("[]")
    write_eval_results([report(tmp_path / "b", dataset="digits")], tmp_path)
    assert [path.name for path in (tmp_path / ".eval_results").iterdir()] == ["of-others.yaml"]


def test_a_run_without_certificates_claims_none(tmp_path):
    settings = {"dataset": ON_HUB, "method": "dc", "sigma": 0.0, "radii": [0.0], "alpha": None}
    outcomes = [Outcome(0, 0, 0.0, 100, 1.0), Outcome(1, 2, 0.0, 100, 1.0)]
    write_eval_results([Report("plain", settings, outcomes, {}, {})], tmp_path)
    (entry,) = read((tmp_path / FILE).read_text())
    assert (entry.task_id, entry.value, entry.notes) == ("accuracy", 0.5, "plain: method dc, sigma 0.0; 1 of 2 images")


def test_a_push_covers_all_runs_of_the_repository_and_names_their_records(hub, tmp_path):
    push_to_hub([make_card_run(tmp_path / "first", dataset=ON_HUB)], "me/digits")
    push_to_hub([make_card_run(tmp_path / "second", dataset=ON_HUB, images=IMAGES[:3])], "me/digits")
    entries = read(hub.files("me/digits")[FILE])
    sources = {entry.source_url for entry in entries}
    assert sources == {f"{hub.endpoint}/me/digits/tree/main/evaluation/{name}" for name in ("first", "second")}
    folders = [make_card_run(tmp_path / "digits" / name, dataset="digits") for name in ("first", "second")]
    push_to_hub(folders, "me/digits")
    assert FILE not in hub.files("me/digits")
