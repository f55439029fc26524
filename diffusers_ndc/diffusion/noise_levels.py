"""Which noise levels a class is scored at, how much each one counts, and which classes go on to the next.

A class is scored by `L_y = sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2` with the sum over pixels. The levels are
in the model's units (images in [-1, 1]; twice the pixel units), those of `P_mean`, `P_std` and every diffusion paper.
"""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import stats

from ..common.checks import check_integer, check_kind, check_number, plain_numbers


WEIGHTINGS = ("elbo", "edm", "edm-reference", "uniform")

MAX_LEVELS = 100_000
"""Largest number of levels that a grid can be asked for."""

# The training distribution of Karras et al. 2022 (arXiv:2206.00364, Table 1): log sigma ~ N(P_mean, P_std^2).
P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5


def edm_lambda(sigma: np.ndarray, sigma_data: float = SIGMA_DATA) -> np.ndarray:
    """EDM's loss weight `(sigma^2 + sigma_data^2) / (sigma * sigma_data)^2` (Karras et al. 2022, Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def log_normal_density(sigma: np.ndarray, p_mean: float = P_MEAN, p_std: float = P_STD) -> np.ndarray:
    """Density of EDM's training noise levels, per unit of sigma."""
    return np.exp(-((np.log(sigma) - p_mean) ** 2) / (2 * p_std**2)) / (sigma * p_std * math.sqrt(2 * math.pi))


