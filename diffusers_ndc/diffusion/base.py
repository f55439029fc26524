"""What the classifiers of this room have in common: batches for their networks, and images as they come."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..common.checks import AUTO, BatchSize
from ..common.copies import BatchPool, Copy, Decided, Pool, decide_all, group_by_kind
from ..common.images import content_hash
from ..common.noise import standard_normal
from ..common.seeds import derive_seeds
from .batch_size import found_batch_size
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


class NetworkClassifier(nn.Module):
    """A classifier of images: a `BaseClassifier` (`common.copies`) that also classifies images as they come.

    Subclasses have `randomized`, `num_classes`, `settings`, `evaluations`, `pool`, `forward` and the properties below,
    and either the attribute `batch_size` and `evaluate`, or a `network_batch` of their own.
    """

    batch_size: BatchSize
    _found: int | None = None
    _found_for: tuple | None = None

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images, `None` if they may differ."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device for the images."""
        raise NotImplementedError

    @property
    def tried_network(self) -> nn.Module:
        """The network that a trial of the batch size is for; the one that takes most of the time."""
        raise NotImplementedError

    @property
    def networks_key(self) -> Hashable:
        """What a batch size that was found depends on besides the images: the networks and their dtypes."""
        raise NotImplementedError

    @property
    def network_batch(self) -> int | None:
        """Images per network evaluation: `batch_size`; `None` for "auto" as long as no image has come."""
        return self._found if self.batch_size == AUTO else self.batch_size

    def network_batch_for(self, images: torch.Tensor) -> int:
        """Images per network evaluation: `batch_size`, or for "auto" what a trial finds.

        Args:
            images: Shape `(N, C, H, W)`, as the network gets them. A trial is for one shape of image, dtype and
                device. Their values are not used.
        """
        if self.batch_size != AUTO:
            return self.batch_size
        device, shape = images.device, tuple(images.shape[1:])
        kind = (device, images.dtype, torch.is_autocast_enabled(device.type), shape, self.networks_key)
        if self._found is None or kind != self._found_for:
            noise = standard_normal(shape, [0], images.dtype, device)

            def evaluate(count: int) -> None:
                self.evaluate(noise.expand(count, *shape))

            self._found = found_batch_size(self.tried_network, (type(self), kind), evaluate, device)
            self._found_for = kind
        return self._found

    def evaluate(self, images: torch.Tensor) -> object:
        """Run the network on one batch, as in a classification, without counting it (for the trial)."""
        raise NotImplementedError

    def check_images(self, images: torch.Tensor) -> None:
        """Raise a `TypeError` or `ValueError` if the classifier cannot take this batch."""
        raise NotImplementedError

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


class DenoiserClassifier(NetworkClassifier):
    """A `NetworkClassifier` with a denoiser, which says which images it takes."""

    denoiser: Denoiser

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.denoiser.image_channels

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images, `None` if they may differ."""
        return self.denoiser.image_size

    @property
    def device(self) -> torch.device:
        """Device for the images."""
        return self.denoiser.unet.device

    @property
    def tried_network(self) -> nn.Module:
        """The network that a trial is for; one that the denoiser does not know, if there is one."""
        return self.denoiser.unet

    @property
    def networks_key(self) -> Hashable:
        """The networks of the denoiser and their dtypes."""
        unet = self.denoiser.unet
        networks = (id(unet), id(self.denoiser.unconditional_unet))
        return networks, self.denoiser.dtype, next(unet.parameters()).dtype

    def check_images(self, images: torch.Tensor) -> None:
        """Raise if the denoiser cannot take this batch, as `Denoiser.check_images`."""
        self.denoiser.check_images(images)


class OnePassClassifier(NetworkClassifier):
    """A `NetworkClassifier` that classifies a batch at once and draws nothing: a fixed function of each image.

    Subclasses have `classify_batch` and the attributes `batch_size` and `evaluations`.
    """

    randomized = False
    evaluations: int

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
            images: Shape `(N, C, H, W)`, pixel units (clean images in [0, 1]), carrying the smoothing noise.
            seeds: Not used: nothing is drawn.

        Returns:
            Logits of shape `(N, K)`, float32 (float64 for float64 images).

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: The classifier cannot take images of this shape.
            FloatingPointError: What the network returns is not finite.
        """
        self.check_images(images)
        logits = self._logits(images)
        if not logits.isfinite().all():
            raise FloatingPointError("Logits must be finite, got NaN or infinity: in the images, or by an overflow.")
        return logits

    def evaluate(self, images: torch.Tensor) -> None:
        spent = self.evaluations
        try:
            self.classify_batch(images)
        finally:
            self.evaluations = spent

    def pool(self) -> Pool:
        """An empty pool: copies of several images share a batch."""
        return OnePassPool(self)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.classify_batch(part) for part in images.split(self.network_batch_for(images))])

    def decide(self, batch: list[Copy]) -> Decided:
        """Classify copies (for the pool)."""
        logits = self._logits(torch.stack([copy.image for copy in batch]))
        return Decided([copy.key for copy in batch], logits, [self.evaluations_per_image] * len(batch))


class OnePassPool(BatchPool):
    """The pool of a `OnePassClassifier`. With a batch size "auto" the first copy is added alone, for the trial.

    Args:
        classifier: The classifier.
    """

    def __init__(self, classifier: OnePassClassifier):
        super().__init__(1, classifier.decide)
        self.classifier = classifier

    @property
    def room(self) -> int:
        """How many copies to add before the next step."""
        return max(0, (self.classifier.network_batch or 1) - len(self.waiting))

    def add(self, copies: Sequence[Copy]) -> None:
        """Add copies."""
        self.classifier.network_batch_for(copies[0].image[None])
        super().add(copies)
