"""The command as a whole: what it imports, its exit codes, and how it says what is wrong."""

import os
import subprocess
import sys

import pytest

from diffusers_ndc import __version__
from diffusers_ndc.command import certify, main
from diffusers_ndc.command.main import COMMANDS, QUIET


HEAVY = ["torch", "diffusers", "transformers", "datasets", "accelerate"]
LOOK = f"""
import atexit, runpy, sys
atexit.register(lambda: print("imported:", *(name for name in {HEAVY} if name in sys.modules)))
runpy.run_module("diffusers_ndc", run_name="__main__", alter_sys=True)
"""
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
"""


def run_alone(words, code=LOOK):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--help"], 0, "certify"),
        (["evaluate", "--wrong", "1"], 2, "unrecognized arguments: --wrong 1"),
        (
            ["evaluate", "--model", "./no", "--dataset", "d", "--output", "o"],
            2,
            "`--model` must be an existing folder",
        ),
        (["app", "--model", "./no"], 2, "`--model` must be an existing folder"),
    ],
)
def test_help_and_wrong_arguments_import_nothing_heavy(words, code, said):
    result = run_alone(words)
    assert result.returncode == code and said in result.stdout + result.stderr
    assert result.stdout.endswith("imported:\n")


def test_the_check_of_imports_finds_what_is_imported():
    assert run_alone(["--help"], "import datasets\n" + LOOK).stdout.strip().endswith("datasets")


def test_records_are_verified_without_torch(tmp_path):
    """Nor diffusers, nor what reads settings: only numpy and scipy can be imported."""
    blocked = [*HEAVY, "jsonargparse", "yaml", "PIL", "huggingface_hub", "matplotlib", "tqdm"]
    block = BLOCK.format(blocked=blocked)
    (tmp_path / "empty.jsonl").write_text("")
    result = run_alone(["verify", tmp_path / "empty.jsonl"], block + LOOK)
    assert result.returncode == 0 and "there are no certificates" in result.stdout, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_refuses_wrong_arguments(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and f"diffusers-ndc {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([command, "--bogus"])
    assert ended.value.code == 2


@pytest.mark.parametrize("words", [[], ["bogus"], ["--bogus"]])
def test_a_wrong_command_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "COMMAND" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "error, said", [(ValueError("a\n  b"), "error: a b\n"), (KeyError("a"), "error: KeyError: 'a'\n")]
)
def test_an_error_is_one_line_or_a_traceback(error, said, monkeypatch, capsys):
    def fail(words):
        assert words == ["x"]
        raise error

    monkeypatch.setattr(certify, "main", fail)
    assert main(["certify", "x"]) == 1 and capsys.readouterr().err == said
    with pytest.raises(type(error)):
        main(["--debug", "certify", "x"])


def test_quiet_turns_progress_bars_off(monkeypatch):
    for name in QUIET:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(certify, "main", lambda words: len(words))
    assert main(["certify", "--quiet"]) == 0
    assert [os.environ[name] for name in QUIET] == ["1", "1", "1"]
