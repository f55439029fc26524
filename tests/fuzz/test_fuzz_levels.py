"""Noise levels from hostile values: what is valid is accepted, and can be used and saved; all else is refused."""

import json
import math

import numpy as np
import pytest
from helpers.acceptable import (
    MAX_LEVELS,
    NOISE,
    SIGMA,
    instance,
    integer,
    number,
    numbers_of,
    one_of,
    optional,
    sequence,
)
from helpers.fuzzing import HUGE, REFUSED, Subject, attempt, cases, is_result
from helpers.models import LEVELS
from hypothesis import example, given

from diffusers_ndc import NoiseLevels, SiftingRule


WEIGHTINGS = ["elbo", "edm", "edm-reference", "uniform"]


def method_name(value) -> bool | None:
    """One of the methods; what becomes of other names is left open."""
    if isinstance(value, str):
        return True if value in ("dc", "apndc", "epndc", "apndc-clean") else None
    return False


def cap_of_losses(value) -> bool | None:
    """Numbers above 0 and up to 4; those of numpy are left open."""
    accepted = number(0, 4, open_low=True, closed_high=True)(value)
    return None if accepted and isinstance(value, np.number) else accepted


def test_levels_with_a_cap_of_numpy_can_be_saved():
    json.dumps(NoiseLevels((1.0,), (1.0,), cap=np.float32(0.25)).to_dict())


def noise_levels(sigmas, weights, thresholds, relative, max_classes, **others):
    """Levels with a sifting rule."""
    return NoiseLevels(sigmas, weights, SiftingRule(thresholds, relative, max_classes), **others)


def lengths_fit(arguments) -> bool:
    """Whether there is one weight per level, and one threshold per level but the last."""
    sigmas, weights, thresholds = (len(numbers_of(arguments[name])) for name in ("sigmas", "weights", "thresholds"))
    return sigmas == weights == thresholds + 1


