"""How large is a radius? Changes of a picture with a given l2 norm: a random one, and the worst that was found."""

from collections.abc import Sequence

import torch


def with_norm(image: torch.Tensor, direction: torch.Tensor, norm: float) -> torch.Tensor:
    """The image, changed along a direction, with its values clipped to [0, 1], by a change of this l2 norm.

    Args:
        image: Shape `(C, H, W)`, values in [0, 1].
        direction: The same shape.
        norm: l2 norm of the change that is left after clipping, pixel units, above 0. Where clipping leaves no change
            so large, the largest one is taken.
    """
    origin = image.double()
    unit = direction.double() / direction.double().norm().clamp(min=1e-12)

    def change(multiple: float) -> torch.Tensor:
        return (origin + multiple * unit).clamp(0, 1) - origin

    low, high = 0.0, norm
    while change(high).norm() < norm and high < 1e6:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        if change(middle).norm() < norm:
            low = middle
        else:
            high = middle
    return (origin + change(high)).to(image.dtype)


def random_direction(image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Gaussian noise in the shape of an image: a direction that is uniform on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(image.shape, generator=generator)


def worst_direction(
    found: Sequence[tuple[float, torch.Tensor]], image: torch.Tensor, size: float
) -> torch.Tensor | None:
    """The direction of the attack whose distance is nearest to a size.

    Args:
        found: Distances of attacks in certified radii, and the images that they found.
        image: The certified image.
        size: Size of the change to show, in certified radii.

    Returns:
        The direction, or `None` without an attack.
    """
    if not found:
        return None
    _, nearest = min(found, key=lambda attempt: abs(attempt[0] - size))
    return nearest - image
