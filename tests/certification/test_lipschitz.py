"""The constant, and the certificate that rests on it: mathematics and simulation, without networks."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from diffusers_ndc import LipschitzCertificate, NoiseLevels
from diffusers_ndc.certification import lipschitz
from diffusers_ndc.certification.lipschitz import CappedLevels, lipschitz_constant


LEVELS = NoiseLevels((0.7, 1.5), (0.4, 0.6), cap=4.0)
SETTINGS = {"method": "dc", "levels": LEVELS.to_dict()}


def constant(levels, pixels):
    """`lipschitz_constant` of noise levels with a cap."""
    return lipschitz_constant(levels.sigmas, levels.weights, levels.cap, pixels)


def margin(networks, x, levels, points=141):
    """`L_b - L_a` of a two-pixel image, the expectation by quadrature."""
    grid = np.linspace(-5, 5, points)
    eps = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    density = np.exp(-(eps**2).sum(1) / 2)
    density /= density.sum()
    total = 0.0
    for sigma, weight in zip(levels.sigmas, levels.weights, strict=True):
        losses = [((h(x + sigma * eps) - x) ** 2).mean(1).clip(max=levels.cap) for h in networks]
        total += weight * (density * (losses[1] - losses[0])).sum()
    return total


def slope(networks, x, levels, step=1e-4):
    """Norm of the margin's gradient, by central differences."""
    parts = [margin(networks, x + d, levels) - margin(networks, x - d, levels) for d in step * np.eye(2)]
    return np.linalg.norm(parts) / (2 * step)


def random_network(rng):
    """Two pixels to two, in [-1, 1]; steep or flat."""
    scale = np.exp(rng.uniform(-1, 2))
    a, b, c = rng.normal(size=(2, 8)) * scale, rng.normal(size=8) * scale, rng.normal(size=(8, 2))
    return lambda z: np.tanh(np.tanh(z @ a + b) @ c)


@pytest.mark.parametrize("cap", [4.0, 0.6, 0.1])
def test_no_margin_changes_faster_than_the_constant(cap):
    rng, levels = np.random.default_rng(0), replace(LEVELS, cap=cap)
    bound = constant(levels, 2)
    for _ in range(12):
        networks, x = [random_network(rng), random_network(rng)], rng.uniform(-1, 1, 2)
        assert slope(networks, x, levels) <= bound * (1 + 1e-6)


def test_the_constant_cannot_be_smaller():
    """Two networks that disagree as much as they can, on both sides of an edge through the image, attain the first
    part of it, which is all of it for images of many values."""
    levels, x = NoiseLevels((1.0,), (1.0,), cap=4.0), np.array([1.0, 1.0])
    edge = np.array([1.0, 1.0]) / math.sqrt(2)

    def network(sign):
        return lambda z: sign * np.tanh(8 * ((z - x) @ edge))[:, None] * np.ones(2)

    networks = [network(1), network(-1)]
    assert 0.98 < slope(networks, x, levels) / constant(levels, 10**12) < 1


def test_the_constant_is_the_paper_s_for_losses_that_are_clipped_only():
    expected = sum(
        w * (4 * math.sqrt(2 / math.pi) / s + 4 / math.sqrt(784)) for s, w in zip((0.7, 1.5), (0.4, 0.6), strict=True)
    )
    assert constant(LEVELS, 784) == pytest.approx(expected, rel=1e-12)
    assert constant(replace(LEVELS, cap=0.3), 784) < expected / 5


def simulated(rng, means, n, alpha, runs, levels=LEVELS):
    """Certificates of simulated margins: two-point scores with these means, the hardest kind for a bound."""
    largest = levels.cap * sum(levels.weights)
    for _ in range(runs):
        hits = rng.binomial(n, means)
        yield LipschitzCertificate.from_scores(
            alpha=alpha,
            n0=1,
            n=n,
            selection_losses={0: 0.1, **{label: 0.2 * largest for label in range(1, len(means) + 1)}},
            score_sums={label: float(hit) for label, hit in enumerate(hits, start=1)},
            score_squares={label: float(hit) for label, hit in enumerate(hits, start=1)},
            pixels=784,
            num_classes=len(means) + 1,
            base_classifier={"method": "dc", "levels": levels.to_dict()},
        )


