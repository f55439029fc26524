"""The app in `examples/space`: its modules, and its page on a free port of this machine."""

import importlib
import sys
from collections import Counter

import pytest
import torch
from diffusers import UNet2DModel

from helpers.paths import EXAMPLES


SPACE = EXAMPLES / "space"
sys.path.insert(0, str(SPACE))
certifying, deploy, files, pictures = map(importlib.import_module, ("certifying", "deploy", "files", "pictures"))

DIGITS = sorted(SPACE.glob("digits/*.png"))


@pytest.fixture(scope="module")
def app():
    """The module that builds the page."""
    pytest.importorskip("gradio", reason="needs the extra 'space'")
    return importlib.import_module("app")


@pytest.fixture(scope="module")
def address(app):
    """Address of the page with the digits model."""
    demo = app.build(app.DIGITS_MODEL)
    _, address, _ = demo.launch(**app.LAUNCH, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield address
    demo.close()


@pytest.fixture
def network_calls():
    """Counts the calls of networks, in whatever thread, as `network_calls["all"]`."""
    calls = Counter()

    def count(module, _):
        calls["all"] += isinstance(module, UNet2DModel)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    yield calls
    handle.remove()
