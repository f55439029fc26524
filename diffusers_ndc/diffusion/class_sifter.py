"""The class sifter: candidates for the class of a noisy copy, from the features of its pass without a class.

A noisy copy passes once through the network without a class. A linear map of that pass's features (`features`) gives
each class a score, and only classes with a score near the best one are evaluated. The cost of a copy then hardly
depends on the number of classes.

Certificates stay sound: the candidates depend on the noisy copy alone, by a map that was fixed beforehand, so that the
map is part of the base classifier. A bad map makes that classifier wrong more often, never a certificate false.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..common.checks import check_integer, check_kind, check_number, check_sigma
from .denoiser import Denoiser
from .features import WHOLE, check_blocks, check_cells
from .noise_levels import NoiseLevels
from .trained_levels import SAME_SIGMA


class FeatureSift(nn.Module):
    """The map from features to scores of the classes for one smoothing noise and method, and its rule.

    Scores are log-probabilities of the classes. A class is a candidate if its score is within `gap` of the best one,
    and `min_classes` are always kept. The parameters are set by `fit_sift`, or loaded; they stay in float32.

    Args:
        smoothing_sigma: Noise of the images that it was fitted for, pixel units; 0 for clean images.
        method: Likelihood that it was fitted for.
        num_classes: Number of classes K.
        num_features: Number of features D.
        blocks: Names of the network's blocks that the features are of.
        noise: Noise level of the pass, model units. An image with less noise is brought to it.
        gap: Largest distance of a candidate's score from the best one, in nats.
        min_classes: Smallest number of candidates.
        loss_weight: Weight of minus the score in a class's loss. 0: the likelihood alone decides between the
            candidates. Above 0 the scores are a first level of the loss ("level 0"), and the decision is partly
            discriminative.
        expected_classes: Mean number of candidates of a noisy copy; batches are planned by it.
        level_zero: `loss_weight` and `levels` (as `NoiseLevels.to_dict`) for scores that count in the loss, as fitted
            together, and the `gap` for them (default: the same); see `with_scores`. `None` if there are none.
        dtype: Name of the dtype that the network computed in when this was fitted.
        cells: Rows and columns of the grid whose cells the features are of.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range.
    """

    mean: nn.Parameter
    scale: nn.Parameter
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        smoothing_sigma: float,
        method: str,
        num_classes: int,
        num_features: int,
        blocks: Sequence[str],
        noise: float,
        gap: float,
        min_classes: int = 2,
        loss_weight: float = 0.0,
        expected_classes: float | None = None,
        level_zero: dict | None = None,
        dtype: str = "float32",
        cells: Sequence[int] = WHOLE,
    ):
        super().__init__()
        smoothing_sigma = check_sigma(smoothing_sigma)
        check_kind("method", method, str)
        check_kind("dtype", dtype, str)
        check_integer("num_classes", num_classes, 1, 10**9)
        check_integer("num_features", num_features, 1, 10**9)
        check_integer("min_classes", min_classes, 1, 10**9)
        noise = _check_at_least_0("noise", noise)
        gap = _check_at_least_0("gap", gap)
        loss_weight = _check_at_least_0("loss_weight", loss_weight)
        if isinstance(blocks, str) or not blocks or not all(isinstance(block, str) for block in blocks):
            raise ValueError(f"`blocks` must be one or more names of blocks, got {blocks!r}.")
        check_cells(cells)
        self.cells = (cells[0], cells[1])
        self.smoothing_sigma, self.method, self.dtype = smoothing_sigma, method, dtype
        self.num_classes, self.blocks, self.noise = num_classes, tuple(blocks), noise
        self.gap, self.min_classes, self.loss_weight = gap, min_classes, loss_weight
        if expected_classes is None:
            expected_classes = float(num_classes)
        self.expected_classes = check_number("expected_classes", expected_classes, "a mean number of candidates")
        self.level_zero = level_zero
        if level_zero is not None:
            _check_level_zero(level_zero)
        shapes = {
            "mean": (num_features,),
            "scale": (num_features,),
            "weight": (num_classes, num_features),
            "bias": (num_classes,),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))

    def _apply(self, fn, recurse=True):
        # Follows the pipeline to its device, not to its dtype: candidates would change.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    @property
    def config(self) -> dict:
        """The arguments, as plain values."""
        return {
            **({} if self.cells == WHOLE else {"cells": list(self.cells)}),  # hashes of older sifters stay valid
            "smoothing_sigma": self.smoothing_sigma,
            "method": self.method,
            "num_classes": self.num_classes,
            "num_features": len(self.mean),
            "blocks": list(self.blocks),
            "noise": self.noise,
            "gap": self.gap,
            "min_classes": self.min_classes,
            "loss_weight": self.loss_weight,
            "expected_classes": self.expected_classes,
            "level_zero": self.level_zero,
            "dtype": self.dtype,
        }

    def with_scores(self) -> tuple["FeatureSift", NoiseLevels]:
        """The same map with scores that count in the loss as a first level, and the levels that come after it.

        Where the scores leave one candidate they decide alone.

        Raises:
            ValueError: No weight was fitted for the scores.
        """
        if self.level_zero is None:
            raise ValueError("`sift` must be 'candidates' with a sifter whose scores have no weight, got 'scores'.")
        levels = NoiseLevels.from_dict(self.level_zero["levels"])
        rule = {name: value for name, value in self.level_zero.items() if name != "levels"}
        return self.with_rule(min_classes=1, level_zero=None, **rule), levels

    def with_rule(self, **changes: float | dict | None) -> "FeatureSift":
        """The same map with another `gap`, `min_classes`, `loss_weight`, `expected_classes` or `level_zero`.

        Args:
            changes: The new values, by name.

        Raises:
            TypeError, ValueError: A value is not as the class describes it.
        """
        changed = FeatureSift(**{**self.config, **changes}).to(self.mean.device)
        changed.load_state_dict(self.state_dict())
        return changed.eval()

    @cached_property
    def settings(self) -> dict:
        """What a record states: the rule, and a hash of it with all parameters (computed once: they may be many)."""
        rule = {name: value for name, value in self.config.items() if name not in ("expected_classes", "level_zero")}
        digest = hashlib.sha256(repr(sorted(rule.items())).encode())
        for parameter in (self.mean, self.scale, self.weight, self.bias):
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return {
            "gap": self.gap,
            "min_classes": self.min_classes,
            "loss_weight": self.loss_weight,
            "hash": digest.hexdigest()[:32],
        }

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores of the classes: log-probabilities, shape `(N, K)`, for features of shape `(N, D)`."""
        features = features.to(self.mean.device)
        with torch.autocast(features.device.type, enabled=False):  # it would round the scores
            normal = (features - self.mean) / self.scale
            scores = nn.functional.linear(normal, self.weight.to(normal.dtype), self.bias.to(normal.dtype))
            return scores.log_softmax(1)

    def candidates(self, scores: torch.Tensor) -> torch.Tensor:
        """Which classes are candidates, shape `(N, K)`, for scores of that shape."""
        near = scores >= scores.amax(dim=1, keepdim=True) - self.gap
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return near | (rank < self.min_classes)


