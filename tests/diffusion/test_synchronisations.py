"""How often certificates wait for a device, counted on a simulated one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch has no backends in Python",
)


@pytest.fixture(scope="module")
def counted():
    """Waits and work of certificates with few and with many copies, by case."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "helpers.synchronisations"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "case, waited_for",
    [
        ("all classes", ("steps", "decided")),
        ("rule", ("steps", "decided")),
        ("sifter and rule", ("adds", "steps", "decided")),
        ("grid", ("steps", "decided")),
    ],
)
def test_a_step_waits_once_for_the_classes_left_and_once_for_votes(counted, case, waited_for):
    """A sifter's candidates are waited for when copies are added. Nothing else waits, whatever their number."""
    few, many = counted[case]
    work = sum(many[name] - few[name] for name in waited_for)
    assert work >= 2
    assert many["waits"] - few["waits"] == work
