"""The calibrated noise levels in a pipeline's configuration: by smoothing sigma and method."""

from ..common.checks import check_sigma
from .likelihoods import get_likelihood
from .noise_levels import NoiseLevels


def levels_key(sigma: float) -> str:
    """Key of the noise levels for a smoothing sigma (pixel units) in a pipeline's configuration."""
    return f"{sigma:g}"


def check_levels(levels: dict[str, dict[str, dict]]) -> None:
    """Raise unless a table of noise levels can be used when one of its sigmas is asked for.

    Args:
        levels: Dictionaries of `NoiseLevels.to_dict` by sigma (pixel units, as `levels_key` writes it) and method.

    Raises:
        TypeError: A value of the levels has the wrong type.
        ValueError: The table has another structure, a key or value is out of range, or levels were calibrated for
            another sigma or method.
    """
    if not isinstance(levels, dict) or not all(isinstance(by_method, dict) for by_method in levels.values()):
        raise ValueError(f"`levels` must be a dictionary by sigma of dictionaries by method, got {levels!r}.")
    for key, by_method in levels.items():
        if not _is_levels_key(key):
            raise ValueError(f"`levels` must have sigmas in pixel units as keys, such as '0.25', got {key!r}.")
        for method, values in by_method.items():
            get_likelihood(method, float(key))
            saved = NoiseLevels.from_dict(values)
            sigma = None if saved.smoothing_sigma is None else levels_key(saved.smoothing_sigma)
            if (sigma, saved.method) not in ((None, None), (key, method)):
                raise ValueError(
                    f"`levels` must have levels for sigma {key} and method {method!r} at these keys, got levels for "
                    f"sigma {sigma} and method {saved.method!r}."
                )


def _is_levels_key(key: object) -> bool:
    try:
        sigma = float(key)  # type: ignore[arg-type]
        check_sigma(sigma)
    except (OverflowError, TypeError, ValueError):
        return False
    return key == levels_key(sigma)
