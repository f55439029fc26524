"""The app: a page in the browser that certifies pictures copy by copy, attacks its certificates, and shows runs.

It needs the extra `space` (gradio). `diffusers-ndc app` starts it.
"""

import os
from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

if TYPE_CHECKING:
    from .page import build as build
    from .server import launch as launch
    from .site import Site as Site
else:
    __getattr__, __all__ = lazy_exports(__name__, {"page": ["build"], "server": ["launch"], "site": ["Site"]})