def reference_density(sigma: np.ndarray, p_mean: float = P_MEAN, p_std: float = P_STD) -> np.ndarray:
    """`log_normal_density` as the NDC authors' program has it: `/ 2 * p_std^2` in the exponent, not `/ (2 *
    p_std^2)`."""
    return np.exp(-((np.log(sigma) - p_mean) ** 2) / 2 * p_std**2) / (sigma * p_std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class SiftingRule:
    """After which loss a class is dropped: the sift-and-refine of Chen et al. (arXiv:2402.02316).

    Levels are visited in order. After each one, a class is dropped if its loss so far exceeds the best one's by more
    than that level's threshold. The rule is fixed beforehand and belongs to the classifier: it is the same for every
    image, and each noisy copy is sifted by its own losses.

    Args:
        thresholds: One per level but the last, at least 0, in the units of the weighted loss.
        relative: Whether the thresholds are shares of the best loss so far instead. Noisy copies that are hard to
            denoise have larger losses, and larger gaps between equally likely classes.
        max_classes: Largest number of classes that go on, the best ones. `None`: no limit.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A value is out of range.
    """

    thresholds: tuple[float, ...]
    relative: bool = False
    max_classes: int | None = None

    def __post_init__(self):
        expected = "finite numbers of at least 0, one per level but the last"
        object.__setattr__(self, "thresholds", plain_numbers("thresholds", self.thresholds, expected))
        if not all(0 <= threshold < math.inf for threshold in self.thresholds):
            raise ValueError(f"`thresholds` must be {expected}, got {self.thresholds}.")
        if not isinstance(self.relative, bool):
            raise TypeError(f"`relative` must be True or False, got {self.relative!r}.")
        if self.max_classes is not None:
            check_integer("max_classes", self.max_classes, 1, MAX_LEVELS, "None or an integer")

    def loosened(self, factor: float) -> "SiftingRule":
        """The same rule with every threshold multiplied by `factor`, a finite number above 0."""
        expected = "a finite number above 0"
        check_number("factor", factor, expected)
        if not 0 < factor < math.inf:
            raise ValueError(f"`factor` must be {expected}, got {factor}.")
        return replace(self, thresholds=tuple(factor * threshold for threshold in self.thresholds))


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels, the weight of the squared error at each one, and optionally a rule that sifts the classes.

    Args:
        sigmas: Noise levels in model units, positive. A level that is listed twice is drawn twice.
        weights: One weight per level, not negative and not all zero.
        sifting: Rule by which classes are dropped on the way. `None`: every class is scored at every level.
        smoothing_sigma: Noise of the images, in pixel units, that the levels were calibrated for; a classifier for
            another one is refused. `None`: any noise below the levels.
        method: Likelihood that they were calibrated for, likewise.
        cap: If given, denoised images are clipped to [-1, 1], and the mean squared error of a class (per value, model
            units) counts up to this at each level, at most 4. The classifier then has bounded losses, as
            `LipschitzCertificate` needs.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The arguments differ in length, are empty, or a value is out of range.

    Example:
        >>> levels = NoiseLevels((1.0, 2.0), (0.75, 0.25), SiftingRule((0.1,), relative=True))
        >>> len(levels), levels.sifting.thresholds
        (2, (0.1,))
    """

    sigmas: tuple[float, ...]
    weights: tuple[float, ...]
    sifting: SiftingRule | None = None
    smoothing_sigma: float | None = None
    method: str | None = None
    cap: float | None = None

    def __post_init__(self):
        for name in ("sigmas", "weights"):
            object.__setattr__(self, name, plain_numbers(name, getattr(self, name), "numbers, one per level"))
        check_kind("sifting", self.sifting, SiftingRule, type(None))
        check_kind("method", self.method, str, type(None))
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise ValueError(f"`sigmas` must be one or more finite numbers above 0, got {self.sigmas}.")
        if len(self.weights) != len(self.sigmas):
            raise ValueError(f"`weights` must be as many as `sigmas` ({len(self.sigmas)}), got {len(self.weights)}.")
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise ValueError(f"`weights` must be finite numbers of at least 0, not all 0, got {self.weights}.")
        if self.sifting is not None and len(self.sifting.thresholds) != len(self.sigmas) - 1:
            raise ValueError(
                f"`sifting` must have one threshold per level but the last ({len(self.sigmas) - 1}), got "
                f"{len(self.sifting.thresholds)}."
            )
        if self.smoothing_sigma is not None:
            expected = "a finite noise level of at least 0 (pixel units) or None"
            check_number("smoothing_sigma", self.smoothing_sigma, expected)
            if not 0 <= self.smoothing_sigma < math.inf:
                raise ValueError(f"`smoothing_sigma` must be {expected}, got {self.smoothing_sigma}.")
            object.__setattr__(self, "smoothing_sigma", float(self.smoothing_sigma))
        if self.cap is not None:
            expected = "a mean squared error above 0 and up to 4, or None"
            check_number("cap", self.cap, expected)
            if not 0 < self.cap <= 4:
                raise ValueError(f"`cap` must be {expected}, got {self.cap}.")

    def __len__(self) -> int:
        return len(self.sigmas)

    def to_dict(self) -> dict:
        """The levels as plain values, for JSON. The rule's fields are on the same level as the others."""
        rule = self.sifting
        return {
            "sigmas": list(self.sigmas),
            "weights": list(self.weights),
            "thresholds": None if rule is None else list(rule.thresholds),
            "relative": False if rule is None else rule.relative,
            "max_classes": None if rule is None else rule.max_classes,
            "smoothing_sigma": self.smoothing_sigma,
            "method": self.method,
            "cap": self.cap,
        }

    @classmethod
    def from_dict(cls, data: dict) -> "NoiseLevels":
        """The levels that `to_dict` wrote.

        Raises:
            TypeError, ValueError: `data` is not such a dictionary, or a value is out of range.
        """
        known = {*(f.name for f in fields(cls)), *(f.name for f in fields(SiftingRule))} - {"sifting"}
        if not isinstance(data, dict) or not {"sigmas", "weights"} <= set(data) <= known:
            raise ValueError(f"`data` must be a dictionary with sigmas, weights and others of {known}, got {data!r}.")
        plain = dict(data)
        thresholds, relative = plain.pop("thresholds", None), plain.pop("relative", False)
        max_classes = plain.pop("max_classes", None)
        if thresholds is not None:
            return cls(**plain, sifting=SiftingRule(thresholds, relative, max_classes))
        if relative is not False or max_classes is not None:
            raise ValueError(f"`data` must have thresholds beside relative and max_classes, got {data!r}.")
        return cls(**plain)

    def sifted(self, threshold: float, max_classes: int | None = None, relative: bool = False) -> "NoiseLevels":
        """The same levels with the sifting rule of Chen et al.: one fixed threshold, and a cap on the survivors.

        Args:
            threshold: Largest gap to the best class's loss so far with which a class goes on, in units of that loss.
            max_classes: Largest number of classes that go on. `None`: no limit.
            relative: Whether the threshold is a share of the best loss so far.

        Raises:
            TypeError, ValueError: An argument is not as `SiftingRule` needs it.
        """
        check_number("threshold", threshold, "a finite number of at least 0")
        return replace(self, sifting=SiftingRule((threshold,) * (len(self) - 1), relative, max_classes))

    def loosened(self, factor: float) -> "NoiseLevels":
        """The same levels with wider thresholds: fewer noisy copies lose their class, and each costs more.

        One noisy copy in a thousand that loses its class hardly matters for a radius that most copies prove anyway,
        but it shortens the full radius of a certificate of a thousand copies by several per cent.

        Args:
            factor: Multiplies every threshold, above 0. Levels without a sifting rule are returned as they are.

        Raises:
            TypeError, ValueError: `factor` is not a finite number above 0.
        """
        loose = (self.sifting or SiftingRule(())).loosened(factor)  # checks `factor` in either case
        return self if self.sifting is None else replace(self, sifting=loose)

    def repeat(self, times: int) -> "NoiseLevels":
        """Every level `times` times with fresh noise, at the same total weight: less variance, more evaluations.

        The result has no sifting rule: all classes are scored at all levels.

        Raises:
            ValueError: `times` is not an integer of at least 1.
        """
        check_integer("times", times, 1, MAX_LEVELS // len(self))
        weights = tuple(weight / times for weight in self.weights) * times
        return replace(self, sigmas=self.sigmas * times, weights=weights, sifting=None)

    @classmethod
    def log_grid(
        cls, sigma_min: float, sigma_max: float, num_levels: int = 12, weighting: str = "elbo"
    ) -> "NoiseLevels":
        """Levels evenly spaced in `log sigma`, both ends included. Under `elbo` a level then weighs as `1/sigma^2`.

        Raises:
            TypeError: An argument is of another type.
            ValueError: Not `0 < sigma_min < sigma_max`, fewer than 2 levels, or an unknown `weighting`.
        """
        check_integer("num_levels", num_levels, 2, MAX_LEVELS)
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            check_number(name, value, "a noise level above 0 (model units)")
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"`sigma_min` is {sigma_min} and `sigma_max` {sigma_max}; accepted are 0 < sigma_min < sigma_max."
            )
        sigmas = np.geomspace(sigma_min, sigma_max, num_levels)
        step = math.log(sigma_max / sigma_min) / (num_levels - 1)
        return cls(tuple(sigmas), tuple(_density(weighting, sigmas, widths=sigmas * step)))

    @classmethod
    def quantile_grid(
        cls,
        tau: float,
        num_levels: int,
        weighting: str = "elbo",
        p_mean: float = P_MEAN,
        p_std: float = P_STD,
    ) -> "NoiseLevels":
        """Mid-quantiles of EDM's log-normal training distribution truncated to `sigma > tau`.

        Args:
            tau: Noise that the image carries, model units; 0 for a clean image.
            num_levels: Number of levels, at least 1.
            weighting: One of `WEIGHTINGS`.
            p_mean: Mean of `log sigma` in training.
            p_std: Standard deviation of `log sigma` in training, above 0.

        Raises:
            TypeError, ValueError: An argument is not as described.
        """
        _check_tau(tau)
        check_integer("num_levels", num_levels, 1, MAX_LEVELS)
        check_number("p_mean", p_mean, "a number from -100 to 100")
        check_number("p_std", p_std, "a number above 0 and up to 100")
        if not -100 <= p_mean <= 100 or not 0 < p_std <= 100:
            raise ValueError(f"`p_mean` is {p_mean} and `p_std` {p_std}; accepted are -100 to 100, and 0 to 100.")
        below = stats.norm.cdf(math.log(tau), p_mean, p_std) if tau > 0 else 0.0
        upper_tail = (1 - below) * (1 - (np.arange(num_levels) + 0.5) / num_levels)
        sigmas = np.exp(stats.norm.isf(upper_tail, p_mean, p_std))
        widths = (1 - below) / (num_levels * log_normal_density(sigmas, p_mean, p_std))
        return cls(tuple(sigmas), tuple(_density(weighting, sigmas, widths, p_mean, p_std)))

    @classmethod
    def reference_grid(
        cls, tau: float, num_points: int = 126, weighting: str = "edm-reference", method: str = "apndc-clean"
    ) -> "NoiseLevels":
        """The grid of the NDC authors' program: `num_points` evenly on [tau, 3], without its two ends.

        `edm-reference` also takes over how that program indexes its grid `s_0 = tau < s_1 < ...` with step `ds`. A
        term that noises the image to `s' = s_{i+1}` reads the (misprinted) density at `s = s_i`, one point earlier:

        - dc, apndc, apndc-clean: `lambda(s') * p(s) * ds`.
        - epndc: the program weighs the error between posterior means by
          `lambda(s) * p(s) * s'^2 * (s'^2 - tau^2) / (4 * ds * (s^2 - tau^2))`, and leaves out the pairs i = 0 to 4.
          Times `((s'^2 - s^2) / s'^2)^2` that is the weight on `||h - target||^2`, which is what stands here.

        Its losses are means over pixels, ours are sums: a factor C*H*W common to all classes.

        Args:
            tau: Noise that the image carries, model units, below 3.
            num_points: Points of the grid, at least 3 (epndc with edm-reference: 8).
            weighting: One of `WEIGHTINGS`.
            method: The likelihood that the levels are for; only `edm-reference` depends on it.

        Raises:
            TypeError, ValueError: An argument is not as described.
        """
        _check_tau(tau)
        check_kind("weighting", weighting, str)
        check_kind("method", method, str)
        skipped = 5 if (weighting, method) == ("edm-reference", "epndc") else 0
        check_integer("num_points", num_points, skipped + 3, MAX_LEVELS)
        if not tau < 3:
            raise ValueError(f"`tau` is {tau}; accepted is a noise level below 3 (model units).")
        grid = np.linspace(tau, 3.0, num_points)[:-1]
        ds = (3.0 - tau) / (num_points - 1)
        s, sigmas = grid[skipped:-1], grid[skipped + 1 :]
        if weighting != "edm-reference":
            return cls(tuple(sigmas), tuple(_density(weighting, sigmas, widths=np.full_like(sigmas, ds))))
        if method != "epndc":
            if tau == 0:
                raise ValueError("`tau` is 0; accepted with weighting='edm-reference' is tau above 0.")
            return cls(tuple(sigmas), tuple(edm_lambda(sigmas) * reference_density(s) * ds))
        on_posterior_means = (
            edm_lambda(s) * reference_density(s) * sigmas**2 * (sigmas**2 - tau**2) / (4 * ds * (s**2 - tau**2))
        )
        return cls(tuple(sigmas), tuple(on_posterior_means * ((sigmas**2 - s**2) / sigmas**2) ** 2))


def _check_tau(tau: float) -> None:
    check_number("tau", tau, "a noise level of at least 0 (model units)")
    if not 0 <= tau < math.inf:
        raise ValueError(f"`tau` is {tau}; accepted is a finite noise level of at least 0 (model units).")


def _density(
    weighting: str, sigmas: np.ndarray, widths: np.ndarray, p_mean: float = P_MEAN, p_std: float = P_STD
) -> np.ndarray:
    """Weights of levels that stand for intervals of these widths (`uniform`: the same for each level)."""
    check_kind("weighting", weighting, str)
    if weighting == "elbo":
        return widths / sigmas**3
    if weighting == "edm":
        return widths * edm_lambda(sigmas) * log_normal_density(sigmas, p_mean, p_std)
    if weighting == "edm-reference":
        return widths * edm_lambda(sigmas) * reference_density(sigmas, p_mean, p_std)
    if weighting == "uniform":
        return np.full_like(sigmas, 1 / len(sigmas))
    raise ValueError(f"`weighting` is {weighting!r}; accepted are {WEIGHTINGS}.")