LEVELS_OF = Subject(
    noise_levels,
    {
        "sigmas": (1.0, 2.0),
        "weights": (1.0, 0.5),
        "thresholds": (3.0,),
        "relative": False,
        "max_classes": 2,
        "smoothing_sigma": 0.25,
        "method": "apndc",
        "cap": None,
    },
    {
        "sigmas": sequence(lambda values: bool(values) and all(0 < value < math.inf for value in values)),
        "weights": sequence(lambda values: all(0 <= value < math.inf for value in values) and any(values)),
        "thresholds": sequence(lambda values: all(0 <= value < math.inf for value in values)),
        "relative": instance(bool),
        "max_classes": optional(integer(1, MAX_LEVELS)),
        "smoothing_sigma": optional(SIGMA),
        "method": optional(method_name),
        "cap": optional(cap_of_losses),
    },
    lengths_fit,
    {"cap": [4.0, 4.1], "weights": [(0.0, 1.0), (0.0, 0.0)], "thresholds": [(0.0,), (-1.0,)]},
)
FROM_DICT = Subject(
    lambda **data: NoiseLevels.from_dict(data),
    LEVELS_OF.valid,
    # a rule without thresholds is none: only together with other values that mean "no rule"
    {**LEVELS_OF.rules, "thresholds": lambda value: None if value is None else LEVELS_OF.rules["thresholds"](value)},
    lengths_fit,
    LEVELS_OF.extra,
)
SIFTED = Subject(
    LEVELS.sifted,
    {"threshold": 3.0, "max_classes": None, "relative": False},
    {"threshold": number(0), "max_classes": LEVELS_OF.rules["max_classes"], "relative": instance(bool)},
)
LOOSENED = Subject(
    LEVELS.sifted(3.0).loosened,
    {"factor": 2.0},
    {"factor": lambda value: None if value is HUGE else NOISE(value)},  # 3 * HUGE is infinite
)
REPEATED = Subject(LEVELS.repeat, {"times": 2}, {"times": integer(1, MAX_LEVELS // 2)})


def log_grid_fits(arguments) -> bool | None:
    """Whether the ends ascend; weights of extreme levels overflow."""
    low, high = arguments["sigma_min"], arguments["sigma_max"]
    if not low < high:
        return False
    return True if 1e-30 < low and high < 1e30 else None


LOG_GRID = Subject(
    NoiseLevels.log_grid,
    {"sigma_min": 0.5, "sigma_max": 5.0, "num_levels": 12, "weighting": "elbo"},
    {
        "sigma_min": NOISE,
        "sigma_max": NOISE,
        "num_levels": integer(2, MAX_LEVELS),
        "weighting": one_of(*WEIGHTINGS),
    },
    log_grid_fits,
    {"weighting": WEIGHTINGS},
)


def quantile_grid_fits(arguments) -> bool | None:
    """Whether the distribution of levels has mass above `tau` and is not so narrow that its density overflows."""
    tau, p_mean, p_std = (float(arguments[name]) for name in ("tau", "p_mean", "p_std"))
    if p_std < 1e-3 or (tau > 0 and (math.log(tau) - p_mean) / p_std > 5):
        return None
    return True


QUANTILE_GRID = Subject(
    NoiseLevels.quantile_grid,
    {"tau": 0.5, "num_levels": 3, "weighting": "elbo", "p_mean": -1.2, "p_std": 1.2},
    {
        "tau": SIGMA,
        "num_levels": integer(1, MAX_LEVELS),
        "weighting": one_of(*WEIGHTINGS),
        "p_mean": number(-100, 100, closed_high=True),
        "p_std": number(0, 100, open_low=True, closed_high=True),
    },
    quantile_grid_fits,
    {"weighting": WEIGHTINGS},
)


def reference_grid_fits(arguments) -> bool | None:
    """Whether the authors' weights exist: not at noise 0, nor on grids too short for apndc or epndc."""
    tau, points = float(arguments["tau"]), arguments["num_points"]
    if arguments["weighting"] != "edm-reference":
        return True
    if arguments["method"] == "epndc":
        return points >= 8
    if tau == 0 or (arguments["method"] == "apndc" and points < 4):
        return False
    return True if tau > 1e-30 else None


REFERENCE_GRID = Subject(
    NoiseLevels.reference_grid,
    {"tau": 0.5, "num_points": 9, "weighting": "edm-reference", "method": "apndc-clean"},
    {
        "tau": number(0, 3),
        "num_points": integer(3, MAX_LEVELS),
        "weighting": one_of(*WEIGHTINGS),
        "method": method_name,
    },
    reference_grid_fits,
    {"weighting": WEIGHTINGS, "method": ["apndc-clean", "apndc"]},
)


def check_levels(levels) -> None:
    """Levels that came to be are ones that a classifier can use, and survive JSON."""
    if is_result(levels):
        assert all(0 < sigma < math.inf for sigma in levels.sigmas)
        assert all(0 <= weight < math.inf for weight in levels.weights) and any(levels.weights)
        assert len(levels.sigmas) == len(levels.weights) <= MAX_LEVELS
        assert NoiseLevels.from_dict(json.loads(json.dumps(levels.to_dict(), allow_nan=False))) == levels


@cases(500)
@given(changes=LEVELS_OF.spoilt(), sifted=SIFTED.spoilt(), loosened=LOOSENED.spoilt(), repeated=REPEATED.spoilt())
@example({"smoothing_sigma": math.nan}, {}, {}, {})
def test_noise_levels(changes, sifted, loosened, repeated):
    levels = LEVELS_OF.run(changes)
    again = FROM_DICT.run(changes)
    if changes.get("thresholds", ()) is not None:
        assert (levels is REFUSED) == (again is REFUSED)
    for made in (levels, again, SIFTED.run(sifted), LOOSENED.run(loosened), REPEATED.run(repeated)):
        check_levels(made)


@pytest.mark.parametrize(
    "missing, refused", [({"max_classes": None}, False), ({}, True), ({"max_classes": None, "relative": True}, True)]
)
def test_saved_levels_without_thresholds_have_no_rule(missing, refused):
    data = {**LEVELS_OF.valid, "thresholds": None, **missing}
    levels = attempt(lambda: NoiseLevels.from_dict(data))
    assert (levels is REFUSED) == refused
    assert refused or levels.sifting is None


@cases(500)
@given(log=LOG_GRID.spoilt(), quantile=QUANTILE_GRID.spoilt(), reference=REFERENCE_GRID.spoilt())
@example({}, {"p_std": HUGE}, {"weighting": np.array([0.25, 0.5])})
def test_grids_of_noise_levels(log, quantile, reference):
    check_levels(LOG_GRID.run(log))
    check_levels(QUANTILE_GRID.run(quantile))
    check_levels(REFERENCE_GRID.run(reference))


SUBJECTS = {
    "levels": LEVELS_OF,
    "from_dict": FROM_DICT,
    "sifted": SIFTED,
    "loosened": LOOSENED,
    "repeat": REPEATED,
    "log_grid": LOG_GRID,
    "quantile_grid": QUANTILE_GRID,
    "reference_grid": REFERENCE_GRID,
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_every_acceptable_value_of_every_argument_is_accepted(subject):
    substitutions = subject.single_substitutions()
    assert len(substitutions) > len(subject.rules)
    for changes in substitutions:
        check_levels(subject.run(changes))


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_every_other_value_of_every_argument_is_refused(subject):
    for changes in subject.wrong_substitutions():
        subject.run(changes)
