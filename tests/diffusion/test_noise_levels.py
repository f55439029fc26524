import json

import numpy as np
import pytest
import torch
from helpers.paths import FIXTURES
from safetensors.numpy import load_file

from diffusers_ndc import NoiseLevels, SiftingRule
from diffusers_ndc.diffusion.likelihoods import LIKELIHOODS
from diffusers_ndc.diffusion.weightings import WEIGHTINGS, edm_lambda, log_normal_density


# Grids, added noise and weights of the NDC authors' own program, for tau = 0.5 and 1 and for 17 and 33 points.
REFERENCE = load_file(FIXTURES / "reference_levels.safetensors")
RUNS = [(sigma, points) for sigma in (0.25, 0.5) for points in (17, 33)]


@pytest.mark.parametrize("sigma, points", RUNS)
@pytest.mark.parametrize("name, method", [("apndc_ensemble", "apndc-clean"), ("epndc", "epndc")])
def test_reference_grid_and_added_noise(name, method, sigma, points):
    run = f"{name}.s{sigma}_n{points}."
    levels = NoiseLevels.reference_grid(2 * sigma, points, method=method)
    np.testing.assert_allclose(levels.sigmas, REFERENCE[run + "sigma_eval"], rtol=1e-6)

    level = torch.tensor(levels.sigmas)
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    x_i, _ = LIKELIHOODS[method].pair(zero, zero, 2 * sigma, level, one)
    np.testing.assert_allclose(x_i, REFERENCE[run + "noise_std"], rtol=1e-6)


@pytest.mark.parametrize("sigma, points", RUNS)
def test_reference_weights_of_apndc_clean(sigma, points):
    levels = NoiseLevels.reference_grid(2 * sigma, points, "edm-reference", "apndc-clean")
    np.testing.assert_allclose(levels.weights, REFERENCE[f"apndc_ensemble.s{sigma}_n{points}.weights"], rtol=2e-5)


@pytest.mark.parametrize("sigma, points", RUNS)
def test_reference_weights_of_epndc(sigma, points):
    """Theirs weigh the error between posterior means, `(s'^2 - s^2) / s'^2` times that of the denoised image."""
    run = f"epndc.s{sigma}_n{points}."
    s, s_next = (REFERENCE[run + key].astype(np.float64) for key in ("sigma_i", "sigma_eval"))
    levels = NoiseLevels.reference_grid(2 * sigma, points, "edm-reference", "epndc")
    on_posterior_means = np.array(levels.weights) / ((s_next**2 - s**2) / s_next**2) ** 2
    np.testing.assert_allclose(on_posterior_means, REFERENCE[run + "weights"], rtol=2e-5)


def test_reference_weights_of_plain_apndc():
    """Their program reads the density two grid points before the level, and gives the first point after tau no term.

    The five points on [1, 3] are 1, 1.5, 2, 2.5 and 3. The terms are those at 2 and 2.5:
    lambda(2) = (4 + 0.25) / (2 * 0.5)^2 = 4.25 and lambda(2.5) = (6.25 + 0.25) / (2.5 * 0.5)^2 = 4.16;
    p(1) = exp(-(0 + 1.2)^2 / 2 * 1.44) / (1 * 1.2 * sqrt(2 pi)) = exp(-1.0368) / 3.007954 = 0.117883 and
    p(1.5) = exp(-(0.405465 + 1.2)^2 / 2 * 1.44) / (1.5 * 3.007954) = exp(-1.855814) / 4.511930 = 0.034647;
    ds = 0.5.
    """
    levels = NoiseLevels.reference_grid(1.0, 5, "edm-reference", "apndc")
    assert levels.sigmas == (2.0, 2.5)
    np.testing.assert_allclose(levels.weights, (4.25 * 0.117883 * 0.5, 4.16 * 0.034647 * 0.5), rtol=2e-5)

    assert len(NoiseLevels.reference_grid(1.0, 126, "edm-reference", "apndc")) == 123
    assert len(NoiseLevels.reference_grid(1.0, 126, "edm-reference", "apndc-clean")) == 124
    assert NoiseLevels.reference_grid(1.0, 4, "edm-reference", "apndc").sigmas == pytest.approx((7 / 3,))
    assert NoiseLevels.reference_grid(1.0, 5, "edm", "apndc") == NoiseLevels.reference_grid(1.0, 5, "edm", "dc")


