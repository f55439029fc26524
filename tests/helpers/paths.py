"""Folders of the repository that tests read."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MODEL = EXAMPLES / "mnist"
FIXTURES = ROOT / "tests" / "fixtures"
