"""Run the notebooks in `docs/notebooks` and store their outputs: after a change of one, or of what it shows.

    python docs/programs/notebooks.py [NAME ...]      # a minute for each, on one core

They run in a new folder that has `examples/`, so that nothing is left behind.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


ROOT = Path(__file__).parents[2]


def main(names):
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "examples").symlink_to(ROOT / "examples")
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=900, resources=resources, record_timing=False).execute()
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
