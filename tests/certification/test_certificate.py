import doctest
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from helpers.paths import FIXTURES
from scipy import stats

from diffusers_ndc import Certificate, LipschitzCertificate
from diffusers_ndc.certification import certificate as certificate_module
from diffusers_ndc.certification.bound_names import BOUNDS, Tally
from diffusers_ndc.certification.bounds import clopper_pearson_lower
from diffusers_ndc.common.seeds import uniform_number


@pytest.fixture
def certificate():
    return Certificate.from_counts(
        {3: 18, 5: 2},
        {3: 990, 5: 7, 8: 3},
        sigma=0.25,
        alpha=0.001,
        seed=7,
        image_hash="00ff",
        evaluations=61_200,
        base_classifier={"method": "apndc"},
    )


def through_json(record):
    return Certificate.from_dict(json.loads(json.dumps(record)))


def test_radius_from_counts(certificate):
    assert certificate.label == certificate.candidate == 3
    p_lower = stats.binomtest(990, 1000, alternative="greater").proportion_ci(0.999, "exact").low
    assert certificate.p_lower == pytest.approx(p_lower)
    assert certificate.radius == pytest.approx(0.25 * stats.norm.ppf(p_lower))
    assert (certificate.n0, certificate.n) == (20, 1000)
    assert not certificate.abstained and certificate.verify()


@pytest.mark.parametrize("counts", [{3: 520, 5: 480}, {5: 1000}])
def test_abstention_where_the_bound_does_not_exceed_one_half(counts):
    certificate = Certificate.from_counts({3: 18, 5: 2}, counts, 0.25, 0.001)
    assert certificate.abstained and certificate.label is None and certificate.radius == 0
    assert certificate.verify()


@pytest.mark.parametrize(
    "settings, lacking",
    [
        ({"bound": "runner-up"}, "num_classes"),
        ({"bound": "mixture", "selection_counts": {}}, "num_classes"),
        ({"bound": "randomized-clopper-pearson"}, "u"),
        ({"bound": "empirical-bernstein"}, "score_sum"),
        ({"bound": "empirical-bernstein", "score_sum": 950.0}, "score_squares"),
        ({"grid": 16}, "pixels"),
    ],
)
def test_there_is_no_bound_without_what_it_rests_on(certificate, settings, lacking):
    votes = {"selection_counts": {3: 20}, "counts": {3: 990, 5: 10}, "sigma": 0.25, "alpha": 0.001}
    with pytest.raises(ValueError, match="must make a certificate"):
        Certificate.from_counts(**{**votes, **settings})
    without = replace(certificate, **settings)
    assert not without.verify()
    with pytest.raises(ValueError, match=f"`{lacking}` must be a number .*, got None"):
        _ = without.p_lower


def test_the_candidate_of_a_tie_is_the_smallest_label():
    assert Certificate.from_counts({7: 10, 2: 10}, {2: 50}, 0.25, 0.001).label == 2


def test_the_slope_of_the_probability_is_bounded_by_what_was_proved():
    """For a half-space at distance d the probability is Phi(d / sigma): its slope is known."""
    for distance in (0.05, 0.3, 0.6):
        votes = int(100_000 * stats.norm.cdf(distance / 0.25))
        found = Certificate.from_counts({1: 20}, {1: votes, 0: 100_000 - votes}, 0.25, 0.001)
        slope = stats.norm.pdf(distance / 0.25) / 0.25
        assert slope < found.local_lipschitz < 1.1 * slope
    nothing = Certificate.from_counts({1: 20}, {0: 100}, 0.25, 0.001)
    assert nothing.local_lipschitz == pytest.approx(stats.norm.pdf(0) / 0.25)


def test_the_slope_under_the_runner_up_bound_is_that_of_the_candidate_s_probability():
    votes = {1: 6000, **dict.fromkeys(range(2, 10), 500)}
    found = Certificate.from_counts({1: 20}, votes, 0.25, 0.001, "runner-up", num_classes=10)
    assert found.p_lower > 0.75 and found.local_lipschitz >= stats.norm.pdf(stats.norm.ppf(0.6)) / 0.25


def test_the_law_of_the_grid_is_allowed_for_in_both_bounds_of_the_runner_up():
    """What one bound may be wrong by, each of them may; where they are far apart that costs more than once."""
    n, alpha, off = 10_000, 0.001, 1e-4
    lower = clopper_pearson_lower(5200, n, alpha / 2) - off
    upper = 1 - clopper_pearson_lower(n - 2, n, alpha / 2 / 999) + off
    expected = stats.norm.cdf((stats.norm.ppf(lower) - stats.norm.ppf(upper)) / 2)
    assert BOUNDS["runner-up"](Tally(5200, n, 2, 1000, slack=off), alpha) == pytest.approx(expected, rel=1e-12)
    for bound in set(BOUNDS) - {"runner-up"}:
        plain, less = (
            BOUNDS[bound](Tally(5200, n, 2, 1000, 0.5, 5200.0, 4000.0, slack=slack), alpha) for slack in (0.0, off)
        )
        assert plain - less == pytest.approx(off)


