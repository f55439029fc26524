"""SmoothAdv (Salman et al. 2019, arXiv:1906.04584): l2 projected gradient attacks on a smoothed classifier.

They work with any base classifier. No attack can confirm a certificate. One that succeeds within the certified radius
shows that something is wrong; those that succeed further out show how much room is left between what is proved and
what is true.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..common.checks import check_integer, check_kind, check_number, check_seed
from ..common.copies import as_base_classifier
from ..common.images import content_hash
from ..common.noise import fresh_seed, standard_normal
from ..common.seeds import derive_seeds
from .bounds import MAX_N
from .grid_noise import EIGHT_BIT_STEPS
from .procedures import Prediction, check_predicting
from .smoothing import SmoothedClassifier


GRADIENTS = ("backprop", "score-function")

INSIDE = 1 - 1e-6
"""Share of the radius that attacks use, since a certificate is about the open ball."""

TOTAL_STEP_SIZE = 2.5
"""Sum of all step sizes in radii (Madry et al. 2018, arXiv:1706.06083): enough to reach the sphere and to turn there.

The step size falls linearly."""


@dataclass(frozen=True)
class Attack:
    """The image that an attack found, and the prediction of the smoothed classifier for it.

    Args:
        image: Shape `(C, H, W)`, values in [0, 1]; an 8-bit image if the smoothing noise is drawn on a grid.
        distance: l2 distance from the attacked image in pixel units, below the radius of the attack.
        label: The class that was attacked.
        prediction: PREDICT at `image`, on noisy copies that the attack has not seen.
        gradient: One of `GRADIENTS`.
        seed: Seed of all random numbers.
    """

    image: torch.Tensor
    distance: float
    label: int
    prediction: Prediction
    gradient: str
    seed: int

    @property
    def outcome(self) -> str:
        """`fallen` if another class is predicted, `abstained` if none is (which proves nothing), `kept` otherwise."""
        if self.prediction.label is None:
            return "abstained"
        return "kept" if self.prediction.label == self.label else "fallen"


def attack(
    smoothed: SmoothedClassifier,
    image: torch.Tensor,
    label: int,
    radius: float,
    steps: int = 20,
    draws: int = 8,
    restarts: int = 1,
    gradient: str = "backprop",
    n: int = 100,
    alpha: float = 0.001,
    surrogate: Callable[..., torch.Tensor] | None = None,
    batch_size: int = 16,
    seed: int | None = None,
) -> Attack:
    """Search the open l2 ball around an image for an image of another class.

    Projected gradient steps raise the mean soft error of noisy copies,

        E[l(x + sigma * eps)],    l = sigmoid((logit of the rival - logit of the label) / scale),

    a smooth version of the share of votes that the label loses to its rival. The rival is the other class with the
    largest mean softmax among the copies of the previous step: one class for all copies, since a single class must win
    most of them. `scale` is the standard deviation, among copies of the image itself, of the gap between the label's
    logit and the largest other one: the logits of base classifiers differ in size by orders of magnitude, and a flat
    sigmoid has no gradient to follow. Copies come in antithetic pairs, `x + sigma * eps` and `x - sigma * eps`, which
    share the base classifier's own noise. The gradient is estimated by

    - `backprop`: `E[grad l]`, through base classifier and network, precise with few copies;
    - `score-function`: `E[l * eps] / sigma` (Stein's identity), from forward passes alone and for any base classifier,
      but with a variance that grows with the number of pixels. The other copy of a pair is the baseline.

    Chen et al. (arXiv:2402.02316) apply Stein's identity to the noise that a diffusion classifier itself adds, `grad
    E||h(x + s * eps) - x||^2 = E[||h - x||^2 * eps] / s - 2 E[h - x]`. That is the gradient of a mean loss, for a
    target that is a simple function of the image. Applied to the smoothing noise, as here, the identity gives the
    gradient of the votes, whatever happens between image and logits: denoised targets, sifted classes, or a different
    kind of classifier.

    The first start is the image, the others are uniform on the sphere. Each start ends at one image. Among these, the
    one where the rival's mean softmax exceeds the label's most, on fresh copies with the same noise for all, is judged
    by PREDICT, once. A fall is false with probability at most `alpha`, so that of m attacks about `alpha * m` may fall
    by chance.

    If the smoothing noise is drawn on a grid, the result is an 8-bit image within the ball. The gradient steps ignore
    the grid and the base classifier's rounding to it; the judgement does not.

    Args:
        smoothed: The smoothed classifier. `backprop` needs a differentiable base classifier, or a `surrogate`.
        image: Shape `(C, H, W)`, values in [0, 1].
        label: The class that the image should lose.
        radius: Radius of the ball, pixel units, above 0.
        steps: Gradient steps from each start.
        draws: Noisy copies for each gradient, an even number.
        restarts: Number of starts.
        gradient: One of `GRADIENTS`.
        n: Noisy copies for the judgement.
        alpha: Error probability of the judgement.
        surrogate: Base classifier whose gradients are used in place of the smoothed one's, which still judges. For a
            diffusion classifier that sifts its classes, one that scores all classes at two high noise levels gives a
            better gradient at the same cost: the logits of dropped classes stop where they were dropped.
        batch_size: Noisy copies that are classified and differentiated at a time, an even number. Peak memory depends
            on it, not on `draws`.
        seed: Seed of all random numbers. Default: from the operating system's entropy.

    Returns:
        The image found, its distance, and the prediction for it.

    Raises:
        TypeError, ValueError: An argument is not as described, or the base classifier has no gradient.

    Example:
        >>> smoothed = SmoothedClassifier(lambda images: images.flatten(1)[:, :2], sigma=0.25)
        >>> image = torch.tensor([0.9, 0.1, 0.5, 0.5]).view(1, 2, 2)  # its true radius is 0.8 / sqrt(2) = 0.57
        >>> [attack(smoothed, image, label=0, radius=radius, seed=0).outcome for radius in (0.3, 0.8)]
        ['kept', 'fallen']
    """
    check_kind("smoothed", smoothed, SmoothedClassifier)
    smoothed.check_images(image, "CHW")
    check_predicting(n, alpha)
    check_seed(seed)
    if surrogate is not None and not callable(surrogate):
        raise TypeError(f"`surrogate` must be a callable or None, got {type(surrogate).__name__}.")
    radius = _check_radius(radius)
    _check(label, gradient, steps=steps, draws=draws, restarts=restarts, batch_size=batch_size)
    seed = fresh_seed() if seed is None else seed
    ascent = SmoothAdv(smoothed, surrogate, image, label, radius, gradient, draws, batch_size, seed)
    ends = [ascent.run(steps, restart) for restart in range(restarts)]
    best = max(ends, key=ascent.lead) if restarts > 1 else ends[0]
    (prediction,) = smoothed.predict(best[None], n, alpha, seed)
    distance = (best.double() - image.double()).norm().item()
    return Attack(best, distance, label, prediction, gradient, seed)


class SmoothAdv:
    """Projected gradient ascent on the mean soft error of an image's noisy copies, within the ball and [0, 1].

    The arguments are those of `attack`. Every gradient uses the same number of copies, `draws`.

    Attributes:
        scale: Standard deviation of the label's logit below the largest other one, among copies of the image.
        rival: Class other than the label with the largest mean softmax, among copies of the image.
    """

    def __init__(self, smoothed, surrogate, image, label, radius, gradient, draws, batch_size, seed):
        self.classifier = smoothed.base_classifier if surrogate is None else as_base_classifier(surrogate)
        self.sigma, self.on_grid = smoothed.sigma, smoothed.grid is not None
        self.image = image.detach().to(torch.promote_types(image.dtype, torch.float32))
        self.origin = self.image.double()
        self.label, self.radius, self.draws, self.batch_size = label, radius, draws, batch_size
        self.estimate = self._backprop if gradient == "backprop" else self._score_function
        self.key = (seed, content_hash(image))
        logits = self._logits_of_copies(self.image, "attack scale")
        others = logits.index_fill(1, torch.tensor([label], device=logits.device), -math.inf)
        spread = (others.amax(1) - logits[:, label]).std().item()
        self.scale = spread if spread != 0 else 1.0  # without spread there is no gradient, whatever the scale
        self.rival = self._rival(logits)

    def run(self, steps: int, restart: int) -> torch.Tensor:
        """The image at which the steps from start number `restart` end."""
        *_, image = self.path(steps, restart)
        return image

    def path(self, steps: int, restart: int) -> Iterator[torch.Tensor]:
        """The image after each of the steps, at least one, from start number `restart`."""
        offset, rival = self._start(restart), self.rival
        for step in range(steps):
            slope, rival = self.gradient((self.origin + offset).to(self.image), rival, f"attack {restart}", step)
            size = TOTAL_STEP_SIZE * self.radius * 2 * (steps - step) / (steps * (steps + 1))
            offset = self.project(offset + size * slope / slope.norm().clamp(min=1e-300))
            yield self._to_eight_bits(offset) if self.on_grid else self._to_dtype(offset)

    def lead(self, image: torch.Tensor) -> float:
        """Mean softmax of the rival minus that of the label, on fresh copies with the same noise for all images."""
        logits = self._logits_of_copies(image, "attack choice")
        means = self._mean_softmax(logits)
        return (means[self._rival(logits)] - means[self.label]).item()

    def gradient(self, image: torch.Tensor, rival: int, purpose: str, step: int) -> tuple[torch.Tensor, int]:
        """Gradient of the soft error, summed over `draws` noisy copies, and the rival among these copies.

        Args:
            image: Shape `(C, H, W)`.
            rival: The class that the soft error compares with the label.
            purpose: Names the stream of the copies' noise.
            step: Number of the step, which has copies of its own.

        Returns:
            The gradient, shape `(C, H, W)`, float64, and the class.
        """
        total, seen = torch.zeros_like(self.origin), []
        for noise, own in self._pairs(purpose, step):
            slope, logits = self.estimate(image, rival, noise, own)
            total += slope
            seen.append(logits)
        return total, self._rival(torch.cat(seen))

    def _backprop(self, image, rival, noise, own):
        leaf = image.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._logits(leaf, noise, own)
            errors = self._soft_errors(logits, rival)
        if not errors.requires_grad:
            raise ValueError(
                "`gradient` must be 'score-function' for a base classifier without a gradient, got 'backprop'. A "
                "differentiable `surrogate` would help, too."
            )
        (slope,) = torch.autograd.grad(errors.sum(), leaf)
        return slope, logits.detach()

    @torch.no_grad()
    def _score_function(self, image, rival, noise, own):
        logits = self._logits(image, noise, own)
        plus, minus = self._soft_errors(logits, rival).chunk(2)
        return torch.einsum("p,pchw->chw", (plus - minus) / self.sigma, noise), logits

    def _soft_errors(self, logits: torch.Tensor, rival: int) -> torch.Tensor:
        return ((logits[:, rival] - logits[:, self.label]) / self.scale).sigmoid()

    def _rival(self, logits: torch.Tensor) -> int:
        means = self._mean_softmax(logits)
        means[self.label] = -1
        return int(means.argmax())

    def _mean_softmax(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits / self.scale).softmax(1).mean(0)

    @torch.no_grad()
    def _logits_of_copies(self, image: torch.Tensor, purpose: str) -> torch.Tensor:
        return torch.cat([self._logits(image, noise, own) for noise, own in self._pairs(purpose)])

    def _pairs(self, purpose: str, step: int = 0) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """The noise of `draws` copies in antithetic pairs, a batch at a time.

        Yields:
            Noise of the first copy of each pair, shape `(P, C, H, W)`, and for each pair the seed of the base
            classifier's own noise.
        """
        numbers = range(step * self.draws // 2, (step + 1) * self.draws // 2)
        pairs_per_batch = self.batch_size // 2
        for first in range(0, len(numbers), pairs_per_batch):
            batch = numbers[first : first + pairs_per_batch]
            seeds = [derive_seeds((*self.key, purpose, number), 2) for number in batch]
            smoothing, own = zip(*seeds, strict=True)
            yield standard_normal(tuple(self.image.shape), smoothing, self.image.dtype, self.image.device), list(own)

    def _logits(self, image: torch.Tensor, noise: torch.Tensor, own: list[int]) -> torch.Tensor:
        """Logits of the copies with `noise`, followed by those of the copies with `-noise`."""
        copies = image + self.sigma * torch.cat([noise, -noise])
        logits = self.classifier(copies, own * 2 if self.classifier.randomized else None)
        if not self.label < logits.shape[1]:
            raise ValueError(f"`label` must be a class from 0 to {logits.shape[1] - 1}, got {self.label}.")
        return logits

    def _start(self, restart: int) -> torch.Tensor:
        """Offset of a start from the image: none for the first one, uniform on the sphere for the others."""
        offset = torch.zeros_like(self.origin)
        if restart == 0:
            return offset
        seeds = derive_seeds((*self.key, "attack start", restart), 1)
        (noise,) = standard_normal(tuple(offset.shape), seeds, offset.dtype, offset.device)
        return self.project(self.radius * noise / noise.norm())

    def project(self, offset: torch.Tensor) -> torch.Tensor:
        """The nearest offset within the ball whose image has its values in [0, 1].

        The ball's centre is in [0, 1] itself, so by the optimality conditions the projection is a multiple of the
        offset, clipped to [0, 1]. The largest multiple within the ball is found by bisection.
        """

        def clipped(multiple):
            return (self.origin + multiple * offset).clamp(0, 1) - self.origin

        limit = INSIDE * self.radius
        low, high = 0.0, 1.0
        if clipped(high).norm() <= limit:
            return clipped(high)
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            if clipped(middle).norm() <= limit:
                low = middle
            else:
                high = middle
        return clipped(low)

    def _to_dtype(self, offset: torch.Tensor) -> torch.Tensor:
        """The image with this offset in its own dtype, rounded so that it does not leave the ball."""
        rounded = (self.origin + offset).to(self.image.dtype)
        too_far = (rounded.double() - self.origin).abs() > offset.abs()
        return torch.where(too_far, torch.nextafter(rounded, self.image), rounded)

    def _to_eight_bits(self, offset: torch.Tensor) -> torch.Tensor:
        """The image with this offset as an 8-bit image, rounded so that it does not leave the ball.

        If rounding to the nearest step leaves the ball, the values that were rounded up furthest move down a step, as
        many as it takes. If all of them did, no value would be further off than `offset`, which is inside.
        """
        exact = EIGHT_BIT_STEPS * offset.abs().flatten()
        steps = exact.round()
        rounded_up_by, order = (steps - exact).sort(descending=True, stable=True)
        reductions = 2 * steps[order] - 1  # of the squared norm, by one step less: k^2 - (k - 1)^2
        reduced_before = reductions.cumsum(0) - reductions
        excess = steps.square().sum() - (INSIDE * EIGHT_BIT_STEPS * self.radius) ** 2
        lowered = (rounded_up_by > 0) & (reduced_before < excess)
        steps[order[lowered]] -= 1
        signed_steps = steps.view_as(offset) * offset.sign()
        return (((EIGHT_BIT_STEPS * self.origin).round() + signed_steps) / EIGHT_BIT_STEPS).to(self.image.dtype)


def _check_radius(radius: float) -> float:
    expected = "a finite number above 0 (pixel units)"
    radius = check_number("radius", radius, expected)
    if not 0 < radius < math.inf:
        raise ValueError(f"`radius` must be {expected}, got {radius}.")
    return radius


def _check(label: int, gradient: str, **counts: int) -> None:
    check_integer("label", label, 0, MAX_N, "the class to attack, an integer")
    if gradient not in GRADIENTS:
        raise ValueError(f"`gradient` must be one of {GRADIENTS}, got {gradient!r}.")
    for name, value in counts.items():
        check_integer(name, value, 1, MAX_N)
        if name in ("draws", "batch_size") and value % 2 != 0:
            raise ValueError(f"`{name}` must be an even number, for antithetic pairs, got {value}.")
