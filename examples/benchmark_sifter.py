"""The part of `benchmark.py` about the class sifter: what it saves, and what the likelihood adds to it."""

import numpy as np
import torch
from benchmark_shared import Benchmark

from diffusers_ndc import NoiseLevels


BUDGET = 10_000
"""Evaluations of an image in the last row of the certificates."""


def sifter(bench: Benchmark) -> None:
    """A noisy copy and a certificate without the sifter, with both its forms, and by its features alone."""
    args, pipe = bench.args, bench.pipe
    if pipe.sifter is None or pipe.sifter.find(args.sigma) is None:
        bench.say(f"The model has no sifter for sigma {args.sigma}.\n")
        return
    levels = pipe.classifier(args.sigma).levels
    forms = {
        "all classes at all levels": {"levels": NoiseLevels(levels.sigmas, levels.weights)},
        "classes sifted by losses": {"sift": False},
        "candidates by the sifter": {},
        "scores of the sifter as level 0": {"sift": "scores"},
        "the sifter's features alone": {"method": "features"},
    }
    copies_of(bench, forms)
    certified = {name: settings for name, settings in forms.items() if "levels" not in settings}
    certified[f"scores as level 0, at most {BUDGET:,} evaluations"] = {"sift": "scores", "max_evaluations": BUDGET}
    certificates_of(bench, certified)


def copies_of(bench: Benchmark, forms: dict[str, dict]) -> None:
    """Accuracy and evaluations of one noisy copy of each image."""
    copies = 20 if bench.args.quick else 500
    bench.say(f"## Class sifter: one noisy copy of each of {copies} digits\n")
    images = bench.batch(copies)
    generator = torch.Generator().manual_seed(bench.args.seed)
    noisy = images + bench.args.sigma * torch.randn(images.shape, generator=generator).to(images)
    rows = []
    for name, settings in forms.items():
        classifier = bench.pipe.classifier(bench.args.sigma, batch_size=bench.args.batch_size, **settings)
        with classifier.inference():
            predictions = classifier(noisy, seeds=range(copies)).argmax(dim=1).tolist()
        rows.append(
            {
                "classifier": name,
                "accuracy": f"{np.mean(np.equal(predictions, bench.labels[:copies])):.1%}",
                "evaluations a copy": classifier.evaluations / copies,
            }
        )
    bench.table(rows)


def certificates_of(bench: Benchmark, forms: dict[str, dict]) -> None:
    """Certified images and evaluations until radius sigma is decided."""
    digits, radii = 4 if bench.args.quick else 100, bench.radii[0]
    bench.say(f"## Class sifter: radius {radii[0]:g} of {digits} digits, n at most {bench.args.n:,}\n")
    by_formula = bench.args.n * bench.reference_per_copy
    rows = []
    for name, settings in forms.items():
        certificates, seconds = bench.certify(digits, radii=radii, **settings)
        spent = np.array([certificate.evaluations for certificate in certificates])
        rows.append(
            {
                "classifier": name,
                "certified": f"{bench.certified(certificates, radii[0])} of {digits}",
                "evaluations, mean": float(spent.mean()),
                "median": float(np.median(spent)),
                "largest": f"{spent.max():,}",
                "reference by formula, times": by_formula / spent.mean(),
                "seconds an image": float(seconds.mean()),
            }
        )
    bench.table(rows)