def test_u_follows_from_seed_and_image():
    votes = {"selection_counts": {1: 20}, "counts": {1: 500}, "sigma": 0.25, "alpha": 0.001}
    votes |= {"bound": "randomized-clopper-pearson", "seed": 1, "image_hash": "00ff"}
    with pytest.raises(ValueError, match="u is 0.0, but seed and image give"):
        Certificate.from_counts(**votes, u=0.0)
    assert Certificate.from_counts(**votes, u=uniform_number(1, "00ff")).verify()


@pytest.mark.parametrize("known", [{}, {"seed": 1}, {"image_hash": "00ff"}])
def test_a_u_that_may_have_been_chosen_proves_nothing(known):
    """With u = 0.03 a single vote would prove a radius of 2.05 at sigma 0.25."""
    lucky = {"bound": "randomized-clopper-pearson", "n0": 1, "n": 1, "u": 0.03, **known}
    with pytest.raises(ValueError, match="needs the seed and the image_hash that u comes from"):
        Certificate.from_counts({0: 1}, {0: 1}, 0.25, 0.05, **lucky)
    genuine = Certificate.from_counts(
        {1: 20}, {1: 500}, 0.25, 0.001, lucky["bound"], seed=1, image_hash="00ff", u=uniform_number(1, "00ff")
    )
    assert not replace(genuine, **{"seed": None, "image_hash": None, **known}).verify()


def test_json_round_trip_verifies(certificate):
    read = through_json(certificate.to_dict())
    assert read == certificate and read.verify()


@pytest.mark.parametrize(
    "change",
    [
        {"radius": 0.6},
        {"radius": 0.5238},
        {"radius": float("nan")},
        {"label": 5},
        {"label": None},
        {"label": None, "radius": 0.0},
        {"sigma": 0.5},
        {"sigma": -0.25},
        {"alpha": 0.01},
        {"alpha": 0.0},
        {"n": 2000},
        {"n0": 19},
        {"n0": 40},
        {"counts": {"3": 991, "5": 7, "8": 2}},
        {"counts": {"3": 991, "5": 7, "8": 3}},
        {"counts": {"3": 1000}},
        {"counts": {"3": 990.0, "5": 7, "8": 3}},
        {"counts": {"3": 1000, "5": -10, "8": 10}},
        {"selection_counts": {"3": 2, "5": 18}},
        {"selection_counts": {}},
        {"bound": "guess"},
    ],
)
def test_an_altered_record_does_not_verify(certificate, change):
    altered = {**certificate.to_dict(), **change}
    with pytest.raises(ValueError, match="unaltered"):
        through_json(altered)
    del altered["digest"]  # and a forger can make a new one
    assert not through_json(altered).verify() and through_json(altered).flaw


@pytest.mark.parametrize("change", [{"counts": None}, {"counts": [990, 10]}, {"counts": {"three": 1}}, {"extra": 1}])
def test_malformed_records_raise(certificate, change):
    altered = {**certificate.to_dict(), **change}
    with pytest.raises(ValueError, match="digest"):
        Certificate.from_dict(altered)
    del altered["digest"]
    message = "`counts` must be a dictionary by class label" if "counts" in change else "`data` must have the fields"
    with pytest.raises(ValueError, match=message):
        Certificate.from_dict(altered)
    with pytest.raises(ValueError, match="`data` must have the fields"):
        Certificate.from_dict({"label": 3})
    with pytest.raises(ValueError, match="`data` must be a dictionary, got list"):
        Certificate.from_dict([])


def test_the_fields_that_all_records_share_are_keywords():
    shared = {"seed", "image_hash", "evaluations", "device", "base_classifier"}
    for record in (Certificate, LipschitzCertificate):
        assert {f.name for f in fields(record) if f.kw_only} == shared


def test_records_of_version_0_1_0_verify_and_keep_their_values():
    """They had fewer fields, and are read and written again with the same values."""
    lines = (FIXTURES / "records_0.1.0.jsonl").read_text().splitlines()
    records = [json.loads(line)["certificate"] for line in lines]
    assert len(records) > 10
    for record in records:
        read = Certificate.from_dict(record)
        written = json.loads(json.dumps(read.to_dict()))
        assert read.verify() and written.pop("device", None) is None and written.pop("vote_sequence") is None
        assert {**written, "digest": record["digest"]} == record


def test_the_example_of_the_docstring_runs():
    result = doctest.testmod(certificate_module)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("number_type", [np.float16, np.float32, np.longdouble])
def test_numbers_of_numpy_s_types_are_recorded_as_plain_floats(number_type):
    small = {"sigma": number_type(0.3), "alpha": number_type(0.001)}
    plain = {name: float(value) for name, value in small.items()}
    certificate = Certificate.from_counts({}, {3: 990, 5: 10}, **small, num_classes=7, bound="mixture")
    assert certificate == Certificate.from_counts({}, {3: 990, 5: 10}, **plain, num_classes=7, bound="mixture")
    direct = replace(certificate, **small)  # not by `from_counts`
    assert direct.verify() and direct.p_lower == certificate.p_lower
    assert Certificate.from_dict(json.loads(json.dumps(direct.to_dict()))) == direct == certificate
    assert direct.local_lipschitz == certificate.local_lipschitz
