"""Markdown tables, and pages made from the Markdown templates of a room."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Make a Markdown table.

    Args:
        heads: Heads of the columns.
        rows: Rows of cells, one cell per column.

    Returns:
        The table, without a newline at its end.

    Example:
        >>> print(table(["class", "images"], [["cat", 3], ["dog", 4]]))
        | class | images |
        | --- | --- |
        | cat | 3 |
        | dog | 4 |
    """
    lines: list[Sequence[object]] = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def fill(package: str, template: str, /, **values: object) -> str:
    """Fill a template: the file `templates/<template>.md` of a package, with `$placeholders`.

    A paragraph that is empty once it is filled is left out, so an empty value removes an optional paragraph.

    Args:
        package: Full name of the package.
        template: Name of the template.
        values: A value for each placeholder.

    Returns:
        The filled text, without a newline at its end.

    Raises:
        KeyError: A placeholder has no value.
    """
    file = files(package) / "templates" / f"{template}.md"
    text = file.read_text(encoding="utf-8").rstrip("\n")
    paragraphs = [Template(paragraph).substitute(values) for paragraph in text.split("\n\n")]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