def test_elbo_weights_integrate_the_elbo():
    """Each grid's weights integrate d sigma / sigma^3 over the range that its levels stand for."""
    log_grid = NoiseLevels.log_grid(0.5, 5.0, 2_000)
    assert sum(log_grid.weights) == pytest.approx((0.5**-2 - 5.0**-2) / 2, rel=1e-2)
    uniform = NoiseLevels.reference_grid(0.5, 5_000, "elbo")
    assert sum(uniform.weights) == pytest.approx((0.5**-2 - 3.0**-2) / 2, rel=1e-2)
    quantiles = NoiseLevels.quantile_grid(0.5, 5_000, "elbo")
    assert sum(quantiles.weights) == pytest.approx(0.5**-2 / 2, rel=1e-2)


def test_edm_weights_are_the_training_loss():
    """On quantiles of the training distribution the density cancels: what is left is lambda over the number of
    levels."""
    levels = NoiseLevels.quantile_grid(0.5, 10, "edm")
    expected = edm_lambda(np.array(levels.sigmas)) / 10
    np.testing.assert_allclose(np.array(levels.weights) / levels.weights[0], expected / expected[0])
    uniform = NoiseLevels.reference_grid(0.5, 50, "edm")
    sigmas = np.array(uniform.sigmas)
    np.testing.assert_allclose(uniform.weights, edm_lambda(sigmas) * log_normal_density(sigmas) * 2.5 / 49)


def test_quantile_grid_follows_the_truncated_training_distribution():
    samples = np.exp(-1.2 + 1.2 * np.random.default_rng(0).standard_normal(2_000_000))
    samples = samples[samples > 0.5]
    for tau, reference in ((0.5, samples), (0.0, None)):
        levels = NoiseLevels.quantile_grid(tau, 4)
        assert min(levels.sigmas) > tau
        if reference is not None:
            np.testing.assert_allclose(levels.sigmas, np.quantile(reference, [0.125, 0.375, 0.625, 0.875]), rtol=1e-2)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_on_every_grid(weighting):
    for levels in (
        NoiseLevels.log_grid(0.5, 5.0, 6, weighting),
        NoiseLevels.quantile_grid(0.5, 6, weighting),
        NoiseLevels.reference_grid(0.5, 8, weighting),
    ):
        assert len(levels) == 6 and min(levels.weights) > 0


def test_dict_round_trip_and_repeat():
    levels = NoiseLevels((1.0, 2.0), (0.5, 0.25))
    assert NoiseLevels.from_dict(levels.to_dict()) == levels
    sifted = levels.sifted(3.0, max_classes=5)
    assert sifted == NoiseLevels((1.0, 2.0), (0.5, 0.25), SiftingRule((3.0,), max_classes=5))
    assert sifted.loosened(2) == NoiseLevels((1.0, 2.0), (0.5, 0.25), SiftingRule((6.0,), max_classes=5))
    assert NoiseLevels((1.0,), (1.0,)).loosened(2).sifting is None
    assert NoiseLevels.from_dict(json.loads(json.dumps(sifted.to_dict()))) == sifted
    assert levels.repeat(2) == NoiseLevels((1.0, 2.0, 1.0, 2.0), (0.25, 0.125, 0.25, 0.125))


