"""Tables that compare the runs of an evaluation task, and what a run must be to have a place in them."""

import json

import pytest
from helpers.runs import CARD_SETTINGS, IMAGES, TASK, make_run, make_task_run, record_of

from diffusers_ndc import Certificate
from diffusers_ndc.evaluation.comparison import compare, to_markdown
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.records import read_run, write_run
from diffusers_ndc.evaluation.report import write_report


BASE = {"base_classifier": CARD_SETTINGS["base_classifier"]}
"""What certificates of `make_task_run` say of the base classifier."""


def test_a_report_of_one_run_has_no_table_of_its_task(tmp_path):
    folder = make_task_run(tmp_path / "run")
    text, _ = write_report([folder], tmp_path)
    assert "## Task" not in text and "task digits-l2, version 1, model me/digits" in text


def tables(*folders):
    """The tables of a report of these runs, without the rest of it."""
    return to_markdown(compare([Report.from_folder(folder) for folder in folders]))


def rows_of(text):
    return [line for line in text.splitlines() if line.startswith("| ") and " of 6 |" in line and "me/" in line]


def test_the_figures_of_a_table_by_hand(tmp_path):
    make_task_run(tmp_path / "a")
    make_task_run(tmp_path / "b", model="me/other|x")
    text = tables(tmp_path / "a", tmp_path / "b")
    figures = "0.5 | 66.7% | 50.0% | 33.3% | 0.420 | 16.7% | 350 | 6 of 6 |"
    average = Report.from_folder(tmp_path / "a").average_radius
    figures = figures.replace("0.420", f"{average:.3f}")
    assert f"| a | me/digits | digits, test | apndc | {figures} first |" in text
    assert f"| b | me/other\\|x | digits, test | apndc | {figures} yes, 6 compared |" in text


def test_a_table_says_what_the_sifter_does(tmp_path):
    bases = {
        "a": {"method": "apndc", "sifter": {}},
        "b": {"method": "apndc", "sifter": {"loss_weight": 0.5}},
        "c": {"method": "features", "sifter": {}},
        "d": {"method": "dds", "classifier": {"method": "vit"}},
    }
    for name, base in bases.items():
        settings = {"method": base["method"], "base_classifier": base}
        make_task_run(tmp_path / name, **settings, **({"classifier": "me/vit"} if name == "d" else {}))
    text = tables(*(tmp_path / name for name in bases))
    methods = [row.split(" | ")[3] for row in rows_of(text)]
    assert methods == ["apndc, sifter proposes", "apndc, sifter counts too", "features", "dds with me/vit"]


@pytest.mark.parametrize("change", [{"version": 2}, {"name": "digits"}])
def test_other_tasks_and_versions_never_share_a_table(tmp_path, change):
    make_task_run(tmp_path / "a")
    make_task_run(tmp_path / "b", task={**TASK, **change})
    make_run(tmp_path / "c")
    reports = [Report.from_folder(tmp_path / name) for name in "abc"]
    assert [[report.name for report in one.reports] for one in compare(reports)] == [["a"], ["b"]]
    text = tables(*(tmp_path / name for name in "abc"))
    assert text.count("## Task") == 2 and "their definitions differ" not in text
    other = {**TASK, **change}
    assert f"## Task {other['name']}, version {other['version']}" in text


def test_two_tasks_of_one_name_and_version_are_kept_apart(tmp_path):
    make_task_run(tmp_path / "a")
    make_task_run(tmp_path / "b", task={**TASK, "dataset": "letters"}, dataset="letters")
    text = tables(tmp_path / "a", tmp_path / "b")
    assert text.count("## Task digits-l2, version 1\n") == 2
    assert "**2 tasks above are called digits-l2, version 1, but their definitions differ" in text


