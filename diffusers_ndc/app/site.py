"""What an app is about: its model, and the samples and runs that it shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image


SAMPLES = ("*.png", "*.jpg", "*.jpeg")
MOST_SAMPLES = 20


@dataclass(frozen=True)
class Site:
    """The settings of an app.

    Args:
        model: Folder or Hub id of the model.
        samples: Folder of pictures to choose from; the page opens on one of them.
        opening: Name (without its ending) of the sample on which the page opens. Default: the first.
        runs: Folders of evaluations to show. Default: those in the folder `evaluation` of a local model.
        device: Device of the model. Default: the accelerator, if there is one.
        links: Whether a link with `?model=NAMESPACE/NAME` may load another model from the Hub.
    """

    model: str
    samples: Path | None = None
    opening: str | None = None
    runs: Sequence[Path] | None = None
    device: str | None = None
    links: bool = True

    def pictures(self) -> dict[str, PIL.Image.Image]:
        """The samples by name, in the order of their names."""
        if self.samples is None:
            return {}
        paths = sorted({path for pattern in SAMPLES for path in self.samples.glob(pattern)})[:MOST_SAMPLES]
        return {path.stem: PIL.Image.open(path).copy() for path in paths}

    def run_folders(self) -> list[Path]:
        """The folders of the evaluations to show."""
        if self.runs is not None:
            return list(self.runs)
        return sorted(path.parent for path in Path(self.model).glob("evaluation/*/run.json"))
