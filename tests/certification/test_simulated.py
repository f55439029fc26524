"""Simulated runs of CERTIFY are those of the real procedures on the same votes."""

import numpy as np
import pytest

from diffusers_ndc.certification.procedures import Certify, CertifyEarly, Sampling
from diffusers_ndc.certification.simulated import SimulatedCertify
from diffusers_ndc.certification.voting import Votes


SIGMA = 0.5


class Dealer:
    """Votes in a fixed order, as counts for the simulation and as labels for the procedures.

    The first stream is that of the selection, the other one that of the estimation.
    """

    def __init__(self, probabilities, seed):
        generator = np.random.default_rng(seed)
        self.streams = [generator.choice(len(probabilities), size=4000, p=probabilities) for _ in range(2)]
        self.used, self.candidate, self.classes = [0, 0], None, len(probabilities)

    def deal(self, stream, count):
        start = self.used[stream]
        self.used[stream] += count
        return self.streams[stream][start : start + count].tolist()

    def multinomial(self, count, probabilities):
        return np.bincount(self.deal(0, count), minlength=self.classes)

    def binomial(self, count, probability):
        return self.deal(1, count).count(self.candidate)


def real_run(sampling, probabilities, seed, evaluations):
    procedure = (CertifyEarly if sampling.stops_early else Certify)(SIGMA, sampling, {})
    dealer, copies = Dealer(probabilities, seed), 0
    while (draws := procedure.next_draws()) is not None:
        labels = dealer.deal(0 if draws.purpose.startswith("select") else 1, draws.count)
        copies += draws.count
        counts = {label: labels.count(label) for label in set(labels)}
        procedure.add(Votes(counts, evaluations * draws.count, len(probabilities), labels=labels))
    certificate = procedure.result
    assert certificate.evaluations == copies * evaluations
    return certificate, copies


@pytest.mark.parametrize(
    "settings",
    [
        {"radii": [0.25]},
        {"radii": [0.0, 0.25, 0.75]},
        {"radii": [0.25, 0.75], "max_copies_per_radius": 300},
        {"radii": [0.25, 0.75], "max_evaluations": 700},
        {"n0": 0, "radii": [0.25, 0.75]},
        {},
    ],
)
@pytest.mark.parametrize("probabilities", [[0.99, 0.01, 0.0], [0.05, 0.9, 0.05], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
def test_the_same_votes_give_the_same_run(settings, probabilities):
    arguments = {"n0": 10, "n": 1500, "alpha": 0.001, "bound": None, "radii": None, "resolution": None}
    arguments |= {"max_copies_per_radius": None, "max_evaluations": None, **settings}
    sampling = Sampling.with_defaults(**arguments)
    simulated, looked_again = SimulatedCertify(SIGMA, sampling, 3), 0
    for seed in range(12):
        certificate, copies = real_run(sampling, probabilities, seed, 5)
        if not sampling.n0 and max(probabilities) < 0.9:
            continue  # the simulation takes the most probable class for the leader
        dealer = Dealer(probabilities, seed)
        dealer.candidate = certificate.candidate
        run = simulated.run(np.array(probabilities), 5.0, dealer)
        looked_again += 1
        assert (run.candidate, run.copies) == (certificate.candidate, copies)
        assert run.radius == (-1 if certificate.abstained else certificate.radius)
    assert looked_again == 12 or not sampling.n0