def test_true_classes_are_compared_by_name(tmp_path):
    """Models may number the classes differently; a copy with other labels is not the same data set."""
    names = {0: "one", 1: "zero", 2: "two"}
    swapped = [({0: 1, 1: 0}.get(label, label), *rest) for label, *rest in IMAGES]
    make_task_run(tmp_path / "a")
    make_task_run(tmp_path / "b", id2label=names)
    for name, settings in {"c": {"id2label": names}, "d": {}}.items():
        folder = make_task_run(tmp_path / name, **settings)
        (path,) = folder.glob("*.jsonl")
        records = [record_of(index, *image, **BASE) for index, image in enumerate(swapped)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    reports = [Report.from_folder(tmp_path / name) for name in "abcd"]
    (comparison,) = compare(reports)
    found = dict(zip("abcd", comparison.other_images, strict=True))
    assert found["c"] == (6, []) and found["d"] == (6, [0, 1, 2, 3, 4])


def test_an_unfinished_run_says_so(tmp_path):
    make_task_run(tmp_path / "a")
    folder = make_task_run(tmp_path / "b")
    (path,) = folder.glob("*.jsonl")
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    text = tables(tmp_path / "a", folder)
    assert "2 of 6 | yes, 2 compared |" in text and "Without some of the images: b." in text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"n": 1000}, "`n` in .*task digits-l2, 100, got 1000"),
        ({"alpha": 0.01}, "`alpha` in .*0.001, got 0.01"),
        ({"radii": [0.25]}, "`radii` in "),
        ({"skip": 2}, "`skip` in "),
        ({"limit": None}, "`limit` in .*got None"),
        ({"images": 5}, "`images` in .*6, got 5"),
        ({"max_evaluations": 7}, "`max_evaluations` in .*None, got 7"),
        ({"split": "train"}, "`split` in .*test, got 'train'"),
        ({"task": {**TASK, "sigmas": [0.25]}}, r"`sigma` in .*one of \[0.25\], got 0.5"),
        ({"task": {**TASK, "n": "100"}}, "`task` in .*`n` of a task"),
        ({"task": "digits-l2"}, "`task` in .*got a str"),
    ],
)
def test_a_run_that_is_not_of_its_task_has_no_report(tmp_path, changes, said):
    folder = make_task_run(tmp_path)
    write_run(folder, {**read_run(folder), **changes})
    with pytest.raises(ValueError, match=said):
        Report.from_folder(folder)


MORE_COPIES = ({0: 10}, {0: 200})
MORE_SELECTION = ({0: 11}, {0: 100})


@pytest.mark.parametrize("counts", [MORE_COPIES, MORE_SELECTION], ids=["n", "n0"])
def test_a_certificate_of_other_copies_is_rejected(tmp_path, counts):
    """More noisy copies prove larger radii: a single valid certificate with more of them must not slip in."""
    certificate = Certificate.from_counts(*counts, 0.5, 0.001, evaluations=1, image_hash=f"{6:032x}", **BASE)
    assert certificate.verify()
    record = {"index": 5, "image_hash": certificate.image_hash, "label": 0, "certificate": certificate.to_dict()}
    plain, of_task = make_run(tmp_path / "plain", IMAGES[:5], [record], **BASE), make_task_run(tmp_path / "task")
    assert Report.from_folder(plain).rejected == {} and Report.from_folder(of_task).rejected == {}
    replace_records(of_task, plain)
    assert "n0 10 and n 100 of the task digits-l2, got clopper-pearson" in Report.from_folder(of_task).rejected[5]


def test_an_image_that_is_not_of_the_task_is_rejected(tmp_path):
    plain, of_task = make_run(tmp_path / "plain", [*IMAGES, IMAGES[0]], **BASE), make_task_run(tmp_path / "task")
    replace_records(of_task, plain)
    report = Report.from_folder(of_task)
    assert report.rejected == {6: "`index` must be that of an image of the task digits-l2, got 6."}
    assert len(report.outcomes) == 6


def replace_records(folder, source):
    """Give a run the records of another one."""
    for path in folder.glob("*.jsonl"):
        path.unlink()
    for path in source.glob("*.jsonl"):
        path.rename(folder / path.name)