def _check_at_least_0(name: str, value: float) -> float:
    expected = "a finite number of at least 0"
    value = check_number(name, value, expected)
    if not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be {expected}, got {value}.")
    return value


def _check_level_zero(level_zero: dict) -> None:
    """Raise a `ValueError` unless this is a weight of the scores, with levels, and perhaps a gap."""
    expected = "a dictionary of loss_weight, levels and perhaps gap, or None"
    if not isinstance(level_zero, dict) or set(level_zero) - {"gap"} != {"loss_weight", "levels"}:
        raise ValueError(f"`level_zero` must be {expected}, got {level_zero!r}.")
    NoiseLevels.from_dict(level_zero["levels"])
    for name in level_zero.keys() - {"levels"}:
        _check_at_least_0(name, level_zero[name])


def check_sift(sift: FeatureSift, sigma: float, method: str, denoiser: Denoiser) -> None:
    """Raise unless a sift is for this noise (pixel units), method and model.

    Raises:
        TypeError: `sift` is of another kind.
        ValueError: It was fitted for something else.
    """
    check_kind("sift", sift, FeatureSift)
    if not math.isclose(sift.smoothing_sigma, sigma, rel_tol=SAME_SIGMA) or sift.method != method:
        raise ValueError(
            f"`sift` must be fitted for sigma={sigma} and method={method!r}, got one fitted for "
            f"sigma={sift.smoothing_sigma} and method={sift.method!r}."
        )
    if sift.num_classes != denoiser.num_classes:
        raise ValueError(f"`sift` must have {denoiser.num_classes} classes, got one with {sift.num_classes}.")
    check_blocks(denoiser.unconditional_network, sift.blocks)


