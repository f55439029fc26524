"""Training of class-conditional diffusion models on labelled images, saved as certifiable classifiers.

Names are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports


if TYPE_CHECKING:
    from .run import train as train
    from .settings import TrainingSettings as TrainingSettings
    from .settings_parser import parse as parse
else:
    __getattr__, __all__ = lazy_exports(
        __name__,
        {"run": ["train"], "settings": ["TrainingSettings"], "settings_parser": ["parse"]},
        "train",
    )
