"""Markdown tables and templates."""

import sys

import pytest

from diffusers_ndc.common.markdown import fill, table


def test_table_has_a_line_per_row_and_a_delimiter_for_each_column():
    lines = table(["class", "", "images"], [["cat", None, 3], ("dog", 0.5, 4)]).split("\n")
    assert lines == ["| class |  | images |", "| --- | --- | --- |", "| cat | None | 3 |", "| dog | 0.5 | 4 |"]
    assert table(["a"], []) == "| a |\n| --- |"


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Write the template `page` of a package `paper`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "paper", raising=False)

    def write(text):
        (tmp_path / "paper" / "templates").mkdir(parents=True)
        (tmp_path / "paper" / "__init__.py").touch()
        (tmp_path / "paper" / "templates" / "page.md").write_text(text)

    return write


def test_an_empty_paragraph_is_left_out(template):
    template("# $title\n\n$optional\n\nFixed, $$3.\n\n$last\n")
    assert fill("paper", "page", title="T", optional="", last="$title\n\n\nend") == (
        "# T\n\nFixed, $3.\n\n$title\n\n\nend"  # values are not templates
    )


def test_a_placeholder_without_a_value_is_an_error(template):
    template("$title")
    with pytest.raises(KeyError, match="title"):
        fill("paper", "page")