@pytest.mark.parametrize(
    "sigmas, weights",
    [
        ((), ()),
        ((1.0,), (1.0, 2.0)),
        ((0.0,), (1.0,)),
        ((-1.0,), (1.0,)),
        ((float("nan"),), (1.0,)),
        ((float("inf"),), (1.0,)),
        ((1.0,), (float("nan"),)),
        ((1.0,), (-1.0,)),
        ((1.0,), (0.0,)),
    ],
)
def test_refuses_levels_and_weights(sigmas, weights):
    with pytest.raises(ValueError, match="must be"):
        NoiseLevels(sigmas, weights)


@pytest.mark.parametrize(
    "rule",
    [
        {"thresholds": (1.0,)},
        {"thresholds": (1.0, -1.0)},
        {"thresholds": (1, 1), "max_classes": 0},
    ],
)
def test_refuses_sifting_rules(rule):
    with pytest.raises(ValueError, match="must"):
        NoiseLevels((1.0, 2.0, 3.0), (1, 1, 1), SiftingRule(**rule))


def test_a_saved_rule_needs_thresholds():
    with pytest.raises(ValueError, match="thresholds beside"):
        NoiseLevels.from_dict({"sigmas": [1.0], "weights": [1.0], "max_classes": 2})


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: NoiseLevels.log_grid(0.5, 5.0, 6, "snr"), "`weighting` must be one of .*got 'snr'"),
        (lambda: NoiseLevels.log_grid(5.0, 0.5), "`sigma_min` and `sigma_max` must be .*got 5.0 and 0.5"),
        (lambda: NoiseLevels.log_grid(0.5, 5.0, 1), "`num_levels` must be .*got 1"),
        (lambda: NoiseLevels.quantile_grid(-0.5, 6), "`tau` must be .*got -0.5"),
        (lambda: NoiseLevels.quantile_grid(0.5, 0), "`num_levels` must be .*got 0"),
        (lambda: NoiseLevels.quantile_grid(0.5, 6, p_mean=101), "`p_mean` must be .*got 101"),
        (lambda: NoiseLevels.quantile_grid(0.5, 6, p_std=0), "`p_std` must be .*got 0"),
        (lambda: NoiseLevels.reference_grid(3.0), "`tau` must be .*below 3.*got 3.0"),
        (lambda: NoiseLevels.reference_grid(0.5, 7, method="epndc"), "`num_points` must be .*got 7"),
        (lambda: NoiseLevels.reference_grid(0.5, 3, method="apndc"), "`num_points` must be .*got 3"),
        (lambda: NoiseLevels.reference_grid(0.0), "`tau` must be above 0 .*got 0"),
        (lambda: NoiseLevels.reference_grid(0.0, method="apndc"), "`tau` must be above 0 .*got 0"),
        (lambda: NoiseLevels((1.0,), (1.0,), cap=0.0), "`cap` must be .*got 0.0"),
        (lambda: NoiseLevels((1.0,), (1.0,), cap=4.1), "`cap` must be .*got 4.1"),
        (lambda: NoiseLevels((1.0,), (1.0,), cap=float("nan")), "`cap` must be .*got nan"),
    ],
)
def test_refuses_grids_and_caps(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("number_type", [np.float16, np.float32, np.longdouble, np.uint8])
def test_levels_do_not_depend_on_the_type_of_a_number(number_type):
    one, two = number_type(1), number_type(2)
    levels = NoiseLevels((1.0, 2.0), (1.0, 1.0)).sifted(50_000.3)
    assert levels.loosened(two) == levels.loosened(2.0)
    assert NoiseLevels.log_grid(one, number_type(9), 5) == NoiseLevels.log_grid(1.0, 9.0, 5)
    assert NoiseLevels.quantile_grid(one, 5, p_mean=one, p_std=two) == NoiseLevels.quantile_grid(1.0, 5, "elbo", 1, 2)
    for method in ("apndc", "epndc", "apndc-clean"):
        assert NoiseLevels.reference_grid(two, method=method) == NoiseLevels.reference_grid(2.0, method=method)
