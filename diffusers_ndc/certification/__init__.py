"""Votes to bounds to certificates, for any classifier of images. It knows nothing of diffusion.

Certificates are made and checked without torch; `SmoothedClassifier`, `attack` and what belongs to them import it when
they are first asked for.
"""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports


if TYPE_CHECKING:
    from .attacks import Attack as Attack
    from .attacks import attack as attack
    from .bound_names import BOUNDS as BOUNDS
    from .bounds import certified_radius as certified_radius
    from .certificate import Certificate as Certificate
    from .lipschitz import LipschitzCertificate as LipschitzCertificate
    from .plan import Plan as Plan
    from .procedures import Prediction as Prediction
    from .smoothing import SmoothedClassifier as SmoothedClassifier
else:
    __getattr__, __all__ = lazy_exports(
        __name__,
        {
            "attacks": ["Attack", "attack"],
            "bound_names": ["BOUNDS"],
            "bounds": ["certified_radius"],
            "certificate": ["Certificate"],
            "lipschitz": ["LipschitzCertificate"],
            "plan": ["Plan"],
            "procedures": ["Prediction"],
            "smoothing": ["SmoothedClassifier"],
        },
    )
