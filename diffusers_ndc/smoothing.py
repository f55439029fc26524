"""Randomized smoothing (Cohen et al. 2019, arXiv:1902.02918) of any classifier of images."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from .bounds import certified_radius, check_alpha, majority_pvalue, mixture_lower
from .certificate import Certificate, plurality
from .noise import check_noisy_range, check_seed, check_sigma, derive_seeds, fresh_seed, standard_normal


BLOCK_SIZE = 100
"""Draws that share one seed. Part of what a seed means: another value gives other draws."""

STEP = 20
"""Draws between two looks at the votes where they are watched: how often one looks, not what is seen."""


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
        self._draws = 0

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
            counts = self._count(image, (seed, content_hash(image), "predict"), n, on_draws)
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
        radii: Sequence[float] | None = None,
        on_draws: Callable[[int], object] | None = None,
    ) -> list[Certificate]:
        """Algorithm CERTIFY: a class and an l2 radius within which the smoothed classifier keeps it, or an abstention.

        For each image, with probability at least `1 - alpha` over the draws, the certificate is true (Cohen et al.
        2019, Proposition 2). `alpha` covers one image: of m certificates about `alpha * m` may be wrong.

        With `radii`, the draws stop as soon as each of these radii is proved or ruled out. The bound is then one that
        holds at all numbers of draws at once (`bounds.mixture_lower`), so that looking at the votes and stopping by
        them leaves the guarantee as it is; a single look at a fixed `n` is a little tighter.

        Args:
            images: Shape `(N, C, H, W)`, values in [0, 1].
            n0: Number of draws that choose the candidate class.
            n: Number of fresh draws that bound its probability; with `radii`, the most that are spent.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            radii: Radii of interest, pixel units; 0 asks for the label alone. Default: none, `n` draws in any case.
            on_draws: Called with the number of draws after each block of them.

        Raises:
            TypeError, ValueError: An argument is not as described.
        """
        self.check_inputs(images, alpha, seed, radii, n0=n0, n=n)
        seed = fresh_seed() if seed is None else seed
        certify = self._certify_fixed if radii is None else partial(self._certify_radii, radii)
        return [certify(image, n0, n, alpha, seed, on_draws) for image in images]

    def certify_iter(
        self,
        image: torch.Tensor,
        n0: int = 20,
        n: int = 10_000,
        alpha: float = 0.001,
        seed: int | None = None,
        on_draws: Callable[[int], object] | None = None,
    ) -> Iterator[Certificate]:
        """CERTIFY as it goes: a certificate after every `STEP` draws, on all votes so far.

        For one image, with probability at least `1 - alpha`, *all* of them are true at once (`bounds.mixture_lower`):
        one may watch, stop whenever one likes, and keep the best.

        Args:
            image: Shape `(C, H, W)`, values in [0, 1].
            n0: Number of draws that choose the candidate class. A few do, since a wrong one only abstains.
            n: Number of further draws at most.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            on_draws: Called with the number of draws after each step of them.

        Raises:
            TypeError, ValueError: An argument is not as described.
        """
        self.check_inputs(image[None], alpha, seed, n0=n0, n=n)
        return self._watch(image, n0, n, alpha, fresh_seed() if seed is None else seed, on_draws)

    def _certify_fixed(self, image, n0, n, alpha, seed, on_draws) -> Certificate:
        image_hash, spent = content_hash(image), self._evaluations()
        selection = self._count(image, (seed, image_hash, "select"), n0, on_draws)
        counts = self._count(image, (seed, image_hash, "estimate"), n, on_draws)
        return self._certificate(selection, counts, alpha, "clopper-pearson", seed, image_hash, spent)

    def _certify_radii(self, radii, image, n0, n, alpha, seed, on_draws) -> Certificate:
        """The largest of the certificates that were seen until every radius was proved or ruled out."""
        best = None
        for latest in self._watch(image, n0, n, alpha, seed, on_draws):
            best = latest if best is None or latest.radius > best.radius else best
            others = latest.n - latest.counts.get(latest.candidate, 0)
            largest = certified_radius(1 - mixture_lower(others, latest.n, alpha), self.sigma)
            proved = -1.0 if best.abstained else best.radius
            if largest is None or all(radius <= proved or radius > largest for radius in radii):
                break
        return replace(best, evaluations=latest.evaluations)

    def _watch(self, image, n0, n, alpha, seed, on_draws) -> Iterator[Certificate]:
        image_hash, spent = content_hash(image), self._evaluations()
        selection = self._count(image, (seed, image_hash, "select"), n0, on_draws)
        counts = Counter()
        for votes in self._draw(image, (seed, image_hash, "estimate"), n, STEP, on_draws):
            counts.update(votes)
            so_far = dict(sorted(counts.items()))
            yield self._certificate(selection, so_far, alpha, "mixture", seed, image_hash, spent)

    def _certificate(self, selection, counts, alpha, bound, seed, image_hash, spent) -> Certificate:
        return Certificate.from_counts(
            selection,
            counts,
            self.sigma,
            alpha,
            bound,
            seed=seed,
            image_hash=image_hash,
            evaluations=self._evaluations() - spent,
            base_classifier=getattr(self.base_classifier, "settings", {}),
        )

    def _evaluations(self) -> int:
        """Network evaluations so far, by the base classifier's own count, or one a draw where it keeps none."""
        return getattr(self.base_classifier, "evaluations", self._draws)

    def check_inputs(self, images, alpha, seed, radii=None, **draws: int) -> None:
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
        if radii is not None and (not len(radii) or not all(0 <= radius < math.inf for radius in radii)):
            raise ValueError(f"`radii` is {radii!r}; accepted are one or more radii, 0 or above (pixel units).")

    def _count(self, image, key, n, on_draws) -> dict[int, int]:
        """Votes of n draws, counted by class."""
        counts = Counter()
        for votes in self._draw(image, key, n, BLOCK_SIZE, on_draws):
            counts.update(votes)
        return dict(sorted(counts.items()))

    @torch.no_grad()
    def _draw(self, image, key: tuple[int | str, ...], n: int, step: int, on_draws) -> Iterator[list[int]]:
        """The votes of n draws, `step` at a time; the draws themselves depend on the key alone."""
        for block, done in enumerate(range(0, n, BLOCK_SIZE)):
            size = min(BLOCK_SIZE, n - done)
            noise_seed, *own_seeds = derive_seeds((*key, block), 1 + size)
            noisy = image + self.sigma * standard_normal((size, *image.shape), noise_seed, image.dtype, image.device)
            for start in range(0, size, step):
                part, seeds = noisy[start : start + step], own_seeds[start : start + step]
                randomized = getattr(self.base_classifier, "randomized", False)
                logits = self.base_classifier(part, **({"seeds": seeds} if randomized else {}))
                if not logits.isfinite().all():
                    raise FloatingPointError("The base classifier gave a logit that is not finite; it has no vote.")
                self._draws += len(part)
                if on_draws is not None:
                    on_draws(len(part))
                yield logits.argmax(dim=1).tolist()


def content_hash(image: torch.Tensor) -> str:
    """Hash of an image's values (as float32) and shape, the same on every device: 32 hexadecimal digits."""
    values = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]
