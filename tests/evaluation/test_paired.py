"""Two runs on the same images, by hand, and the rate at which their comparison errs."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.runs import IMAGES, OTHERS, RADII, make_run, record_of
from scipy import stats

from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.paired import Paired, PairedCounts


def report_of(folder, images=IMAGES, **settings):
    return Report.from_folder(make_run(folder, images=images, **settings))


@pytest.fixture
def paired(tmp_path):
    return Paired(report_of(tmp_path / "a"), report_of(tmp_path / "b", OTHERS))


def test_counts_by_hand(paired):
    assert paired.shared == [0, 1, 2, 3, 4, 5] and paired.differing == 0
    assert paired.at(0) == PairedCounts(both=3, only_first=1, only_second=1, neither=1)
    assert paired.at(0.25) == PairedCounts(both=1, only_first=2, only_second=1, neither=2)
    assert paired.at(0.5) == PairedCounts(both=0, only_first=2, only_second=2, neither=2)
    for radius in paired.radii:
        counts = paired.at(radius)
        assert counts.both + counts.only_first == paired.first.at(radius).count
        assert counts.both + counts.only_second == paired.second.at(radius).count


def test_other_images_and_other_classes_are_left_out(tmp_path):
    other = record_of(5, 7, 7, 100, 100, 1.0)
    other["image_hash"] = other["certificate"]["image_hash"] = "f" * 32
    del other["certificate"]["digest"]
    extra = [record_of(4, 0, 0, 100, 100, 1.0), other, record_of(6, 0, 0, 100, 100, 1.0)]
    second = Report.from_folder(make_run(tmp_path / "b", images=IMAGES[:4], extra=extra))
    assert not second.rejected
    paired = Paired(report_of(tmp_path / "a"), second)
    assert paired.shared == [0, 1, 2, 3] and paired.differing == 2


def test_nothing_shared_is_compared_as_nothing(tmp_path):
    paired = Paired(
        report_of(tmp_path / "a", IMAGES[:0], extra=[{"index": 0, "failed": "x"}]), report_of(tmp_path / "b")
    )
    assert paired.shared == [] and paired.at(0) == PairedCounts(0, 0, 0, 0) and paired.at(0).p_value == 1
    assert paired.radii == [0, 0.25, 0.5]


def test_radii_are_those_that_both_runs_answer_for(tmp_path):
    fixed = report_of(tmp_path / "fixed")
    early = [
        report_of(tmp_path / str(radii), stop_early=True, radii=radii) for radii in ([0.25, 0.5], [0.5, 0.75], [0.3])
    ]
    clean = report_of(tmp_path / "clean", [], alpha=None, n=None, radii=[0.0], extra=[{"index": 0, "failed": "x"}])
    assert Paired(fixed, early[0]).radii == [0, 0.25, 0.5]
    assert Paired(*early[:2]).radii == [0, 0.5] and Paired(*early[1:]).radii == [0]
    assert Paired(fixed, clean).radii == [0]
    many = Paired(fixed, fixed).radii
    assert {0, 0.25, 0.5} < set(many) and all(a < b for a, b in pairwise(many))
    assert 10 <= len(many) <= 103 and max(RADII) - 0.1 < many[-1] <= max(RADII)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (6, 0), (0, 6), (2, 9), (40, 17)])
def test_the_p_value_is_the_binomial_one(first, second):
    tails = [stats.binom.cdf(min(first, second), first + second, 0.5) * 2, 1.0]
    assert PairedCounts(5, first, second, 5).p_value == pytest.approx(min(tails))
    assert PairedCounts(99, first, second, 0).p_value == PairedCounts(5, second, first, 5).p_value


@pytest.mark.parametrize(("chances", "rejects"), [((0.1, 0.1), False), ((0.2, 0.05), True)])
def test_equal_runs_are_told_apart_at_most_at_the_rate_and_unequal_ones_are(chances, rejects):
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(200, [*chances, 1 - sum(chances)], size=400)
    rate = np.mean([PairedCounts(0, first, second, rest).p_value <= 0.05 for first, second, rest in drawn])
    assert rate > 0.8 if rejects else rate <= stats.binom.ppf(0.999, 400, 0.05) / 400
