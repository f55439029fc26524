"""Every block of code in the documents runs, or says why it does not."""

import ast
import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.documents import MARK, PAGES, blocks, pages_with
from helpers.paths import ROOT

from diffusers_ndc.command.main import COMMANDS


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder with the examples, to be in, and with the environment of a reader who has installed the package."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return tmp_path


def run_python(page: Path, slow: bool) -> None:
    """Run the blocks of a page in order, as one program; each must print what the page shows."""
    namespace: dict = {"__name__": "__main__"}
    found = blocks(page)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language != "python" or not block.is_run or (block.mark == "slow" and not slow):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, str(block), "exec"), namespace)
        if after is not None and after.mark == "output":
            assert printed.getvalue().strip() == after.code.strip(), f"{block} prints something else"


def run_bash(page: Path, slow: bool) -> None:
    """Run the blocks of a page in order, each in a shell that stops at the first error."""
    for block in blocks(page):
        if block.language == "bash" and block.is_run and (slow or block.mark != "slow"):
            command = ["bash", "-euo", "pipefail", "-c", block.code]
            result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
            assert result.returncode == 0, f"{block}: {result.stdout}{result.stderr}"


@pytest.fixture(autouse=True)
def command_in_path(scratch, monkeypatch):
    """`diffusers-ndc`, also where the package is not installed."""
    program = scratch / "bin" / "diffusers-ndc"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m diffusers_ndc "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("page", pages_with("python", slow=False), ids=name_of)
def test_python_blocks_run(page):
    run_python(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python", slow=True), ids=name_of)
def test_slow_python_blocks_run(page):
    run_python(page, slow=True)


@pytest.mark.parametrize("page", pages_with("bash", slow=False), ids=name_of)
def test_bash_blocks_run(page):
    run_bash(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("bash", slow=True), ids=name_of)
def test_slow_bash_blocks_run(page):
    run_bash(page, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_marks_are_known_and_python_can_be_read(page):
    found = blocks(page)
    assert page.read_text().count("\n```") == 2 * len(found), "a fence is not closed, or starts with more than ```"
    for before, block in zip([None, *found], found, strict=False):
        assert MARK.fullmatch(block.mark) or not block.mark, f"{block}: unknown mark {block.mark}"
        if block.language == "python":
            ast.parse(block.code)
        if block.mark == "output":
            assert before is not None and before.language == "python" and before.is_run, f"{block}: output of what?"


def calls() -> list[tuple[str, str, list[str]]]:
    """Calls of the command in all pages: where, which command, and the options that are given."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.code.replace("\\\n", " ").splitlines():
                    match = re.search(r"(?:diffusers-ndc|-m diffusers_ndc) ([\w-]+)(.*)", line)
                    if match:
                        words = shlex.split(match[2], comments=True)
                        found.append((str(block), match[1], [word for word in words if word.startswith("--")]))
    return found


def help_of(command: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        importlib.import_module(f"diffusers_ndc.command.{command}").main(["--help"])
    return printed.getvalue()


def test_options_in_the_pages_exist():
    helps = {command: help_of(command) for command in {command for _, command, _ in calls()} & set(COMMANDS)}
    assert len(helps) > 5
    for place, command, options in calls():
        for option in options if command in helps else []:
            assert re.search(rf"{option}\b", helps[command]), f"{place}: {command} has no {option}"
