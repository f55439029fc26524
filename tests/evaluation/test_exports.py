"""The public names of the room."""

import subprocess
import sys

from diffusers_ndc import evaluation


def test_public_names_exist():
    assert all(callable(getattr(evaluation, name)) for name in evaluation.__all__)


def test_the_room_and_its_figures_load_neither_torch_nor_a_plotting_library():
    code = (
        "import sys; from diffusers_ndc.evaluation import Report; "
        "print([name for name in ('torch', 'datasets', 'accelerate', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
