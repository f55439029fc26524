"""The noise levels at which a class is scored, their weights, and the rule that sifts the classes.

A class is scored by `L_y = sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2`, where the norm sums over pixels. Noise
levels are in model units (images in [-1, 1]; twice the pixel units), like `P_mean`, `P_std` and the noise levels of
diffusion papers.
"""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import stats

from ..common.checks import check_integer, check_kind, check_number, plain_numbers
from .sifting_rule import SiftingRule, check_factor
from .weightings import P_MEAN, P_STD, interval_weights, log_normal_density, reference_epndc_weights, reference_weights


MAX_LEVELS = 100_000
"""Largest number of noise levels in a grid."""


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels, the weight of the squared error at each one, and optionally a rule that sifts the classes.

    Args:
        sigmas: Noise levels in model units, positive. At a level that is listed twice, a class is scored twice, with
            fresh noise.
        weights: One weight per level, at least 0 and not all 0.
        sifting: Rule that drops classes between levels. `None`: every class is scored at every level.
        smoothing_sigma: Noise of the images, in pixel units, for which the levels were calibrated. A classifier for
            another noise raises a `ValueError`. `None`: any noise below the levels.
        method: Likelihood for which the levels were calibrated, checked likewise. `None`: any.
        cap: If given, denoised images are clipped to [-1, 1], and the mean squared error of a class (per value, model
            units) counts at most this much at each level. At most 4. The classifier then has bounded losses, as
            `LipschitzCertificate` requires.

    Raises:
        TypeError: An argument has the wrong type.
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
            raise ValueError(
                f"`weights` must be one number per level ({len(self.sigmas)} levels), got {len(self.weights)}."
            )
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise ValueError(f"`weights` must be finite numbers of at least 0, not all 0, got {self.weights}.")
        if self.sifting is not None and len(self.sifting.thresholds) != len(self.sigmas) - 1:
            raise ValueError(
                f"`sifting` must have {len(self.sigmas) - 1} thresholds, one per level but the last, got "
                f"{len(self.sifting.thresholds)}."
            )
        if self.smoothing_sigma is not None:
            expected = "a finite noise level of at least 0 (pixel units) or None"
            smoothing_sigma = check_number("smoothing_sigma", self.smoothing_sigma, expected)
            if not 0 <= smoothing_sigma < math.inf:
                raise ValueError(f"`smoothing_sigma` must be {expected}, got {smoothing_sigma}.")
            object.__setattr__(self, "smoothing_sigma", smoothing_sigma)
        if self.cap is not None:
            expected = "a mean squared error above 0 and up to 4, or None"
            cap = check_number("cap", self.cap, expected)
            if not 0 < cap <= 4:
                raise ValueError(f"`cap` must be {expected}, got {cap}.")
            object.__setattr__(self, "cap", cap)

    def __len__(self) -> int:
        return len(self.sigmas)

    def to_dict(self) -> dict:
        """The levels as plain values, for JSON. The fields of the sifting rule stand beside the others."""
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
        """Restore levels from the dictionary that `to_dict` returned.

        Args:
            data: The dictionary. Only `sigmas` and `weights` are required.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: `data` is not such a dictionary, or a value is out of range.
        """
        rule_names = {field.name for field in fields(SiftingRule)}
        names = ({field.name for field in fields(cls)} | rule_names) - {"sifting"}
        if not isinstance(data, dict) or not {"sigmas", "weights"} <= set(data) <= names:
            raise ValueError(
                f"`data` must be a dictionary with sigmas, weights and optionally others of {sorted(names)}, got "
                f"{data!r}."
            )
        levels = {name: value for name, value in data.items() if name not in rule_names}
        if data.get("thresholds") is not None:
            rule = {name: value for name, value in data.items() if name in rule_names}
            return cls(**levels, sifting=SiftingRule(**rule))
        if data.get("relative", False) is not False or data.get("max_classes") is not None:
            raise ValueError(f"`data` must have thresholds beside relative and max_classes, got {data!r}.")
        return cls(**levels)

    def sifted(self, threshold: float, max_classes: int | None = None, relative: bool = False) -> "NoiseLevels":
        """The same levels with the sifting rule of Chen et al.: one threshold for all levels, at most `max_classes`.

        Args:
            threshold: A class is dropped if its loss so far exceeds the smallest loss by more than this. In units of
                the weighted loss, at least 0.
            max_classes: Largest number of classes that are kept. `None`: no limit.
            relative: Whether the threshold is a fraction of the smallest loss so far.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A value is out of range.

        Example:
            >>> NoiseLevels((1.0, 2.0, 3.0), (1, 1, 1)).sifted(3.0).sifting.thresholds
            (3.0, 3.0)
        """
        check_number("threshold", threshold, "a finite number of at least 0")
        return replace(self, sifting=SiftingRule((threshold,) * (len(self) - 1), relative, max_classes))

    def loosened(self, factor: float) -> "NoiseLevels":
        """The same levels with wider thresholds: fewer noisy copies lose their true class, and each one costs more.

        One noisy copy in a thousand that loses its class hardly matters for a radius that most copies prove anyway,
        but it shortens the full radius of a certificate of a thousand copies by several per cent.

        Args:
            factor: Every threshold is multiplied by this, a finite number above 0. Levels without a sifting rule are
                returned unchanged.

        Raises:
            TypeError: `factor` is not a number.
            ValueError: `factor` is not finite and above 0.
        """
        factor = check_factor(factor)
        if self.sifting is None:
            return self
        return replace(self, sifting=self.sifting.loosened(factor))

    def repeat(self, times: int) -> "NoiseLevels":
        """Every level `times` times with fresh noise, at the same total weight: less variance, more evaluations.

        The result has no sifting rule: all classes are scored at all levels.

        Args:
            times: How often each level is repeated, at least 1.

        Raises:
            ValueError: `times` is not an integer, is below 1, or gives more than `MAX_LEVELS` levels.

        Example:
            >>> NoiseLevels((1.0, 2.0), (0.5, 0.25)).repeat(2).weights
            (0.25, 0.125, 0.25, 0.125)
        """
        check_integer("times", times, 1, MAX_LEVELS // len(self))
        weights = tuple(weight / times for weight in self.weights) * times
        return replace(self, sigmas=self.sigmas * times, weights=weights, sifting=None)

    @classmethod
    def log_grid(
        cls, sigma_min: float, sigma_max: float, num_levels: int = 12, weighting: str = "elbo"
    ) -> "NoiseLevels":
        """Levels evenly spaced in `log sigma`, both ends included. Under `elbo`, a level's weight is as `1 / sigma^2`.

        Args:
            sigma_min: Smallest noise level, model units, above 0.
            sigma_max: Largest noise level, model units, above `sigma_min`.
            num_levels: Number of levels, at least 2.
            weighting: `elbo`, `edm`, `edm-reference` or `uniform`.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A value is out of range, or `weighting` is unknown.
        """
        check_integer("num_levels", num_levels, 2, MAX_LEVELS)
        sigma_min = check_number("sigma_min", sigma_min, "a noise level above 0 (model units)")
        sigma_max = check_number("sigma_max", sigma_max, "a noise level above 0 (model units)")
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                "`sigma_min` and `sigma_max` must be finite noise levels (model units) with 0 < sigma_min < "
                f"sigma_max, got {sigma_min} and {sigma_max}."
            )
        sigmas = np.geomspace(sigma_min, sigma_max, num_levels)
        step = math.log(sigma_max / sigma_min) / (num_levels - 1)
        return cls(tuple(sigmas), tuple(interval_weights(weighting, sigmas, widths=sigmas * step)))

    @classmethod
    def quantile_grid(
        cls, tau: float, num_levels: int, weighting: str = "elbo", p_mean: float = P_MEAN, p_std: float = P_STD
    ) -> "NoiseLevels":
        """Mid-quantiles of EDM's log-normal training distribution, truncated to `sigma > tau`.

        Args:
            tau: Noise of the image, model units; 0 for a clean image.
            num_levels: Number of levels, at least 1.
            weighting: `elbo`, `edm`, `edm-reference` or `uniform`.
            p_mean: Mean of `log sigma` in training, from -100 to 100.
            p_std: Standard deviation of `log sigma` in training, above 0 and up to 100.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A value is out of range, or `weighting` is unknown.
        """
        tau = _check_tau(tau)
        check_integer("num_levels", num_levels, 1, MAX_LEVELS)
        p_mean = check_number("p_mean", p_mean, "a number from -100 to 100")
        p_std = check_number("p_std", p_std, "a number above 0 and up to 100")
        if not -100 <= p_mean <= 100:
            raise ValueError(f"`p_mean` must be a number from -100 to 100, got {p_mean}.")
        if not 0 < p_std <= 100:
            raise ValueError(f"`p_std` must be a number above 0 and up to 100, got {p_std}.")
        below_tau = stats.norm.cdf(math.log(tau), p_mean, p_std) if tau > 0 else 0.0
        upper_tail = (1 - below_tau) * (1 - (np.arange(num_levels) + 0.5) / num_levels)
        sigmas = np.exp(stats.norm.isf(upper_tail, p_mean, p_std))
        widths = (1 - below_tau) / (num_levels * log_normal_density(sigmas, p_mean, p_std))
        return cls(tuple(sigmas), tuple(interval_weights(weighting, sigmas, widths, p_mean, p_std)))

    @classmethod
    def reference_grid(
        cls, tau: float, num_points: int = 126, weighting: str = "edm-reference", method: str = "apndc-clean"
    ) -> "NoiseLevels":
        """The grid of the NDC authors' program: `num_points` evenly spaced points on [tau, 3], without both ends.

        `edm-reference` also reproduces the terms of that program on the points `s_0 = tau < s_1 < ... < 3`, of which
        it never uses the last. Its (misprinted) density is read at an earlier point than the level:

        - `dc` and `apndc-clean`: level `s_{i+1}`, density at `s_i`, for i = 0, 1, ... (`reference_weights`).
        - `apndc`: level `s_{i+2}`, density at `s_i`, for i = 0, 1, ... (`reference_weights`). There is no term at
          `s_1`, so there is one level fewer.
        - `epndc`: level `s_{i+1}`, density at `s_i`, for i = 5, 6, ... (`reference_epndc_weights`). The program leaves
          out the first five.

        The program's losses are means over pixels, the losses here are sums: a factor C*H*W common to all classes.

        Args:
            tau: Noise of the image, model units, below 3.
            num_points: Number of grid points, at least 3 (with `edm-reference`: 4 for `apndc`, 8 for `epndc`).
            weighting: `elbo`, `edm`, `edm-reference` or `uniform`.
            method: Likelihood that the levels are for. Only `edm-reference` depends on it.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A value is out of range, or `weighting` is unknown.
        """
        tau = _check_tau(tau)
        check_kind("weighting", weighting, str)
        check_kind("method", method, str)
        skipped, distance = 0, 1  # pairs left out; points from the density to its level
        if weighting == "edm-reference" and method == "epndc":
            skipped = 5
        elif weighting == "edm-reference" and method == "apndc":
            distance = 2
        check_integer("num_points", num_points, skipped + distance + 2, MAX_LEVELS)
        if not tau < 3:
            raise ValueError(f"`tau` must be a noise level below 3 (model units), got {tau}.")
        grid = np.linspace(tau, 3.0, num_points)[:-1]
        ds = (3.0 - tau) / (num_points - 1)
        s, s_next = grid[skipped:-distance], grid[skipped + distance :]
        if weighting != "edm-reference":
            weights = interval_weights(weighting, s_next, widths=np.full_like(s_next, ds))
        elif method == "epndc":
            weights = reference_epndc_weights(s, s_next, ds, tau)
        elif tau == 0:
            raise ValueError("`tau` must be above 0 with weighting='edm-reference', got 0.")
        else:
            weights = reference_weights(s, s_next, ds)
        return cls(tuple(s_next), tuple(weights))


def _check_tau(tau: float) -> float:
    expected = "a finite noise level of at least 0 (model units)"
    tau = check_number("tau", tau, expected)
    if not 0 <= tau < math.inf:
        raise ValueError(f"`tau` must be {expected}, got {tau}.")
    return tau