class ClassSifter(ModelMixin, ConfigMixin):
    """The component `sifter` of a pipeline: one `FeatureSift` for each smoothing noise and method it was fitted for.

    It is saved in the folder `sifter/` of the pipeline, with the parameters as safetensors.

    Args:
        sifts: Arguments of each `FeatureSift`, as its `config` returns them.

    Raises:
        TypeError, ValueError: An entry is not as described, or two are for the same noise and method.

    Example:
        >>> pipe.calibrate(images, labels, sigma=0.25)  # doctest: +SKIP
        >>> pipe.sifter.find(0.25, "apndc").gap  # doctest: +SKIP
        7.4
    """

    @register_to_config
    def __init__(self, sifts: Sequence[dict] = ()):
        super().__init__()
        self.maps = nn.ModuleList(FeatureSift(**arguments) for arguments in sifts)
        keys = [(sift.smoothing_sigma, sift.method) for sift in self.all_sifts()]
        if len(set(keys)) < len(keys):
            raise ValueError(f"`sifts` must have one entry for each noise and method, got {keys}.")

    @classmethod
    def from_pretrained(cls, *args: Any, dtype: Any = None, torch_dtype: Any = None, **kwargs: Any) -> "ClassSifter":
        """As `ModelMixin.from_pretrained`, but always in float32: in a lower precision candidates would change."""
        return super().from_pretrained(*args, **kwargs)

    def all_sifts(self) -> list[FeatureSift]:
        """All sifts."""
        return [sift for sift in self.maps if isinstance(sift, FeatureSift)]

    def find(self, sigma: float, method: str | None = None) -> FeatureSift | None:
        """The sift for a smoothing noise (pixel units) and method, or `None`; without a method, the first for it."""
        for sift in self.all_sifts():
            if math.isclose(sift.smoothing_sigma, sigma, rel_tol=SAME_SIGMA) and method in (None, sift.method):
                return sift
        return None

    def without(self, sigma: float, method: str) -> "ClassSifter":
        """This sifter without the sift for a smoothing noise (pixel units) and method, if it has one."""
        found = self.find(sigma, method)
        return type(self).of([sift for sift in self.all_sifts() if sift is not found])

    @classmethod
    def of(cls, sifts: Sequence[FeatureSift]) -> "ClassSifter":
        """A sifter of these sifts; of two for the same noise and method the later one.

        Args:
            sifts: The sifts.
        """
        latest = {(sift.smoothing_sigma, sift.method): sift for sift in sifts}
        sifter = cls([sift.config for sift in latest.values()])
        sifter.maps = nn.ModuleList(latest.values())
        return sifter.eval()

    def with_sift(self, sift: FeatureSift) -> "ClassSifter":
        """This sifter with one more sift, which replaces one for the same noise and method."""
        return type(self).of([*self.all_sifts(), sift])


def check_sifter(sifter: ClassSifter, denoiser: Denoiser) -> None:
    """Raise unless a sifter fits a model.

    Raises:
        TypeError: `sifter` is of another kind.
        ValueError: It has another number of classes, or names blocks that the network does not have.
    """
    check_kind("sifter", sifter, ClassSifter)
    for sift in sifter.all_sifts():
        check_sift(sift, sift.smoothing_sigma, sift.method, denoiser)
