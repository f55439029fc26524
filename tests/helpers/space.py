"""The app with the digits model, as `examples/space` has it, and its page on a free port of this machine."""

import importlib
import sys
from collections import Counter

import PIL.Image
import pytest
import torch
from diffusers import UNet2DModel

from diffusers_ndc import Certificate
from diffusers_ndc.app.models import load_model
from helpers.paths import EXAMPLES


SPACE = EXAMPLES / "space"
sys.path.insert(0, str(SPACE))
deploy = importlib.import_module("deploy")

DIGITS = sorted(SPACE.glob("digits/*.png"))


@pytest.fixture(scope="module")
def digits():
    """The digits model."""
    return load_model(str(EXAMPLES / "mnist"), "cpu")


@pytest.fixture(scope="module")
def one():
    """A picture of a 1."""
    return PIL.Image.open(DIGITS[1])


@pytest.fixture(scope="module")
def certificate():
    """40 of 40 votes for class 7."""
    return Certificate.from_counts({7: 20}, {7: 40}, sigma=0.25, alpha=0.001, bound="mixture", seed=1, evaluations=9)


@pytest.fixture(scope="module")
def site():
    """What the app in `examples/space` is about."""
    pytest.importorskip("gradio", reason="needs the extra 'space'")
    return importlib.import_module("app").SITE


@pytest.fixture(scope="module")
def address(site):
    """Address of its page."""
    from diffusers_ndc.app import launch

    demo = launch(site, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield demo.local_url
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
