"""The wheel alone: built, installed beside what it needs, and used far from the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.edm_files import golden, save_published
from helpers.paths import ROOT
from helpers.training import UNET, make_images

from diffusers_ndc.command.main import COMMANDS


HIDE = """
import os, sys

HIDDEN = os.environ.get("HIDDEN", "").split()


class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


if HIDDEN:
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
"""A `sitecustomize` that hides packages, as if they were not installed."""

MANY = """
import json, sys
import diffusers_ndc
from diffusers_ndc.command import main

print("package", diffusers_ndc.__file__)
for words in json.loads(sys.argv[1]):
    print("exit code", words[0], main(words), flush=True)
"""
"""Several commands in one process, as each takes seconds to start."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of a copy, so that no build files stay in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in ("README.md", "LICENSE", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "diffusers_ndc", source / "diffusers_ndc", ignore=shutil.ignore_patterns("__pycache__"))
    pip(["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist"], source)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """Programs of an environment with the wheel, which finds all other packages where they are installed."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, system_site_packages=True, with_pip=False, symlinks=os.name != "nt")
    scripts = Path(sysconfig.get_path("scripts", vars={"base": str(folder)}))
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # behind the wheel; the .pth files there, such as that of an editable installation, are not read
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(HIDE)
    pip(["--python", scripts / "python", "install", "--no-deps", "--no-index", "--ignore-installed", wheel], folder)
    return scripts


def pip(words, folder):
    command = [sys.executable, "-m", "pip", *words]
    result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def run(command, folder, hidden=""):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, "HIDDEN": hidden},
    )
    return result.returncode, result.stdout, result.stderr


def run_many(bin_folder, folder, commands, hidden=""):
    words = json.dumps([list(map(str, words)) for words in commands])
    code, printed, errors = run([bin_folder / "python", "-c", MANY, words], folder, hidden)
    assert code == 0, errors
    (package,) = (line for line in printed.splitlines() if line.startswith("package "))
    assert str(ROOT) not in package and str(bin_folder.parent) in package
    codes = [line.split()[2:] for line in printed.splitlines() if line.startswith("exit code")]
    return [(name, int(code)) for name, code in codes], printed, errors


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel):
    package = ROOT / "diffusers_ndc"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if name.startswith("diffusers_ndc/")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.slow
def test_the_commands_work_with_the_wheel_alone(bin_folder, hub, tmp_path):
    make_images(tmp_path / "images")
    (tmp_path / "unet.json").write_text(UNET)
    save_published(tmp_path / "edm.pkl", golden("c2")[0])
    image = tmp_path / "images" / "train" / "dark" / "0.png"
    train = ["--unet-config", "unet.json", "--batch-size", 8, "--max-train-steps", 2, "--lr-warmup-steps", 1]
    run_words = ["--model", "model", "--dataset", "images", "--split", "train", "--alpha", 0.1, "--radii", 0.05]
    run_words += ["--stop-early", "--batch-size", 64]
    calibrate = ["--model", "model", "--dataset", "images", "--limit", 24, "--sigma", 0.25, "--num-levels", 2]
    commands = [
        ["train", "--dataset", "images", "--output-dir", "model", *train],
        ["calibrate", *calibrate, "--candidates", 0.8, 2, 2, "--num-copies", 1],
        ["plan", *run_words, "--limit", 2, "--n", 20, "--plan-images", 2],
        ["evaluate", *run_words, "--limit", 2, "--n", 20, "--output", "run"],
        ["replay", "run", "--count", 1],
        ["report", "run", "--output", "report"],
        ["push", "me/model", "model", "run"],
        ["convert", "edm.pkl", "--output", "edm"],
    ]
    codes, printed, errors = run_many(bin_folder, tmp_path, commands)
    assert codes == [(words[0], 0) for words in commands], printed + errors
    assert (tmp_path / "report" / "report.html").is_file() and (tmp_path / "edm" / "model_index.json").is_file()
    assert {"model_index.json", "evaluation/run/report.md"} <= set(hub.files("me/model"))

    # without the extras
    basic = [
        ["certify", image, "--model", "model", "--n", 20, "--n0", 5, "--alpha", 0.1, "--output", "record.jsonl"],
        ["replay", "record.jsonl"],
        ["evaluate", *run_words, "--output", "other"],
    ]
    codes, printed, errors = run_many(bin_folder, tmp_path, basic, hidden="datasets jsonargparse matplotlib")
    assert codes == [("certify", 0), ("replay", 0), ("evaluate", 1)], printed + errors
    assert "`evaluate` needs packages that are not installed: datasets, jsonargparse, matplotlib." in errors

    # nor torch, and by the program's own name
    code, printed, errors = run(
        [bin_folder / "diffusers-ndc", "verify", "record.jsonl"], tmp_path, hidden="torch diffusers transformers PIL"
    )
    assert code == 0 and printed.startswith("sound   record.jsonl"), printed + errors
    tried = {words[0] for words in (*commands, *basic)} | {"verify"}
    assert tried >= set(COMMANDS) - {"app"}, "a command without a case here"
