"""The site is built without a warning, and needs no network."""

import re
import subprocess
import sys

import pytest
from helpers.paths import ROOT


@pytest.mark.slow
def test_site_is_complete_and_needs_no_network(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]* rel=\"(?:stylesheet|icon|preconnect)\"[^>]* href=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]* href=\"([^\"]+)\"[^>]* rel=\"(?:stylesheet|icon|preconnect)\"", text)
        for place in loaded:
            assert "//" not in place, f"{page.name} loads {place}"
            assert (page.parent / place.partition("?")[0]).exists() or place.startswith("/"), f"{page.name}: {place}"
    reference = (tmp_path / "site" / "reference" / "package.html").read_text()
    assert 'id="diffusers_ndc.NoisedDiffusionClassifierPipeline.certify"' in reference
    assert 'not-run="' not in (tmp_path / "site" / "models.html").read_text()
