"""What every question about a smoothed classifier needs: base classifier, noise, and votes that come from both."""

from collections.abc import Callable, Iterable, Iterator

import torch

from ..common.checks import check_seed
from ..common.copies import BaseClassifier, as_base_classifier
from ..common.images import check_clean_images
from ..common.noise import fresh_seed
from ..common.seeds import uniform_number
from .smoothing_noise import SmoothingNoise
from .voting import Procedure, Result, collect_votes


class SmoothedBase:
    """A base classifier behind smoothing noise.

    Args:
        base_classifier: Any callable from images `(N, C, H, W)` to logits `(N, K)`, or a `BaseClassifier`.
        sigma: Standard deviation of the smoothing noise, pixel units, above 0.
        grid: Grid steps between two values of an 8-bit image on which the noise is drawn (`grid_noise`), or `None`.

    Raises:
        TypeError: `base_classifier` is not callable, or `sigma` is not a number.
        ValueError: `sigma` is not above 0, or `grid` is not an integer of at least 1, or too fine for this much noise.
    """

    def __init__(
        self, base_classifier: BaseClassifier | Callable[..., torch.Tensor], sigma: float, grid: int | None = None
    ):
        self.base_classifier = as_base_classifier(base_classifier)
        self.noise = SmoothingNoise(sigma, grid)
        self.sigma = self.noise.sigma
        self.grid = grid

    def check_images(self, images: torch.Tensor, axes: str = "NCHW") -> None:
        """Raise unless these are images with the given axes and values in [0, 1], of 8 bits if noise is drawn on a
        grid.

        Args:
            images: The images, pixel units.
            axes: "NCHW" for a batch, "CHW" for one image.

        Raises:
            TypeError: `images` is not a dense floating-point tensor.
            ValueError: It has other axes or values, or the base classifier cannot take it.
        """
        check_clean_images(images, axes)
        self.base_classifier.check_images(images.view(-1, *images.shape[-3:]))
        self.noise.check_images(images)

    def _resolve_seed(self, seed: int | None, on_copies: Callable[[int], object] | None) -> int:
        check_seed(seed)
        if on_copies is not None and not callable(on_copies):
            raise TypeError(f"`on_copies` must be a callable or None, got {type(on_copies).__name__}.")
        return fresh_seed() if seed is None else seed

    def _collect(
        self,
        images: Iterable[torch.Tensor],
        seed: int,
        begin: Callable[[torch.Tensor, str], Procedure[Result]],
        on_copies: Callable[[int], object] | None,
    ) -> Iterator[tuple[int, Result]]:
        return collect_votes(self.base_classifier, self.noise.with_noise_ahead(), images, seed, begin, on_copies)

    def _origin(self, seed: int, image: torch.Tensor, image_hash: str, bound: str) -> dict:
        """What a certificate says of where its votes come from."""
        return {
            "u": uniform_number(seed, image_hash) if bound == "randomized-clopper-pearson" else None,
            "seed": seed,
            "image_hash": image_hash,
            "base_classifier": self.base_classifier.settings,
            "device": image.device.type,
            "grid": self.grid,
            "pixels": None if self.grid is None else image.numel(),
        }
