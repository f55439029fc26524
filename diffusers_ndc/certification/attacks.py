"""Attacks on a smoothed classifier: l2 projected gradient steps with the expectation over the smoothing noise.

SmoothAdv (Salman et al. 2019, arXiv:1906.04584) for any base classifier. No attack can confirm a certificate; one that
succeeds within its radius shows that something is wrong, and those that succeed further out how much room is left
between what is proved and what is true.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..common.checks import check_integer, check_kind, check_number
from ..common.copies import as_base_classifier
from ..common.images import content_hash
from ..common.noise import fresh_seed, standard_normal
from ..common.seeds import derive_seeds
from .bounds import MAX_N
from .grid_noise import EIGHT_BIT_STEPS
from .procedures import Prediction
from .smoothing import SmoothedClassifier


GRADIENTS = ("backprop", "score-function")

INSIDE = 1 - 1e-6
"""Share of the radius that is used: a certificate is about the open ball."""

STEP_LENGTH = 2.5
"""Of all steps together, in radii (Madry et al. 2018, arXiv:1706.06083): enough to reach the sphere and turn there.

From one to the next they get shorter in equal parts."""


@dataclass(frozen=True)
class Attack:
    """The image that an attack found, and what the smoothed classifier says to it.

    Args:
        image: Shape `(C, H, W)`, values in [0, 1]; of 8 bits where the smoothing noise is drawn on a grid.
        distance: Its l2 distance from the attacked image in pixel units, below the radius of the attack.
        label: The class that was attacked.
        prediction: PREDICT at the image, by draws that the attack has not seen.
        gradient: One of `GRADIENTS`.
        seed: Seed of all draws.
    """

    image: torch.Tensor
    distance: float
    label: int
    prediction: Prediction
    gradient: str
    seed: int

    @property
    def outcome(self) -> str:
        """`fallen` where another class is predicted, `abstained` where none is (which proves nothing), or `kept`."""
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
    """Look in the open l2 ball around an image for one of another class.

    Projected gradient steps raise the mean soft error of noisy copies,

        E[l(x + sigma * eps)],    l = sigmoid((logit of the rival - logit of the label) / scale),

    a smooth version of the share of votes that the label loses to its rival: the other class with the largest mean
    softmax among the copies of the step before, one for all copies, since a class must win most of them. `scale` is
    the standard deviation, among copies of the image itself, of the label's logit below the largest other: the logits
    of base classifiers differ in size by orders of magnitude, and where the sigmoid is flat there is nothing to climb.
    Copies come in antithetic pairs, `x + sigma * eps` and `x - sigma * eps`, which share the base classifier's own
    noise. The gradient is estimated by

    - `backprop`: `E[grad l]`, through base classifier and network, precise with few copies;
    - `score-function`: `E[l * eps] / sigma` (Stein's identity), from forward passes alone and for any base classifier,
      but with a variance that grows with the number of pixels. The other copy of a pair is the baseline.

    Chen et al. (arXiv:2402.02316) apply Stein's identity to the noise that a diffusion classifier itself adds, `grad
    E||h(x + s * eps) - x||^2 = E[||h - x||^2 * eps] / s - 2 E[h - x]`. That is the gradient of a mean loss, for a
    target that is a simple function of the image. Applied to the smoothing noise it gives that of the votes, whatever
    happens between image and logits: denoised targets, the sifting of classes, another classifier altogether.

    The first start is the image, the others are uniform on the sphere. Of the images at which they end the one where
    the rival's mean softmax exceeds the label's most, on fresh copies with the same noise for all, is judged by
    PREDICT, once: a fall is false with probability at most `alpha`, and of m attacks about `alpha * m` may be.

    Where the smoothing noise is drawn on a grid, the image is one of 8 bits within the ball. The steps before leave
    that grid and the base classifier's rounding aside; the judgement does not.

    Args:
        smoothed: The smoothed classifier. `backprop` needs a differentiable base classifier, or `surrogate`.
        image: Shape `(C, H, W)`, values in [0, 1].
        label: The class that the image is to lose.
        radius: Of the ball, pixel units, above 0.
        steps: Gradient steps from each start.
        draws: Noisy copies for each gradient, an even number.
        restarts: Number of starts.
        gradient: One of `GRADIENTS`.
        n: Noisy copies for the judgement.
        alpha: Error probability of the judgement.
        surrogate: Base classifier that is climbed in place of the smoothed one's, which still judges. For a diffusion
            classifier that sifts its classes, one that scores them all at two high noise levels gives a better
            gradient for the same cost: the logits of dropped classes stop where they were dropped.
        batch_size: Noisy copies that are classified, and differentiated, at a time, an even number; peak memory
            depends on it, not on `draws`.
        seed: Seed of all draws. Default: from the operating system's entropy.

    Raises:
        TypeError, ValueError: An argument is not as described, or the base classifier has no gradient.
    """
    check_kind("smoothed", smoothed, SmoothedClassifier)
    smoothed.check_images(image, "CHW")
    smoothed.check_settings(alpha, seed, n=n)
    if surrogate is not None and not callable(surrogate):
        raise TypeError(f"`surrogate` is a {type(surrogate).__name__}; accepted is a callable or None.")
    _check(label, radius, gradient, steps=steps, draws=draws, restarts=restarts, batch_size=batch_size)
    seed = fresh_seed() if seed is None else seed
    climb = _Climb(smoothed, surrogate, image, label, radius, gradient, draws, batch_size, seed)
    ends = [climb.ascend(steps, restart) for restart in range(restarts)]
    found = max(ends, key=climb.lead) if restarts > 1 else ends[0]
    (prediction,) = smoothed.predict(found[None], n, alpha, seed)
    distance = (found.double() - image.double()).norm().item()
    return Attack(found, distance, label, prediction, gradient, seed)


class _Climb:
    """Steps up the mean soft error of an image's noisy copies, within the ball and [0, 1]."""

    def __init__(self, smoothed, surrogate, image, label, radius, gradient, draws, batch_size, seed):
        self.classifier = smoothed.base_classifier if surrogate is None else as_base_classifier(surrogate)
        self.sigma, self.on_grid = smoothed.sigma, smoothed.grid is not None
        self.image = image.detach().to(torch.promote_types(image.dtype, torch.float32))
        self.origin = self.image.double()
        self.label, self.radius, self.draws, self.batch_size = label, radius, draws, batch_size
        self.differentiated = gradient == "backprop"
        self.key = (seed, content_hash(image))
        logits = self._forward(self.image, "attack scale")
        others = logits.index_fill(1, torch.tensor([label], device=logits.device), -math.inf)
        self.scale = (others.amax(1) - logits[:, label]).std().item() or 1.0  # without spread there is no gradient
        self.rival = self._rival(logits)

    def ascend(self, steps: int, restart: int) -> torch.Tensor:
        """The image at which the steps from one start end."""
        offset, rival = torch.zeros_like(self.origin), self.rival
        if restart:
            seeds = derive_seeds((*self.key, "attack start", restart), 1)
            (noise,) = standard_normal(tuple(offset.shape), seeds, offset.dtype, offset.device)
            offset = self._project(self.radius * noise / noise.norm())
        for step in range(steps):
            slope, rival = self._slope((self.origin + offset).to(self.image), rival, f"attack {restart}", step)
            size = STEP_LENGTH * self.radius * 2 * (steps - step) / (steps * (steps + 1))
            offset = self._project(offset + size * slope / slope.norm().clamp(min=1e-300))
        return self._representable(offset)

    def lead(self, image: torch.Tensor) -> float:
        """Mean softmax of the rival less that of the label, of fresh copies with the same noise for all images."""
        logits = self._forward(image, "attack choice")
        means = self._softmax(logits)
        return (means[self._rival(logits)] - means[self.label]).item()

    def _rival(self, logits: torch.Tensor) -> int:
        means = self._softmax(logits)
        means[self.label] = -1
        return int(means.argmax())

    def _softmax(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits / self.scale).softmax(1).mean(0)

    @torch.no_grad()
    def _forward(self, image: torch.Tensor, purpose: str) -> torch.Tensor:
        return torch.cat([self._logits(image, *pairs) for pairs in self._pairs(purpose)])

    def _slope(self, image: torch.Tensor, rival: int, purpose: str, step: int) -> tuple[torch.Tensor, int]:
        """Gradient of the mean soft error, times the number of copies, float64; and the copies' rival."""
        total, seen = torch.zeros_like(self.origin), []
        for noise, own in self._pairs(purpose, step):
            leaf = image.detach().requires_grad_(self.differentiated)
            with torch.set_grad_enabled(self.differentiated):
                logits = self._logits(leaf, noise, own)
                errors = ((logits[:, rival] - logits[:, self.label]) / self.scale).sigmoid()
            if self.differentiated:
                if not errors.requires_grad:
                    raise ValueError(
                        "`gradient` is 'backprop', but the base classifier's logits have no gradient; accepted for it "
                        "is 'score-function'."
                    )
                (slope,) = torch.autograd.grad(errors.sum(), leaf)
            else:
                plus, minus = errors.chunk(2)
                slope = torch.einsum("p,pchw->chw", (plus - minus) / self.sigma, noise)
            total += slope
            seen.append(logits.detach())
        return total, self._rival(torch.cat(seen))

    def _pairs(self, purpose: str, step: int = 0) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Noise of `draws` copies in antithetic pairs, a batch at a time, and the seeds of the base classifier's."""
        numbers = range(step * self.draws // 2, (step + 1) * self.draws // 2)
        for first in range(0, len(numbers), self.batch_size // 2):
            part = numbers[first : first + self.batch_size // 2]
            seeds = [derive_seeds((*self.key, purpose, number), 2) for number in part]
            smoothing, own = zip(*seeds, strict=True)
            yield standard_normal(tuple(self.image.shape), smoothing, self.image.dtype, self.image.device), list(own)

    def _logits(self, image: torch.Tensor, noise: torch.Tensor, own: list[int]) -> torch.Tensor:
        """Logits of the copies with `noise`, and then of those with minus that."""
        copies = image + self.sigma * torch.cat([noise, -noise])
        logits = self.classifier(copies, own * 2 if self.classifier.randomized else None)
        if not self.label < logits.shape[1]:
            raise ValueError(f"`label` is {self.label}; accepted is a class from 0 to {logits.shape[1] - 1}.")
        return logits

    def _project(self, offset: torch.Tensor) -> torch.Tensor:
        """The nearest offset in the ball whose image has its values in [0, 1].

        As the ball's centre has them too, that is some multiple of the offset, clipped (the optimality conditions).
        """

        def clipped(share):
            return (self.origin + share * offset).clamp(0, 1) - self.origin

        low, high, limit = 0.0, 1.0, INSIDE * self.radius
        if clipped(high).norm() <= limit:
            return clipped(high)
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if clipped(middle).norm() <= limit else (low, middle)
        return clipped(low)

    def _representable(self, offset: torch.Tensor) -> torch.Tensor:
        """The image in its own dtype, or 8 bits, without leaving the ball."""
        if not self.on_grid:
            rounded = (self.origin + offset).to(self.image.dtype)
            overshoot = (rounded.double() - self.origin).abs() > offset.abs()
            return torch.where(overshoot, torch.nextafter(rounded, self.image), rounded)
        wanted = EIGHT_BIT_STEPS * offset.abs().flatten()
        steps = wanted.round()
        # those that were rounded up most go down again, as many as it takes; with all of them there is room
        excess, up = (steps - wanted).sort(descending=True, stable=True)
        saved = (2 * steps[up] - 1).cumsum(0)
        too_far = steps.square().sum() - (INSIDE * EIGHT_BIT_STEPS * self.radius) ** 2
        lowered = (excess > 0) & (saved - (2 * steps[up] - 1) < too_far)
        steps[up[lowered]] -= 1
        steps = steps.view_as(offset) * offset.sign()
        return (((EIGHT_BIT_STEPS * self.origin).round() + steps) / EIGHT_BIT_STEPS).to(self.image.dtype)


def _check(label: int, radius: float, gradient: str, **counts: int) -> None:
    check_integer("label", label, 0, MAX_N, "the class that is attacked, a whole number")
    check_number("radius", radius, "a finite number above 0 (pixel units)")
    if not 0 < radius < math.inf:
        raise ValueError(f"`radius` is {radius}; accepted is a finite number above 0 (pixel units).")
    if gradient not in GRADIENTS:
        raise ValueError(f"`gradient` is {gradient!r}; accepted are {GRADIENTS}.")
    for name, value in counts.items():
        check_integer(name, value, 1, MAX_N)
        if name in ("draws", "batch_size") and value % 2:
            raise ValueError(f"`{name}` is {value}; accepted is an even number, for antithetic pairs.")
