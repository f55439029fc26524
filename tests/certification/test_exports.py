import subprocess
import sys

import diffusers_ndc
from diffusers_ndc import certification


def test_the_room_is_imported_without_torch():
    """Also what a check of certificates needs of it; `SmoothedClassifier` brings torch when it is asked for."""
    program = (
        "import sys; from diffusers_ndc.certification import BOUNDS, Certificate, LipschitzCertificate; "
        "print('torch' in sys.modules); from diffusers_ndc.certification import SmoothedClassifier; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_public_names_exist():
    for package in (diffusers_ndc, certification):
        assert package.__all__ == sorted(set(package.__all__))
        assert all(getattr(package, name) is not None for name in package.__all__)
