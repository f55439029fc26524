"""What the classifiers behind a denoiser have in common."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..common.copies import Copy, Pool, decide_all, group_by_kind
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
