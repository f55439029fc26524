"""Start the app."""

from importlib.util import find_spec
from typing import Any

import gradio as gr

from .certifying import warm_up
from .gpu import on_zero_gpu
from .models import MODELS
from .page import build
from .site import Site
from .style import CSS


LAUNCH: dict[str, Any] = {
    "max_file_size": "5mb",
    "show_error": False,  # messages of unexpected exceptions contain paths
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "css": CSS,
}
"""Settings of the server."""


def launch(site: Site, **settings: Any) -> gr.Blocks:
    """Load the model, and serve the page until the process ends.

    With the package `mcp` (`gradio[mcp]`) the endpoints are tools of an MCP server as well, at `/gradio_api/mcp/`.

    Args:
        site: What the app is about.
        settings: Settings of `gradio.Blocks.launch`, such as `server_name`, `server_port` and `share`.

    Returns:
        The page.

    Raises:
        OSError: The port is in use.
    """
    demo = build(site)
    if MODELS.own is not None and not on_zero_gpu():
        warm_up(MODELS.own)
    demo.launch(**LAUNCH, mcp_server=find_spec("mcp") is not None, **settings)
    return demo
