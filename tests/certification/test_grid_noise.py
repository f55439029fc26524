"""Noise on a grid: its law, and a certificate that floating point breaks without it."""

import numpy as np
import pytest
import torch
from scipy import stats

from diffusers_ndc import Certificate, SmoothedClassifier
from diffusers_ndc.certification.grid_noise import EIGHT_BIT_STEPS, grid_steps, slack, tails


SIDE = 100


class Leaking:
    """Answers 1 where some value next to zero has low bits that no sum with a pixel value above zero could have.

    A float32 sum of 1/255 and noise that ends near zero is a whole multiple of 2^-32, as both are; noise alone, on a
    black image, has finer bits.
    """

    num_classes = 2

    def __call__(self, images):
        small = images.double().abs() < 2.0**-12
        fine = (images.double() * 2.0**32).frac() != 0
        leaked = (small & fine).flatten(1).any(1).long()
        return torch.nn.functional.one_hot(leaked, 2).double()


def test_plain_noise_gives_a_false_certificate_and_noise_on_a_grid_does_not():
    black = torch.zeros(1, 1, SIDE, SIDE)
    other = black + 1 / 255
    distance = (other - black).norm().item()  # 0.39
    settings = {"n0": 5, "n": 200, "alpha": 0.001, "seed": 0}
    plain = SmoothedClassifier(Leaking(), 0.25)
    (false,) = plain.certify(black, **settings)
    assert false.label == 1 and false.radius > distance and false.verify()
    assert plain.predict(other, n=100, seed=0)[0].label == 0  # inside the radius, and another class

    sound = SmoothedClassifier(Leaking(), 0.25, grid=16)
    (certificate,) = sound.certify(black, **settings)
    assert certificate.label == sound.predict(other, n=100, seed=0)[0].label == 0


@pytest.mark.parametrize("sigma, grid", [(0.25, 16), (0.1, 1), (1.0, 2)])
def test_steps_have_the_law_of_rounded_noise(sigma, grid):
    steps = grid_steps((400,), range(1000), sigma, grid).ravel()
    unit = 1 / (EIGHT_BIT_STEPS * grid)
    edges = stats.norm.ppf(np.linspace(0, 1, 41)[1:-1], scale=sigma)
    cells = (np.floor(edges / unit) + 0.5) * unit  # a cell ends between two grid points
    expected = np.diff([0, *stats.norm.cdf(cells, scale=sigma), 1]) * steps.size
    found = np.histogram(steps * unit, [-np.inf, *cells, np.inf])[0]
    assert stats.chisquare(found, expected).pvalue > 1e-4
    around = np.array([(steps == k).sum() for k in (-2, -1, 0, 1, 2)])
    exact = np.diff(stats.norm.cdf((np.arange(-2, 4) - 0.5) * unit, scale=sigma)) * steps.size
    assert (np.abs(around - exact) < 5 * np.sqrt(exact)).all()


def test_each_draw_depends_on_its_seed_alone():
    both = grid_steps((2, 3), [5, 6], 0.25, 16)
    assert np.array_equal(both[1:], grid_steps((2, 3), [6], 0.25, 16)) and not np.array_equal(both[0], both[1])


def test_the_slack_covers_the_thresholds_and_is_subtracted():
    from mpmath import erfc, mp, mpf, sqrt

    mp.dps = 40
    sigma, grid, pixels = 0.25, 16, 784
    drawn, unit = tails(sigma, grid), mpf(1) / (EIGHT_BIT_STEPS * grid)
    every = 97  # some of the thousands
    off = sum(
        abs(int(drawn[k - 1]) / mpf(2) ** 63 - erfc((k - mpf(1) / 2) * unit / (sigma * sqrt(mpf(2)))))
        for k in range(1, len(drawn) + 1, every)
    )
    assert off * every * pixels <= slack(sigma, grid, pixels) < 1e-7
    settings = {"sigma": sigma, "alpha": 0.001}
    plain = Certificate.from_counts({1: 5}, {1: 900, 0: 100}, **settings)
    sound = Certificate.from_counts({1: 5}, {1: 900, 0: 100}, **settings, grid=grid, pixels=pixels)
    assert sound.p_lower == plain.p_lower - slack(sigma, grid, pixels) and 0 < plain.radius - sound.radius < 1e-6
    read = Certificate.from_dict(sound.to_dict())
    assert read.verify() and read == sound
    for change in ({"grid": 0}, {"grid": 1.5}, {"pixels": 0}, {"pixels": None}, {"grid": None}):
        altered = {**sound.to_dict(), **change}
        del altered["digest"]
        assert not Certificate.from_dict(altered).verify()


def test_copies_lie_on_the_grid_whatever_the_image():
    seen = []

    def watch(images):
        seen.append(images)
        return torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 2).double()

    image = (torch.arange(12).view(1, 1, 3, 4) * 20) / 255
    smoothed = SmoothedClassifier(watch, 0.25, grid=16)
    (certificate,) = smoothed.certify(image, n0=2, n=30, seed=0)
    copies = torch.cat(seen).double() * EIGHT_BIT_STEPS * 16
    assert (copies - copies.round()).abs().max() < 1e-3
    assert (certificate.grid, certificate.pixels) == (16, 12) and certificate.verify()
    watched = list(smoothed.certify_iter(image[0], n0=2, n=40, seed=0))
    assert watched[-1].grid == 16 and watched[-1].verify()
    (early,) = smoothed.certify(image, radii=[0.25], seed=0)
    assert early.radius >= 0.25 and early.verify()


def test_images_off_the_grid_and_bad_grids_raise():
    smoothed = SmoothedClassifier(Leaking(), 0.25, grid=16)
    with pytest.raises(ValueError, match="8-bit"):
        smoothed.certify(torch.full((1, 1, 2, 2), 0.5), n=10)
    for grid in (0, 1.5, True, 10**6):
        with pytest.raises(ValueError, match="`grid` must be"):
            SmoothedClassifier(Leaking(), 0.25, grid=grid)


@pytest.mark.parametrize("sigma, largest", [(np.uint8(1), 1024), (np.float16(1), 1024), (np.float16(200), 5)])
def test_small_types_of_numpy_do_not_overflow_with_a_grid(sigma, largest):
    assert SmoothedClassifier(Leaking(), sigma, grid=largest).noise.sigma == float(sigma)
    if largest < 1024:
        with pytest.raises(ValueError, match=f"at most {2**18 / 255 / 200:.4g} steps for sigma=200"):
            SmoothedClassifier(Leaking(), sigma, grid=largest + 1)
