"""The documents: their pages, the blocks of code in them, and their links."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import ROOT


PAGES = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

FENCE = re.compile(r"^```(\w*) ?(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
MARK = re.compile(r'(first-steps|output|slow|not-run="[^"]+")')
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Args:
        page: The file.
        line: Number of the line of its fence.
        language: First word of the fence: `python`, `bash`, `text`, ...
        mark: What else stands there. `slow`: run by the slow tests; `not-run="..."`: run by none, for this reason;
            `output`: what the block before it prints; `first-steps`: `.ci/run` runs it.
        code: The lines between the fences.
    """

    page: Path
    line: int
    language: str
    mark: str
    code: str

    @property
    def is_run(self) -> bool:
        return not self.mark.startswith(("not-run", "first-steps", "output"))

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    return [Block(page, text.count("\n", 0, match.start()) + 1, *match.groups()) for match in FENCE.finditer(text)]


def pages_with(language: str, slow: bool) -> list[Path]:
    """Pages with blocks of a language to run. If `slow`, those of which at least one is marked as slow."""
    pages = []
    for page in PAGES:
        marks = [block.mark for block in blocks(page) if block.language == language and block.is_run]
        if ("slow" in marks) if slow else ("" in marks):
            pages.append(page)
    return pages


def prose(document: Path) -> str:
    """The text of a page or notebook, without code."""
    if document.suffix == ".ipynb":
        cells = json.loads(document.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"`[^`\n]*`", "code", FENCE.sub("", document.read_text()))


def links(document: Path) -> Iterator[tuple[str, str]]:
    """The relative links of a page or notebook: path, perhaps empty, and anchor, perhaps empty."""
    for target in LINK.findall(prose(document)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page that GitHub and mkdocs both have, and those of the names that a reference page lists."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    found = set(re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE))
    for heading in headings:
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        if words.replace(" ", "-") == re.sub(r"[-\s]+", "-", words):
            found.add(words.replace(" ", "-"))
    return found
