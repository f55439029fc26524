"""What the classifiers behind a denoiser have in common."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..common.copies import BatchPool, Copy, Decided, Pool, decide_all, group_by_kind
from ..common.images import content_hash
from ..common.seeds import derive_seeds
from .denoiser import Denoiser
from .networks import inference


class Classified(NamedTuple):
    """The classification of one image.

    Args:
        image_hash: Its content hash.
        logits: Shape `(K,)`.
        evaluations: Network evaluations that it took.
    """

    image_hash: str
    logits: torch.Tensor
    evaluations: int


class DenoiserClassifier(nn.Module):
    """A classifier behind a denoiser: a `BaseClassifier` (`common.copies`) that also classifies images as they come.

    Subclasses have `randomized`, `num_classes`, `settings`, `evaluations`, `pool` and `forward`.
    """

    denoiser: Denoiser

    def check_images(self, images: torch.Tensor) -> None:
        """Raise if the denoiser cannot take this batch, as `Denoiser.check_images`."""
        self.denoiser.check_images(images)

    def inference(self) -> torch.no_grad | torch.inference_mode:
        """Context for evaluations without gradients."""
        return inference(self)

    def pool(self) -> Pool:
        """An empty pool of copies."""
        raise NotImplementedError

    def logits_of(self, copies: Sequence[Copy]) -> torch.Tensor:
        """Logits `(N, K)` of N copies, in their order; differentiable where gradients are on.

        Args:
            copies: Copies whose keys are their numbers, from 0.
        """
        rows: dict[int, torch.Tensor] = {}
        for decided in decide_all(self.pool(), copies):
            rows.update(zip(decided.keys, decided.logits, strict=True))
        return torch.stack([rows[number] for number in range(len(copies))])

    def classify_each(self, images: Iterable[torch.Tensor], seed: int) -> Iterator[tuple[int, Classified]]:
        """Classify images as they come, each as soon as it is decided, without gradients.

        Args:
            images: Images of shape `(C, H, W)`, pixel units, carrying noise `sigma`. Consecutive ones of the same
                shape, dtype and device share batches.
            seed: Seed of the noise. An image's noise depends on this and on the image, not on its number or company.

        Yields:
            Number of the image, and its classification.

        Raises:
            FloatingPointError: A loss is not finite.
        """

        def copies(group: Iterator[tuple[int, torch.Tensor]]) -> Iterator[Copy]:
            for number, image in group:
                image = image.detach().clone()  # the source may use its memory for the next image
                image_hash = content_hash(image)
                (own_seed,) = derive_seeds((seed, image_hash, "classify"), 1)
                yield Copy((number, image_hash), image, own_seed)

        for group in group_by_kind(images):
            for decided in decide_all(self.pool(), copies(group), self.inference()):
                for (number, image_hash), logits, spent in zip(*decided, strict=True):
                    yield number, Classified(image_hash, logits, spent)


class OnePassClassifier(DenoiserClassifier):
    """A `DenoiserClassifier` that classifies a batch at once and draws nothing: a fixed function of each image.

    Subclasses have `classify_batch` and the attribute `batch_size`.
    """

    randomized = False
    batch_size: int

    @property
    def evaluations_per_image(self) -> int:
        """Network evaluations that one image costs."""
        raise NotImplementedError

    def classify_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(N, K)` of one batch of images `(N, C, H, W)`."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of a batch of images; differentiable where gradients are on.

        Args:
            images: Shape `(N, C, H, W)`, pixel units (clean images in [0, 1]), carrying noise `sigma`.
            seeds: Not used: nothing is drawn.

        Returns:
            Logits of shape `(N, K)`, float32 (float64 for float64 images).

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: The denoiser cannot take images of this shape.
            FloatingPointError: What the network returns is not finite.
        """
        self.check_images(images)
        return torch.cat([self.classify_batch(part) for part in images.split(self.batch_size)])

    def pool(self) -> BatchPool:
        """An empty pool: copies of several images share a batch."""
        return BatchPool(self.batch_size, self._decide)

    def _decide(self, batch: list[Copy]) -> Decided:
        logits = self.classify_batch(torch.stack([copy.image for copy in batch]))
        return Decided([copy.key for copy in batch], logits, [self.evaluations_per_image] * len(batch))
