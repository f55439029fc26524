"""The distribution of `p_lower` and what decides the average radius, in small runs worked out by hand."""

import itertools
import json

import numpy as np
import PIL.Image
import pytest
from helpers.runs import IMAGES, RADII, make_run, record_of
from scipy import stats

from diffusers_ndc import Certificate
from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.lower_bound import bin_counts, images_for_half, quantile
from diffusers_ndc.evaluation.report import to_markdown, write_report
from diffusers_ndc.evaluation.share import Share


P_LOWER = [stats.beta.ppf(0.001, votes, 101 - votes) for votes in (100, 92, 70)]
"""Of the images that are correctly certified: 0.933, 0.804 and 0.543."""


def run_of(folder, labels, certificate, **settings):
    """A run whose images have these labels and all the same certificate, but for the image."""
    records = []
    for index, label in enumerate(labels):
        own = {**certificate.to_dict(), "image_hash": f"{index:032x}"}
        records.append(record_of(index, label, 0, 100, 1, 1.0, **own))
    return make_run(folder, images=(), extra=records, sigma=certificate.sigma, n=certificate.n, **settings)


def test_distribution_by_hand(tmp_path):
    report = Report.from_folder(make_run(tmp_path))
    high, middle, low = P_LOWER
    assert [outcome.p_lower for outcome in report.outcomes] == pytest.approx([high, middle, low, 0, 0, high])
    assert {outcome.bound for outcome in report.outcomes} == {"clopper-pearson"}
    shares = [Share(2, 6), Share(2, 6), Share(2, 6), Share(0, 6), Share(0, 6)]
    edges = [(0, 0.5), (0.5, 0.9), (0.9, 0.99), (0.99, 0.999), (0.999, 1)]
    assert report.p_lower_bins == [(*between, share) for between, share in zip(edges, shares, strict=True)]
    assert report.p_lower_quantiles == pytest.approx({10: 0, 25: 0, 50: low, 75: high, 90: high})
    assert RADII[0] < (2 * RADII[0] + RADII[1] + RADII[2]) / 2 < 2 * RADII[0]
    assert report.images_for_half == Share(2, 6)


def test_json_and_markdown_show_the_distribution(tmp_path):
    text, _ = write_report([make_run(tmp_path)], tmp_path)
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    values = run["lower_bound"]
    high, _, low = P_LOWER
    found = {row["quantile"]: row["p_lower"] for row in values["quantiles"]}
    assert found == pytest.approx({0.1: 0, 0.25: 0, 0.5: low, 0.75: high, 0.9: high})
    assert [(row["from"], row["to"], row["count"], row["total"]) for row in values["bins"]] == [
        (0, 0.5, 2, 6),
        (0.5, 0.9, 2, 6),
        (0.9, 0.99, 2, 6),
        (0.99, 0.999, 0, 6),
        (0.999, 1, 0, 6),
    ]
    assert values["half_of_total_radius"] == {"share": 2 / 6, "count": 2, "total": 6}
    assert values["meaning"] in text and "0 for incorrect labels and abstentions" in values["meaning"]
    assert "Half of the total radius comes from 33.3% of the images (2 of 6)." in text
    first, last = (Share(count, 6).interval for count in (2, 0))
    assert f"| below 0.5 (incorrect, or not certified) | 33.3% | 2 of 6 | {first[0]:.1%} to {first[1]:.1%} |" in text
    assert f"| 0.999 to 1 | 0.0% | 0 of 6 | {last[0]:.1%} to {last[1]:.1%} |" in text
    assert "![Share of images with at least this p_lower](lower_bound.png)" in text


def test_quantiles_are_rounded_down(tmp_path):
    """A p_lower of 0.999993 must not be shown as 1."""
    certificate = Certificate.from_counts({0: 10}, {0: 10**6}, 0.5, 0.001)
    text = to_markdown(Report.from_folder(run_of(tmp_path, [0], certificate)))
    assert certificate.p_lower > 0.999993
    assert "| have at most this p_lower | 0.99999 | 0.99999 | 0.99999 | 0.99999 | 0.99999 |" in text


def test_a_constant_classifier_has_a_large_average_radius_and_is_revealed(tmp_path):
    """It answers 0 to two images of each of ten classes: all are certified, two are correct."""
    certificate = Certificate.from_counts({0: 10}, {0: 10**6}, 20.0, 0.001)
    report = Report.from_folder(run_of(tmp_path / "constant", [*range(10)] * 2, certificate))
    honest = Report.from_folder(make_run(tmp_path / "honest"))
    radius = 20 * stats.norm.ppf(0.001**1e-6)
    assert report.average_radius == pytest.approx(radius / 10) and report.average_radius > 20 * honest.average_radius
    assert report.abstentions == Share(0, 20)

    assert [share.count for _, _, share in report.p_lower_bins] == [18, 0, 0, 0, 2]
    assert set(report.p_lower_quantiles.values()) == {0.0}
    assert report.images_for_half == Share(1, 20)
    text = to_markdown(report)
    assert "Half of the total radius comes from 5.0% of the images (1 of 20)." in text
    assert "| below 0.5 (incorrect, or not certified) | 90.0% | 18 of 20 |" in text


