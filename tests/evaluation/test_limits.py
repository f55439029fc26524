"""Limits on what an image may cost: from the command line to the records, the report and the replay."""

import pytest
from accelerate.state import AcceleratorState
from datasets import load_dataset
from helpers.runs import make_run

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.records import read_records, read_run
from diffusers_ndc.evaluation.replay import replay
from diffusers_ndc.evaluation.report import to_markdown
from diffusers_ndc.evaluation.run import evaluate
from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.settings_parser import parse


LINE = ["--model", "m", "--dataset", "d", "--output", "o"]
LIMITS = ("max_copies_per_radius", "max_evaluations")


@pytest.fixture
def folders(small_model, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    return small_model(tmp_path)


@pytest.fixture
def run(folders, tmp_path):
    def run(**settings):
        defaults = {
            "stop_early": True,
            "radii": [0.1, 0.2],
            "n0": 3,
            "n": 200,
            "limit": 5,
            "seed": 1,
            "batch_size": 64,
        }
        evaluate(Settings(*map(str, folders), str(tmp_path / "run"), **{**defaults, **settings}))
        return tmp_path / "run"

    return run


def certificates_of(folder):
    return [Certificate.from_dict(record["certificate"]) for record in read_records(folder).values()]


def test_limits_on_the_command_line():
    limits = [getattr(parse([*LINE, "--stop-early"]), name) for name in LIMITS]
    assert limits == [None, None]
    given = ["--max-copies-per-radius", "300", "--max-evaluations", "4000"]
    assert [getattr(parse([*LINE, "--stop-early", *given]), name) for name in LIMITS] == [300, 4_000]
    assert parse([*LINE, "--stop-early", "--max-copies-per-radius", "inf"]).max_copies_per_radius is None
    assert parse(LINE).max_copies_per_radius is None  # all copies are made


@pytest.mark.parametrize(
    "words, said",
    [
        (["--stop-early", "--max-copies-per-radius", "0"], "`--max-copies-per-radius` must be"),
        (["--stop-early", "--max-copies-per-radius", "nan"], "`--max-copies-per-radius` must be"),
        (["--stop-early", "--max-evaluations", "0"], "`--max-evaluations` must be 1 or more, got 0"),
        (["--max-evaluations", "10"], "`--max-evaluations` must be left out without --stop-early, got 10"),
    ],
)
def test_invalid_limits_raise_before_any_work(words, said):
    with pytest.raises(ValueError, match=said):
        parse([*LINE, *words]).check()


@pytest.mark.parametrize("limits", [{"max_evaluations": 300}, {"max_copies_per_radius": 5.0}])
def test_limits_are_those_of_the_pipeline_and_the_votes_replay(run, folders, limits):
    folder = run(**limits)
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folders[0])
    pipe.set_progress_bar_config(disable=True)
    images = list(load_dataset(str(folders[1]), split="test")["image"])[:5]
    settings = {"n0": 3, "n": 200, "radii": [0.1, 0.2], "seed": 1}
    assert certificates_of(folder) == pipe.certify(images, **settings, **limits)
    assert certificates_of(folder) != pipe.certify(images, **settings, max_copies_per_radius=None)
    assert all(read_run(folder)[name] == value for name, value in limits.items())
    assert all(found.certificate.agrees(found.again) for found in replay(folder))


def test_a_run_without_limits_is_one_from_before_there_were_any(run):
    """It has no word of them, goes on, and replays; with limits it would be another run."""
    folder = run(limit=3)
    assert not set(LIMITS) & set(read_run(folder))
    whole = certificates_of(folder)
    (path,) = folder.glob("*.jsonl")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    run(limit=3)
    assert len(list(folder.glob("*.jsonl"))) == 2
    assert certificates_of(folder) == whole
    assert all(found.certificate.agrees(found.again) for found in replay(folder))
    with pytest.raises(ValueError, match=r"max_copies_per_radius: None there, 50000.0 now"):
        run(limit=3, max_copies_per_radius=50_000.0)


def test_the_report_says_how_many_images_spent_their_budget(tmp_path):
    """The evaluations are 100, 200, 300, 400, 1000 and 100."""
    report = Report.from_folder(make_run(tmp_path / "limited", max_evaluations=300))
    assert (report.at_budget.count, report.at_budget.total) == (3, 6)
    assert report.to_dict()["at_budget"]["count"] == 3
    assert "3 of 6 images spent their budget of 300 network evaluations." in to_markdown(report)
    without = Report.from_folder(make_run(tmp_path / "unlimited"))
    assert without.at_budget is None and "budget" not in to_markdown(without)
    with pytest.raises(ValueError, match="`max_evaluations` in .* must be a positive integer, or absent, got 'many'"):
        Report.from_folder(make_run(tmp_path / "odd", max_evaluations="many"))
