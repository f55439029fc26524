import json

import pytest
from scipy import stats

from diffusers_ndc import Certificate


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


def test_the_candidate_of_a_tie_is_the_smallest_label():
    assert Certificate.from_counts({7: 10, 2: 10}, {2: 50}, 0.25, 0.001).label == 2


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
    assert not through_json({**certificate.to_dict(), **change}).verify()


@pytest.mark.parametrize("change", [{"counts": None}, {"counts": [990, 10]}, {"counts": {"three": 1}}, {"extra": 1}])
def test_refuses_records_that_are_none(certificate, change):
    with pytest.raises(ValueError, match="accepted"):
        Certificate.from_dict({**certificate.to_dict(), **change})
    with pytest.raises(ValueError, match="accepted"):
        Certificate.from_dict({"label": 3})
    with pytest.raises(ValueError, match="accepted"):
        Certificate.from_dict([])
