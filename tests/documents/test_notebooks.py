"""The notebooks run, and hold the outputs of a run."""

import json

import pytest
from helpers.documents import NOTEBOOKS
from helpers.paths import ROOT


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_outputs_are_stored_and_light(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) > 4 and all(output["output_type"] != "error" for output in outputs)
    assert notebook.stat().st_size < 150_000


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    loaded = nbformat.read(notebook, as_version=4)
    stored = printing_cells(loaded)
    assert stored
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(loaded, timeout=300, kernel_name="python3", resources=resources).execute()
    assert printing_cells(loaded) == stored


def printing_cells(notebook) -> list[int]:
    """The numbers of the cells that print; what a cell prints may come in several pieces."""
    cells = enumerate(notebook.cells)
    return [number for number, cell in cells if any("text" in output for output in cell.get("outputs", []))]