@pytest.mark.parametrize("means, n", [((0.5, 0.5, 0.5), 40), ((0.9, 0.52, 0.52), 300), ((0.49, 0.95), 100)])
def test_radii_are_false_at_most_at_their_rate(means, n):
    """10,000 simulated runs. The margin of the nearest rival gives the largest radius that is true."""
    alpha, runs = 0.2, 10_000
    true = (2 * min(means) - 1) * 4 / constant(LEVELS, 784) / 2
    found = list(simulated(np.random.default_rng(1), means, n, alpha, runs))
    assert sum(c.radius > max(true, 0) for c in found) <= alpha * runs
    assert all(c.verify() for c in found[:100])


def test_a_bound_without_a_margin_of_error_would_be_noticed(monkeypatch):
    monkeypatch.setattr(lipschitz, "empirical_bernstein_lower", lambda total, squares, n, alpha: total / n)
    found = list(simulated(np.random.default_rng(1), (0.5,), 40, 0.2, 1000))
    assert sum(c.radius > 0 for c in found) > 300


def test_many_draws_prove_most_of_the_margin():
    (found,) = simulated(np.random.default_rng(0), (0.9, 0.8), 100_000, 0.001, 1)
    true = 0.6 * 4 / constant(LEVELS, 784) / 2
    assert found.label == 0 and 0.97 * true < found.radius < true
    assert found.margin_lower == pytest.approx(found.radius * 2 * constant(LEVELS, 784))


CHANGES = [
    {"radius": 0.5},
    {"radius": math.nan},
    {"label": 1},
    {"label": None},
    {"alpha": 0.01},
    {"alpha": 0},
    {"n": 100},
    {"n": 90_000.5},
    {"pixels": 3072},
    {"pixels": 0},
    {"score_sums": {1: 9e4}},
    {"score_squares": {1: 1.0, 2: 1.0}},
    {"selection_losses": {0: 0.1}},
    {"num_classes": 4},
    {"num_classes": 10**30},
    {"num_classes": None},
    {"selection_losses": {0: 0.1, 1: 0.05, 2: 0.2}},
    {"selection_losses": {0: 0.1, 1: 0.2, 2: 7.0}},
    {"base_classifier": {**SETTINGS, "method": "apndc"}},
    {"base_classifier": {"method": "dc", "levels": replace(LEVELS, cap=None).to_dict()}},
    {"base_classifier": {"method": "dc", "levels": replace(LEVELS, cap=0.3).to_dict()}},
    {"base_classifier": {}},
]


@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_record_does_not_verify(change):
    (found,) = simulated(np.random.default_rng(0), (0.9, 0.8), 100_000, 0.001, 1)
    assert found.verify() and LipschitzCertificate.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert not replace(found, **change).verify()


