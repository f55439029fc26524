"""The recipe of Fashion-MNIST with tiny networks: from IDX files to the table, with all methods on the same copies.

The programs of its steps run in this process, one after the other, which saves half a minute.
"""

import runpy
import subprocess
import sys

import fashion_mnist
import pytest
import steps
from accelerate.state import AcceleratorState
from helpers.paths import EXAMPLES

from diffusers_ndc import NoisedDiffusionClassifierPipeline, command
from diffusers_ndc.evaluation import Report, parse, read_records


@pytest.fixture
def commands(monkeypatch):
    """The commands that the recipe runs, each in this process."""
    ran = []

    def run_here(words, **_):
        ran.append(words)
        AcceleratorState._reset_state(reset_partial_state=True)
        if words[1] == "-m":
            assert command.main(words[3:]) == 0
        else:
            monkeypatch.setattr("sys.argv", words[1:])
            try:
                runpy.run_path(words[1], run_name="__main__")
            except SystemExit as ended:  # of a program that ends with an exit code
                assert not ended.code

    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(fashion_mnist, "run", run_here)
    monkeypatch.setattr(steps, "run", run_here)
    return ran


@pytest.mark.slow
def test_from_the_files_to_the_table(commands, tmp_path):
    recipe = ["--dry-run", "--output", str(tmp_path)]
    fashion_mnist.main(recipe)
    reports = {path.name: Report.from_folder(path) for path in (tmp_path / "runs").iterdir()}
    assert set(reports) == {f"{method}-0.25" for method in fashion_mnist.METHODS}
    records = {name: read_records(tmp_path / "runs" / name) for name in reports}
    assert {name: list(found) for name, found in records.items()} == {
        **{name: [0, 2, 4, 6] for name in reports},
        "all-classes-0.25": [0, 4],
    }
    for report in reports.values():
        assert not report.failed and not report.rejected and report.run["seed"] == 0
    hashes = {name: {found[0]["image_hash"], found[4]["image_hash"]} for name, found in records.items()}
    assert len(set.union(*hashes.values())) == 2, "all methods see the same images"

    unsifted = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "model-all-classes").classifier(0.25)
    sifted = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "model").classifier(0.25)
    assert unsifted.levels.sigmas == sifted.levels.sigmas
    assert unsifted.levels.sifting is None and sifted.levels.sifting is not None
    for record in records["all-classes-0.25"].values():
        certificate = record["certificate"]
        copies = sum(certificate["counts"].values()) + sum(certificate["selection_counts"].values())
        assert certificate["evaluations"] == copies * 11 * len(unsifted.levels), "ten classes and none, at each level"

    table = (tmp_path / "table" / "report.md").read_text()
    for row in ("| ndc-0.25 | apndc, sifter proposes |", "| gaussian-0.25 | gaussian with resnet-0.25 |"):
        assert row in table
    assert "| ndc-0.25 | all-classes-0.25 | 0.25 | 2 |" in table, "compared on the images of both"

    done = len(commands)
    fashion_mnist.main([*recipe, "--method", "gaussian"])
    assert len(commands) == done + 1 and "report" in commands[-1], "nothing is done twice but the table"
    with pytest.raises(SystemExit, match="`--n` must be 16, with which .* was begun, got 8"):
        fashion_mnist.main([*recipe, "--n", "8"])


@pytest.mark.parametrize("method", fashion_mnist.METHODS)
def test_the_runs_differ_in_the_method_alone(method, tmp_path):
    args = fashion_mnist.parse_args(["--output", str(tmp_path), "--dataset", str(tmp_path)])
    assert args.sigma == fashion_mnist.SIGMAS
    for sigma in args.sigma:
        words = fashion_mnist.options(fashion_mnist.evaluation(method, sigma, tmp_path, args, fashion_mnist.FULL))
        settings = parse(words)
        settings.check()
        common = (settings.seed, settings.n0, settings.n, settings.alpha, settings.stop_early, settings.radii)
        assert common == (0, 10, 6000 if method.endswith("-6x") else 1000, 0.001, True, [0.25, 0.5, 0.75, 1.0])
        assert settings.batch_size == 64
        assert settings.sigma == sigma and settings.skip == (200 if method == "all-classes" else 20)
        assert (settings.classifier is None) == (method in ("ndc", "ndc-scores", "features", "all-classes"))
        assert settings.sift == ("scores" if method == "ndc-scores" else None)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "`--source` or `--dataset` must be given"),
        (["--source", "nowhere"], "`--source` must be a folder, got nowhere"),
        (["--dry-run", "--n", "0"], "`--n` must be 1 or more, got 0"),
        (["--dry-run", "--batch-size", "0"], "`--batch-size` must be 1 or more, got 0"),
        (["--dry-run", "--sigma", "0.3"], "argument --sigma: invalid choice: 0.3"),
    ],
)
def test_options_are_refused_before_any_work(options, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        fashion_mnist.main(["--output", str(tmp_path / "out"), *options])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_failed_step_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    with pytest.raises(SystemExit, match=f"error: {sys.executable}.*fashion_mnist_data.py.* ended with the code 3"):
        fashion_mnist.main(["--dry-run", "--output", str(tmp_path)])


def test_the_images_of_an_output_stay_the_same(tmp_path, monkeypatch):
    """Otherwise the networks of one data set would be certified on another."""
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    for name, said in {"one": "ended with the code 3", "other": "`--dataset` must be '.*one', with which"}.items():
        (tmp_path / name).mkdir()
        with pytest.raises(SystemExit, match=said):
            fashion_mnist.main(["--output", str(tmp_path / "out"), "--dataset", str(tmp_path / name)])