def test_a_run_that_certifies_nothing_has_no_half(tmp_path):
    report = Report.from_folder(make_run(tmp_path, images=IMAGES[3:5]))  # one wrong, one abstained
    assert report.images_for_half is None and report.to_dict()["lower_bound"]["half_of_total_radius"] is None
    assert "Half of" not in to_markdown(report)
    assert [share.count for _, _, share in report.p_lower_bins] == [2, 0, 0, 0, 0]


def test_a_run_of_failures_alone_has_no_quantiles(tmp_path):
    folder = make_run(tmp_path, images=[], extra=[{"index": 0, "failed": "OSError: truncated"}])
    text, (report,) = write_report([folder], tmp_path)
    assert report.p_lower_quantiles == {} and report.images_for_half is None
    assert "have at most this p_lower" not in text and (tmp_path / "lower_bound.png").exists()


def test_the_text_says_what_the_bound_and_early_stops_mean(tmp_path):
    plain = Certificate.from_counts({0: 10}, {0: 90, 1: 10}, 0.5, 0.001)
    runner_up = Certificate.from_counts({0: 10}, {0: 90, 1: 5, 2: 5}, 0.5, 0.001, bound="runner-up", num_classes=3)
    soft = Certificate.from_counts(
        {0: 10}, {0: 100}, 0.5, 0.001, bound="empirical-bernstein", score_sum=99.0, score_squares=98.5
    )
    settings = {"plain": {}, "runner-up": {}, "soft": {}, "early": {"stop_early": True}}
    certificates = {"plain": plain, "runner-up": runner_up, "soft": soft, "early": plain}
    notes = ("no bound on that probability", "mean probability", "sought no radius beyond 0.5, so")
    found = {}
    for name, certificate in certificates.items():
        report = Report.from_folder(run_of(tmp_path / name, [0], certificate, **settings[name]))
        assert not report.rejected and report.outcomes[0].p_lower == certificate.p_lower > 0.5
        found[name] = [note in to_markdown(report) for note in notes]
    assert found == {
        "plain": [False, False, False],
        "runner-up": [True, False, False],
        "soft": [False, True, False],
        "early": [False, False, True],
    }


def test_bins_contain_their_lower_edge():
    assert bin_counts([0.0, 0.4999, 0.5, 0.8999, 0.9, 0.99, 0.9989, 0.999, 1.0]) == [2, 2, 1, 2, 2]
    assert bin_counts([]) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("total", [1, 3, 6, 10, 70, 100])
@pytest.mark.parametrize("percent", [1, 10, 25, 50, 75, 90, 100])
def test_a_quantile_is_the_smallest_value_that_covers_its_share(total, percent):
    values = np.random.default_rng(total).choice([0.0, 0.6, 0.7, 0.8, 0.99], total).tolist()
    covered = [value for value in values if 100 * sum(other <= value for other in values) >= percent * total]
    assert quantile(values, percent) == min(covered)


@pytest.mark.parametrize(
    ("radii", "number"),
    [
        ([], None),
        ([0.0, 0.0], None),
        ([0.3], 1),
        ([0.3] * 2, 1),  # exactly half
        ([0.3] * 5, 3),
        ([0.1] * 100, 50),
        ([2.0, 1.0, 1.0, 0.0], 1),
        ([2.0, 1.0, 1.0, 1.0], 2),
        ([0.1, 0.2, 0.3], 2),  # these floats are such that 0.3 is less than 0.1 + 0.2
        ([1.7e308] * 4, 2),  # the sum is no float
        ([1e-300, 1e300], 1),
    ],
)
def test_images_for_half_by_hand(radii, number):
    assert images_for_half(radii) == number


def test_images_for_half_is_the_smallest_set_in_any_order():
    radii = [0.5, 0.25, 0.25, 1.0, 0.5, 0.75]  # exact as floats, with ties
    enough = [
        size
        for size in range(len(radii) + 1)
        if any(2 * sum(chosen) >= sum(radii) for chosen in itertools.combinations(radii, size))
    ]
    assert {images_for_half(order) for order in itertools.permutations(radii)} == {min(enough)}


def test_picture_shows_the_constant_classifier_far_to_the_right_and_low(tmp_path):
    constant = run_of(
        tmp_path / "constant", [*range(10)] * 2, Certificate.from_counts({0: 10}, {0: 10**6}, 0.5, 0.001)
    )
    write_report([constant, make_run(tmp_path / "honest")], tmp_path)
    drawn = np.asarray(PIL.Image.open(tmp_path / "lower_bound.png").convert("RGB")).astype(int)
    drawn = drawn[drawn.shape[0] // 4 :]  # below the legend
    places = []
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        rows, columns = np.nonzero(np.abs(drawn - colour).max(axis=2) < 8)
        places.append((rows.min(), columns[rows < rows.max() - 20].max()))
    (constant_top, constant_end), (honest_top, honest_end) = places
    assert constant_top > honest_top and constant_end > honest_end + 0.3 * drawn.shape[1]
