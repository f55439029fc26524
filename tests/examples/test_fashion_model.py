"""The model of Fashion-MNIST in `examples/`, its runs, and the tables that are made of them."""

import json

import pytest
from helpers.paths import EXAMPLES, ROOT

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.common.json import differences
from diffusers_ndc.evaluation import Report
from diffusers_ndc.evaluation.side_by_side import SideBySide
from diffusers_ndc.evaluation.subject import weight_hash
from diffusers_ndc.pipelines.model_card import model_section


MODEL = EXAMPLES / "fashion_mnist"
METHODS = ("ndc", "ndc-scores", "features", "dds", "gaussian", "dds-6x", "gaussian-6x", "all-classes")
SIGMAS = ("0.25", "0.5", "1")
COLUMNS = (("0.25", 0.25), ("0.25", 0.5), ("0.5", 0.5), ("0.5", 1.0), ("1", 0.5), ("1", 1.0))


@pytest.fixture(scope="module")
def pipe():
    return NoisedDiffusionClassifierPipeline.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def reports():
    """All runs; their certificates are recomputed from the votes."""
    return {(m, s): Report.from_folder(MODEL / "evaluation" / f"{m}-{s}") for s in SIGMAS for m in METHODS}


def test_the_model_is_small_and_its_card_lists_its_levels(pipe):
    assert sum(file.stat().st_size for file in MODEL.rglob("*.safetensors")) < 4e6
    section = model_section("examples/fashion_mnist", pipe._usage(), pipe._all_levels())
    assert section in (MODEL / "README.md").read_text()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("method", ["ndc", "ndc-scores"])
def test_the_runs_of_the_model_are_its_own(pipe, method, sigma):
    run = json.loads((MODEL / "evaluation" / f"{method}-{sigma}" / "run.json").read_text())
    classifier = pipe.classifier(run["sigma"], sift="scores" if method == "ndc-scores" else None)
    assert run["weight_hash"] == weight_hash(classifier)
    assert differences(run["base_classifier"], classifier.settings) == {}


@pytest.mark.slow
def test_the_tables_follow_from_the_records(reports):
    for report in reports.values():
        assert report.rejected == report.failed == {} and report.missing == 0
    readme, card = (ROOT / "README.md").read_text(), (MODEL / "README.md").read_text().splitlines()
    for method in METHODS:
        shares = [f"{100 * reports[method, sigma].at(radius).value:.1f}%" for sigma, radius in COLUMNS]
        costs = [f"{reports[method, sigma].cost['network evaluations'][0]:,.0f}" for sigma in SIGMAS]
        row = " | ".join([*shares, ", ".join(costs)])
        found = [line for line in readme.splitlines() if line.startswith(f"| `{method}`")]
        assert len(found) == 1 and row in found[0], f"{method}: {row}"
    tables = SideBySide(list(reports.values())).to_markdown()
    accuracies_and_costs = [line for line in tables.splitlines() if line.startswith("|")][: 2 * (len(reports) + 2)]
    assert all(line in card for line in accuracies_and_costs)
