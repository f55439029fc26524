"""Evaluation tasks: their files, what a run of one may choose, and runs of one from end to end."""

import json
from dataclasses import asdict, replace

import numpy as np
import PIL.Image
import pytest
import yaml
from accelerate.state import AcceleratorState
from helpers.runs import TASK, make_task_run

from diffusers_ndc.evaluation import Task, load_task
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.model_card import fill_card
from diffusers_ndc.evaluation.records import read_records, read_run
from diffusers_ndc.evaluation.replay import replay
from diffusers_ndc.evaluation.report import write_report
from diffusers_ndc.evaluation.run import evaluate
from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.settings_parser import parse
from diffusers_ndc.evaluation.task import task_names


NAMES = ["cifar10-l2", "cifar10-l2-500", "fashion-mnist-l2", "imagenet64-l2", "mnist-l2"]
LINE = ["--model", "m", "--output", "o"]


def write_task(path, **changes):
    """Write a task to a YAML file; `None` leaves a key out."""
    values = {name: value for name, value in {**TASK, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_task_of_the_package_is_valid(name):
    assert task_names() == NAMES
    task = load_task(name)
    assert (task.name, task.version, task.radii) == (name, 1, (0.25, 0.5, 0.75, 1.0))
    assert (task.n0, task.n, task.alpha, task.stop_early) == (100, 10_000, 0.001, False)
    assert Task.from_dict(json.loads(json.dumps(asdict(task)))) == task
    for sigma in task.sigmas:
        settings = parse(["--task", name, *LINE, "--sigma", str(sigma)])
        settings.check()
        assert (settings.dataset, settings.skip, settings.limit) == (task.dataset, task.skip, task.images)
        assert settings.provable_radii(10)
    published = {"mnist": 10_000, "fashion-mnist": 10_000, "cifar10": 10_000, "imagenet64": 50_000}
    size = published[name.partition("-l2")[0]]
    assert range(0, size, task.skip)[: task.images] == range(0, task.skip * task.images, task.skip)
    assert name == "cifar10-l2" or task.skip * task.images == size  # all over the split


def test_a_task_fills_the_settings_and_the_rest_is_free():
    free = ["--method", "epndc", "--sift", "none", "--seed", "3", "--grid", "16", "--mixed-precision", "bf16"]
    settings = parse(["--task", "cifar10-l2", *LINE, *free, "--sigma", "0.5", "--streaming"])
    settings.check()
    task = load_task("cifar10-l2")
    assert settings.task == task and settings.to_dict()["task"] == asdict(task)
    assert (settings.dataset_config_name, settings.image_column, settings.sigma) == ("plain_text", "img", 0.5)
    assert (settings.method, settings.sift, settings.seed, settings.grid) == ("epndc", "none", 3, 16)
    assert parse(["--tas", "cifar10-l2", *LINE]) == Settings("m", output="o", task=task, **task.settings())
    assert parse(["--task", "cifar10-l2", *LINE]).sigma == 0.25


def test_the_images_may_lie_elsewhere():
    """There, configuration and columns have names of their own."""
    settings = parse(["--task", "cifar10-l2", *LINE, "--dataset", "copy"])
    settings.check()
    assert (settings.dataset, settings.dataset_config_name, settings.image_column) == ("copy", None, None)
    assert (settings.split, settings.limit, settings.n) == ("test", 512, 10_000)
    parse(["--task", "cifar10-l2", *LINE, "--dataset", "copy", "--split", "all", "--image-column", "png"]).check()
    same = parse(["--task", "cifar10-l2", *LINE, "--dataset", "uoft-cs/cifar10"])
    assert same == parse(["--task", "cifar10-l2", *LINE])


def test_a_settings_file_may_name_a_task(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("task: mnist-l2\nmodel: m\noutput: o\nsigma: 1")
    assert parse(["--config", str(file)]) == parse(["--task", "mnist-l2", *LINE, "--sigma", "1"])
    assert parse(["--config", str(file), "--task", "cifar10-l2"]).task == load_task("cifar10-l2")
    file.write_text("task: mnist-l2\nmodel: m\noutput: o\nn: 20")
    with pytest.raises(ValueError, match="`--n` must be left out with --task mnist-l2, which has 10000, got 20"):
        parse(["--config", str(file)]).check()


def test_settings_without_a_task_do_not_mention_it():
    assert "task" not in Settings("m", "d", "o").to_dict()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--n", "100000"], "`--n` .*10000, got 100000"),
        (["--n0", "10"], "`--n0` .*got 10"),
        (["--alpha", "0.01"], "`--alpha` .*got 0.01"),
        (["--radii", "0.25"], r"`--radii` .*got \[0.25\]"),
        (["--limit", "10"], "`--limit` .*got 10"),
        (["--skip", "2"], "`--skip` .*got 2"),
        (["--indices-file", "f"], "`--indices-file` .*no such setting, got f"),
        (["--stop-early"], "`--stop-early` .*got True"),
        (["--split", "train"], "`--split` .*got train"),
        (["--dataset-config-name", "c"], "`--dataset-config-name` .*got c"),
        (["--sigma", "0.3"], r"`--sigma` must be one of \[0.25, 0.5, 1.0\] with --task cifar10-l2, got 0.3"),
        (["--method", "dc", "--limit", "10"], "`--limit` .*got 10"),
    ],
)
def test_an_argument_that_contradicts_the_task_is_named(words, said):
    settings = parse(["--task", "cifar10-l2", *LINE, *words])
    with pytest.raises(ValueError, match=said):
        settings.check()


def test_a_task_must_be_one():
    with pytest.raises(TypeError, match="`task` must be of type Task or None, got str"):
        Settings("m", "d", "o", task="mnist-l2").check()


def test_an_unknown_name_lists_the_tasks(capsys):
    with pytest.raises(SystemExit):
        parse(["--task", "cifar", *LINE])
    error = capsys.readouterr().err
    assert all(name in error for name in [*NAMES, "got cifar"])


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"nn": 5}, "the keys of a task .*got 'nn'"),
        ({"n": None}, r"must have the keys .*got none of \['n'\]"),
        ({"n": 0}, "`n` .*at least 1, got 0"),
        ({"n": True}, "`n` .*got True"),
        ({"n": "100"}, "`n` .*got '100'"),
        ({"n": 1.5}, "`n` .*got 1.5"),
        ({"n0": -1}, "`n0` .*got -1"),
        ({"version": 0}, "`version` .*got 0"),
        ({"version": "1"}, "`version` .*got '1'"),
        ({"name": "../x"}, "`name` .*got '../x'"),
        ({"name": 5}, "`name` .*got 5"),
        ({"skip": 0}, "`skip` .*got 0"),
        ({"images": 0}, "`images` .*got 0"),
        ({"dataset": ["a"]}, "`dataset` .*got a list"),
        ({"split": ""}, "`split` .*got ''"),
        ({"image_column": 3}, "`image_column` .*got 3"),
        ({"sigmas": []}, r"`sigmas` .*got \[\]"),
        ({"sigmas": 0.5}, "`sigmas` .*got 0.5"),
        ({"sigmas": [0, 0.5]}, r"`sigmas` .*above 0.*got \[0, 0.5\]"),
        ({"radii": [0.5, 0.25]}, r"`radii` .*ascending order, got \[0.5, 0.25\]"),
        ({"radii": [float("nan")]}, "`radii` .*got a list"),
        ({"radii": [float("inf")]}, "`radii` .*got a list"),
        ({"radii": [10**400]}, "`radii` .*got a list"),
        ({"radii": ["0.5"]}, "`radii` .*got a list"),
        ({"alpha": 0}, "`alpha` .*got 0"),
        ({"alpha": 1}, "`alpha` .*got 1"),
        ({"stop_early": "no"}, "`stop_early` .*true or false, got 'no'"),
        ({"method": "fgsm"}, "`method` .*got 'fgsm'"),
        ({"method": ["dds"]}, "`method` .*got a list"),
        ({"name": "mnist-l2"}, "name of its own, got the name and version of mnist-l2, version 1"),
    ],
)
def test_a_malformed_task_is_refused(tmp_path, capsys, changes, said):
    file = write_task(tmp_path / "task.yaml", **changes)
    with pytest.raises(ValueError, match=said):
        load_task(file)
    with pytest.raises(SystemExit):
        parse(["--task", file, *LINE])
    assert "error: `--task` must" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        b"!!python/object/apply:os.system ['touch hacked']",
        b"name: !!python/name:os.system",
        b"- name",
        b"",
        b"{",
        b"name: !!int ''",
        b"\xff\xfe",
        b"version: " + b"9" * 5000,
        LAUGHS.encode(),
        b"name: " + LAUGHS.replace("\n", "\n  ").replace("a: &a", "\n  a: &a", 1).encode(),
    ],
    ids=range(10),
)
def test_a_hostile_file_is_a_short_error(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_bytes(text)
    with pytest.raises(ValueError, match="`--task` must be") as caught:
        load_task("task.yaml")
    assert len(str(caught.value)) < 1000 and not (tmp_path / "hacked").exists()


@pytest.fixture
def of_task(small_model, tmp_path):
    """A run of a task of one's own with a few noisy copies, of every fourth image, in `tmp_path / output`."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one test's precision is not another one's
    model, data = small_model(tmp_path)
    values = {"dataset": "nobody/nowhere", "skip": 4, "images": 3, "radii": [0.1, 0.2], "n0": 3, "n": 10}

    def go(output="run", *words, **changes):
        task = write_task(tmp_path / "task.yaml", **{**values, **changes})
        line = ["--task", task, "--model", str(model), "--dataset", str(data), "--output", str(tmp_path / output)]
        return evaluate(parse([*line, *words]))

    return go


def test_a_run_of_a_task_states_it_and_is_resumed_only_with_it(of_task, tmp_path):
    report = of_task()
    assert (report.task.name, report.task.version, len(report.outcomes)) == ("digits-l2", 1, 3)
    assert list(read_records(tmp_path / "run")) == [0, 4, 8]
    run = read_run(tmp_path / "run")
    assert (run["task"]["name"], run["task"]["version"], run["n"], run["sigma"]) == ("digits-l2", 1, 10, 0.25)
    assert "task digits-l2, version 1, model" in (tmp_path / "run" / "report.md").read_text()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "run is a run of the evaluation task digits-l2, version 1." in card and "task: digits-l2, version 1" in card

    with pytest.raises(ValueError, match="other settings.*\n  task.version: 1 there, 2 now$"):
        of_task(version=2)
    with pytest.raises(ValueError, match="\n  task.name: 'digits-l2' there, 'digits' now$"):
        of_task(name="digits")
    with pytest.raises(ValueError, match="`--dataset` must have the 4 images of --task digits-l2, got 3 of them in"):
        of_task("other", images=4)
    assert all(one.again == one.certificate for one in replay(tmp_path / "run"))


def swap(first, second):
    """Swap two image files."""
    pixels = [np.asarray(PIL.Image.open(path)) for path in (first, second)]
    PIL.Image.fromarray(pixels[1]).save(first)
    PIL.Image.fromarray(pixels[0]).save(second)


def test_runs_share_a_table_in_which_other_images_are_noticed(of_task, tmp_path):
    """The same files in another order are other images, whatever the task and the data set are called."""
    reports = [of_task("a"), of_task("b", "--method", "epndc", "--sigma", "0.5", "--seed", "1")]
    swap(*(tmp_path / "data" / "test" / name / "0.png" for name in "ab"))
    reports.append(of_task("c", "--method", "dc"))
    text, _ = write_report([tmp_path / output for output in "abc"], tmp_path / "all")
    assert text.count("## Task ") == 1 and "## Task digits-l2, version 1\n" in text
    assert "3 images of nobody/nowhere, test, or of a copy of it; n0 3, n 10, alpha 0.001." in text
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| a |", "| b |", "| c |"))
    ]
    rows = [row for row in rows if len(row) == 13]  # the others are those of the classes a, b and c
    assert [row[3:5] for row in rows] == [["apndc", "0.25"], ["epndc", "0.5"], ["dc", "-"]]
    for report, row in zip(reports, rows, strict=True):
        assert row[5] == f"{report.at(0).value:.1%}" and row[11] == "3 of 3"
        assert row[10] == f"{report.cost['network evaluations'][0]:,.0f}"
        shares = [f"{report.at(radius).value:.1%}" for radius in (0.1, 0.2)]
        figures = [*shares, f"{report.average_radius:.3f}", f"{report.abstentions.value:.1%}"]
        assert row[6:10] == (figures if report.certified else ["-"] * 4)
    assert [row[12] for row in rows] == ["first", "yes, 3 compared", "**no: 2 of 3 differ**"]
    assert "**Not the same images: these results cannot be compared.** c has other image hashes" in text
    assert "2 of 3 images (0, 4)" in text and "Without some of the images" not in text
    (task,) = json.loads((tmp_path / "all" / "report.json").read_text())["tasks"]
    assert [run["other_images"] for run in task["runs"]] == [[], [], [0, 4]] and task["version"] == 1


def test_a_replaced_setting_keeps_the_task():
    settings = parse(["--task", "mnist-l2", *LINE])
    assert replace(settings, batch_size=8).task == settings.task


def test_a_card_names_the_task(tmp_path):
    report = Report.from_folder(make_task_run(tmp_path / "run"))
    fill_card([report], tmp_path / "README.md")
    assert "run is a run of the evaluation task digits-l2, version 1." in (tmp_path / "README.md").read_text()
