"""Extras of the installation, and what is said if one is missing."""

import configparser
import re
import sys

import pytest
from helpers.paths import EXAMPLES

from diffusers_ndc.command import main
from diffusers_ndc.common.extras import EXTRAS, install_command
from diffusers_ndc.common.lazy import lazy_exports


def read_setup():
    setup = configparser.ConfigParser()
    setup.read(EXAMPLES.parent / "setup.cfg")
    return setup


def names(lines):
    return {re.split(r"[>=\[]", line)[0] for line in lines.split()}


def test_the_extras_are_those_of_the_installation():
    setup = read_setup()
    for extra, modules in EXTRAS.items():
        assert set(modules.values()) == names(setup["options.extras_require"][extra])
    tests = names(setup["options.extras_require"]["test"])
    for extra in ("eval", "train"):
        assert set(EXTRAS[extra].values()) <= tests
        assert not set(EXTRAS[extra].values()) & names(setup["options"]["install_requires"])


@pytest.mark.parametrize("command", ["evaluate", "plan", "report", "train"])
def test_a_missing_package_is_named_in_one_line_before_any_work(command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main([command, "--help"]) == 1
    extra = "train" if command == "train" else "eval"
    assert capsys.readouterr().err == (
        f"error: `{command}` needs packages that are not installed: datasets. Install them with "
        f'`pip install "diffusers-ndc[{extra}] @ git+https://github.com/diffusers-ndc/diffusers-ndc"`.\n'
    )


@pytest.mark.parametrize(
    "words",
    [
        ["replay", "{run}"],
        ["verify", "--replay", "{run}/a.jsonl"],
        ["push", "me/model", "{run}"],
        ["calibrate", "--model", "{run}", "--dataset", "a/b"],
    ],
)
def test_some_of_the_work_needs_more(words, monkeypatch, tmp_path, capsys):
    for name in ("run.json", "a.jsonl"):
        (tmp_path / name).write_text("")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([word.format(run=tmp_path) for word in words]) == 1
    assert "needs packages that are not installed: matplotlib. Install them with" in capsys.readouterr().err


def test_a_public_name_that_needs_an_extra_says_so():
    get, _ = lazy_exports("diffusers_ndc", {"nowhere": ["name"]}, "eval")
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"Install it with `{install_command('eval')}`.")):
        get("name")
