"""Links of the documents to files and headings of the repository, and the reference, without a network."""

import importlib
import re

import pytest
import yaml
from helpers.documents import NOTEBOOKS, PAGES, anchors, links
from helpers.paths import ROOT


CARDS = [ROOT / "examples" / model / "README.md" for model in ("mnist", "fashion_mnist")]
DOCUMENTS = [*PAGES, *NOTEBOOKS, ROOT / "CHANGELOG.md", *CARDS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    for path, anchor in links(document):
        target = document.parent / path if path else document
        assert target.exists(), f"{path} does not exist"
        assert target.resolve().is_relative_to(ROOT.resolve()), f"{path} is not in the repository"
        if anchor:
            assert anchor in anchors(target), (
                f"{path}#{anchor}: no such heading, or GitHub and mkdocs name it differently"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_nothing_is_installed_from_pypi(page):
    """There is no release there."""
    assert not re.search(r"pip install [\"']?diffusers-ndc(?!\S* @ git)", page.read_text())


def test_all_pages_are_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """mkdocs has tags of its own."""

    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    listed = {
        page for section in navigation for pages in section.values() for entry in pages for page in entry.values()
    }
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert listed == pages | {f"notebooks/{notebook.stem}.md" for notebook in NOTEBOOKS}


@pytest.mark.parametrize("page", ["package", "certification", "checkpoints", "evaluation"])
def test_reference_has_all_public_names(page):
    module = "diffusers_ndc" if page == "package" else f"diffusers_ndc.{page}"
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
    shown = set(re.findall(rf"^::: {module}\.(\w+)$", text, re.MULTILINE))
    elsewhere = set(re.findall(r"\[`(\w+)`\]\(package\.md#diffusers_ndc\.\w+\)", text))
    assert shown | elsewhere == set(importlib.import_module(module).__all__)
