"""Certified before your eyes: the app of `diffusers_ndc.app` with the digits model, its samples and its runs.

    pip install ".[space]" && python examples/space/app.py

NDC_MODEL, or the file model.txt that `deploy.py --model` writes, names another model, a folder or Hub id.
"""

import os
from pathlib import Path

from diffusers_ndc.common.threads import share_cores


share_cores()  # before torch is loaded

from diffusers_ndc.app import Site, launch  # noqa: E402


HERE = Path(__file__).resolve().parent
DIGITS_MODEL = next((folder for folder in (HERE / "mnist", HERE.parent / "mnist") if folder.is_dir()), None)
NAMED = HERE / "model.txt"
OTHER_MODEL = os.environ.get("NDC_MODEL") or (NAMED.read_text().strip() if NAMED.is_file() else None)
SITE = Site(OTHER_MODEL) if OTHER_MODEL else Site(str(DIGITS_MODEL), samples=HERE / "digits", opening="4")


if __name__ == "__main__":
    launch(SITE)
