"""The smoothing noise: noisy copies of an image, in floating point or on a grid."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..common.checks import check_sigma
from ..common.noise import standard_normal
from ..common.prefetch import NoiseAhead
from ..common.transfer import to_device
from .grid_noise import EIGHT_BIT_STEPS, check_grid, grid_steps


class SmoothingNoise:
    """Gaussian noise for randomized smoothing.

    Args:
        sigma: Standard deviation, pixel units, above 0.
        grid: If given, noise is drawn on a grid with this many steps between two values of an 8-bit image, by a law
            that does not depend on the image (`grid_noise`). `None`: floating-point sums.

    Raises:
        TypeError, ValueError: `sigma` is not a finite number above 0, or `grid` is not an integer of at least 1, or
            too fine for this much noise.
    """

    def __init__(self, sigma: float, grid: int | None = None):
        sigma = check_sigma(sigma)
        if sigma == 0:
            raise ValueError("`sigma` must be a noise level above 0 (pixel units), got 0.")
        if grid is not None:
            check_grid(grid, sigma)
        self.sigma = sigma
        self.grid = grid

    def noisy_copies(
        self,
        image: torch.Tensor,
        seeds: Sequence[int],
        then: Sequence[int] = (),
        ahead: NoiseAhead | None = None,
    ) -> torch.Tensor:
        """Noisy copies of an image, one per seed of 63 bits.

        Args:
            image: Shape `(C, H, W)`, pixel units.
            seeds: N seeds.
            then: Seeds that are likely to be next, for which `ahead` starts to make noise.
            ahead: Where noise is made ahead, if it is.

        Returns:
            Shape `(N, C, H, W)`, not clipped.
        """
        image, shape = image.detach(), tuple(image.shape)
        if self.grid is None:
            # The sum is made in float32 or better: in half precision it would reveal the image. Rounding it afterwards
            # is a function of the sum alone, and so part of the base classifier.
            exact = image.to(torch.promote_types(image.dtype, torch.float32))
            if ahead is None:
                noise = standard_normal(shape, seeds, exact.dtype, image.device)
            else:
                noise = ahead.standard_normal(shape, seeds, exact.dtype, image.device)
                ahead.expect(shape, then, exact.dtype)
            return (exact + self.sigma * noise).to(image.dtype)
        steps = to_device(torch.from_numpy(grid_steps(shape, seeds, self.sigma, self.grid)), image.device)
        on_grid = (image.double() * EIGHT_BIT_STEPS).round().long() * self.grid + steps
        return (on_grid.double() / (EIGHT_BIT_STEPS * self.grid)).to(image.dtype)  # of the grid point alone

    def with_noise_ahead(self) -> Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor]:
        """`noisy_copies` for a run over images, for which noise is made ahead."""
        return partial(self.noisy_copies, ahead=NoiseAhead())

    def check_images(self, images: torch.Tensor) -> None:
        """Raise a `ValueError` if noise is drawn on a grid and these are not images of 8 bits."""
        if self.grid is None:
            return
        steps = images.double() * EIGHT_BIT_STEPS
        off = (steps - steps.round()).abs().max().item()
        if off > 1e-3:
            raise ValueError(
                "`images` must be integers from 0 to 255 divided by 255 (8-bit values) if `grid` is given, got values "
                f"up to {off:.2g} of a step away from them."
            )