ALTERED = [
    *(
        {"sigmas": values}
        for values in ([], [0.0, 1.0], [-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [1.0], ["a", 1])
    ),
    *(
        {"weights": values}
        for values in ([0.0, 0.0], [-1.0, 1.0], [math.inf, 1.0], [math.nan, 1.0], [None, 1.0], "ab")
    ),
    *({"weights": values} for values in ([0, 1], [True, 1.0], [10**400, 1.0], None, {"a": 1, "b": 2}, 3)),
    *({"cap": value} for value in (None, 0.0, -1.0, 4.5, math.nan, math.inf, True, "1", [1.0], 10**400, 4, 1e-300)),
    *({"thresholds": value} for value in ([1.0], [], 3, "a")),
    *({"relative": value} for value in (True, None, 0, "yes")),
    *({"max_classes": value} for value in (1, 0, "a", False)),
    *({"smoothing_sigma": value} for value in (0.0, 0.25, -1.0, math.nan, math.inf, "0.25", True, 10**400)),
    *({"method": value} for value in ("dc", "apndc", 3, ["dc"])),
    *({"unknown": 1}, {3: 1}),
]


@pytest.mark.parametrize("change", ALTERED)
def test_levels_are_read_as_strictly_as_by_the_classifier(change):
    """What `NoiseLevels` refuses, and what has no cap or sifts, is a flaw and never another error."""
    levels = {**LEVELS.to_dict(), **change}
    try:
        read = NoiseLevels.from_dict(levels)
        bounded = read.cap is not None and read.sifting is None
    except (TypeError, ValueError):
        bounded = False
    (certificate,) = simulated(np.random.default_rng(0), (0.9, 0.8), 1000, 0.001, 1)
    altered = replace(certificate, base_classifier={"method": "dc", "levels": levels})
    if bounded:
        assert CappedLevels.from_dict(levels) == CappedLevels(read.sigmas, read.weights, read.cap)
        assert altered.flaw is None or "between 0 and" in altered.flaw or "the scores give" in altered.flaw
    else:
        assert altered.flaw is not None
        with pytest.raises((TypeError, ValueError)):
            CappedLevels.from_dict(levels)


@pytest.mark.parametrize("levels", [None, [], "levels", 3, {}, {"sigmas": [1.0]}, {"weights": [1.0], "cap": 1.0}])
def test_a_record_without_levels_is_flawed(levels):
    (certificate,) = simulated(np.random.default_rng(0), (0.9, 0.8), 1000, 0.001, 1)
    assert "`levels` must" in replace(certificate, base_classifier={"method": "dc", "levels": levels}).flaw


def test_a_rival_that_is_left_out_is_missed():
    (found,) = simulated(np.random.default_rng(0), (0.99, 0.6), 100_000, 0.001, 1)
    nearest = {name: {k: v for k, v in getattr(found, name).items() if k != 2} for name in found.labelled}
    fields = {name: value for name, value in vars(found).items() if name not in ("label", "radius")}
    with pytest.raises(ValueError, match="not of 3 classes"):
        LipschitzCertificate.from_scores(**{**fields, **nearest})


def test_an_abstention_has_no_radius():
    (found,) = simulated(np.random.default_rng(0), (0.5, 0.5), 100, 0.001, 1)
    assert found.abstained and found.radius == 0 and found.verify()
    assert not replace(found, label=0, radius=0.01).verify()


@pytest.mark.parametrize("number_type", [np.float16, np.float32, np.longdouble])
def test_small_types_of_numbers_do_not_make_a_certificate_round(number_type):
    """In half precision the constant may be too small, and the square of a sum overflows."""
    cap, alpha, total = number_type(0.3), number_type(0.001), number_type(900)
    assert lipschitz_constant([number_type(0.7)], [number_type(1)], cap, 64) == lipschitz_constant(
        [float(number_type(0.7))], [1.0], float(cap), 64
    )
    assert CappedLevels.from_dict({**LEVELS.to_dict(), "cap": cap}).cap == float(cap)
    record = {"n0": 10, "n": 1_000, "pixels": 64, "num_classes": 2, "base_classifier": SETTINGS}
    record |= {"selection_losses": {0: 0.1, 1: 0.4}}
    small = LipschitzCertificate.from_scores(**record, alpha=alpha, score_sums={1: total}, score_squares={1: total})
    scores = {"score_sums": {1: 900.0}, "score_squares": {1: 900.0}}
    assert small == LipschitzCertificate.from_scores(**record, alpha=float(alpha), **scores)
    assert json.loads(json.dumps(small.to_dict()))["alpha"] == float(alpha)
    with pytest.raises(ValueError, match="`alpha` must be"):
        LipschitzCertificate.from_scores(**record, alpha=number_type(0), **scores)
