"""Randomized smoothing (Cohen et al. 2019, arXiv:1902.02918) of any classifier of images."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .bounds import check_alpha, majority_pvalue
from .certificate import Certificate, plurality
from .noise import check_noisy_range, check_seed, check_sigma, derive_seeds, fresh_seed, standard_normal


BLOCK_SIZE = 100
"""Draws that share one seed. Part of what a seed means: another value gives other draws."""


@dataclass(frozen=True)
class Prediction:
    """What PREDICT returns: with probability at least `1 - alpha`, `label` is the smoothed classifier's, or `None`.

    Args:
        label: The predicted class, or `None` where the two leading classes cannot be told apart (abstention).
        counts: Votes of each class; classes without a vote are left out.
        alpha: Probability with which a label that is not `None` may differ from the smoothed classifier's.
        seed: Seed of all draws.
    """

    label: int | None
    counts: dict[int, int]
    alpha: float
    seed: int


class SmoothedClassifier:
    """The classifier `g(x) = argmax_c P[f(x + sigma * eps) = c]`, estimated by votes of a base classifier `f`.

    Every draw is independent: its smoothing noise, and the noise of a base classifier that draws its own, come from
    streams of the key (seed, image, purpose, block of `BLOCK_SIZE` draws), and the draws that select the candidate are
    not used again. So counts depend neither on batch sizes nor on which images are certified together, and `f` is one
    and the same function for all images, as the proof asks.

    Args:
        base_classifier: Any callable from images `(N, C, H, W)` to logits `(N, K)`. It meets `x + sigma * eps` as it
            is: not clipped, not rounded. One with a true attribute `randomized` is called with `seeds=`, one whole
            number per image, on which all its randomness must depend. It must treat the images of a batch
            independently, as a network in evaluation mode does.
        sigma: Standard deviation of the smoothing noise, pixel units, above 0.

    Raises:
        TypeError: `base_classifier` is not callable, or `sigma` is no number.
        ValueError: `sigma` is not above 0.
    """

    def __init__(self, base_classifier: Callable[..., torch.Tensor], sigma: float):
        if not callable(base_classifier):
            raise TypeError(f"`base_classifier` is a {type(base_classifier).__name__}; accepted is a callable.")
        check_sigma(sigma)
        if sigma == 0:
            raise ValueError("`sigma` is 0; accepted for smoothing is a noise level above 0 (pixel units).")
        self.base_classifier = base_classifier
        self.sigma = sigma

    def predict(
        self,
        images: torch.Tensor,
        n: int = 100,
        alpha: float = 0.001,
        seed: int | None = None,
        on_draws: Callable[[int], object] | None = None,
    ) -> list[Prediction]:
        """Algorithm PREDICT: the leading class of n votes, or an abstention.

        With probability at least `1 - alpha` for each image, the prediction is `g(x)` or an abstention (Cohen et al.
        2019, Proposition 1).

        Args:
            images: Shape `(N, C, H, W)`, values in [0, 1].
            n: Number of draws.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            on_draws: Called with the number of draws after each block of them.

        Raises:
            TypeError, ValueError: An argument is not as described.
        """
        self.check_inputs(images, alpha, seed, n=n)
        seed = fresh_seed() if seed is None else seed
        predictions = []
        for image in images:
            counts = self._votes(image, (seed, content_hash(image), "predict"), n, on_draws)
            top, runner_up = (sorted(counts.values(), reverse=True) + [0])[:2]
            label = plurality(counts) if majority_pvalue(top, runner_up) <= alpha else None
            predictions.append(Prediction(label, counts, alpha, seed))
        return predictions

    def certify(
        self,
        images: torch.Tensor,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        seed: int | None = None,
        on_draws: Callable[[int], object] | None = None,
    ) -> list[Certificate]:
        """Algorithm CERTIFY: a class and an l2 radius within which the smoothed classifier keeps it, or an abstention.

        For each image, with probability at least `1 - alpha` over the draws, the certificate is true (Cohen et al.
        2019, Proposition 2). `alpha` covers one image: of m certificates about `alpha * m` may be wrong.

        Args:
            images: Shape `(N, C, H, W)`, values in [0, 1].
            n0: Number of draws that choose the candidate class.
            n: Number of fresh draws that bound its probability.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            on_draws: Called with the number of draws after each block of them.

        Raises:
            TypeError, ValueError: An argument is not as described.
        """
        self.check_inputs(images, alpha, seed, n0=n0, n=n)
        seed = fresh_seed() if seed is None else seed
        evaluations = (n0 + n) * getattr(self.base_classifier, "evaluations_per_image", 1)
        certificates = []
        for image in images:
            image_hash = content_hash(image)
            certificate = Certificate.from_counts(
                self._votes(image, (seed, image_hash, "select"), n0, on_draws),
                self._votes(image, (seed, image_hash, "estimate"), n, on_draws),
                self.sigma,
                alpha,
                seed=seed,
                image_hash=image_hash,
                evaluations=evaluations,
                base_classifier=getattr(self.base_classifier, "settings", {}),
            )
            certificates.append(certificate)
        return certificates

    def check_inputs(self, images: torch.Tensor, alpha: float, seed: int | None, **draws: int) -> None:
        """Refuse arguments of `predict` (draws: `n`) or `certify` (`n0` and `n`) that are not as described there."""
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            given = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(f"`images` is {given}; accepted is a floating-point tensor.")
        if images.ndim != 4:
            raise ValueError(f"`images` has the shape {tuple(images.shape)}; accepted is (N, C, H, W).")
        check_noisy_range(images, sigma=0)
        check_alpha(alpha)
        check_seed(seed)
        for name, value in draws.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` is {value!r}; accepted is a whole number of draws, at least 1.")

    @torch.no_grad()
    def _votes(self, image: torch.Tensor, key: tuple[int | str, ...], n: int, on_draws) -> dict[int, int]:
        """Votes of n draws, counted by class."""
        votes = Counter()
        for block, done in enumerate(range(0, n, BLOCK_SIZE)):
            size = min(BLOCK_SIZE, n - done)
            noise_seed, *own_seeds = derive_seeds((*key, block), 1 + size)
            eps = standard_normal((size, *image.shape), noise_seed, image.dtype, image.device)
            noisy = image + self.sigma * eps
            if getattr(self.base_classifier, "randomized", False):
                logits = self.base_classifier(noisy, seeds=own_seeds)
            else:
                logits = self.base_classifier(noisy)
            if not logits.isfinite().all():
                raise FloatingPointError(
                    "The base classifier gave a logit that is not finite; no vote can be counted."
                )
            votes.update(logits.argmax(dim=1).tolist())
            if on_draws is not None:
                on_draws(size)
        return dict(sorted(votes.items()))


def content_hash(image: torch.Tensor) -> str:
    """Hash of an image's values (as float32) and shape, the same on every device: 32 hexadecimal digits."""
    values = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]
