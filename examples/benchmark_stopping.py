"""The parts of `benchmark.py` about the end of an image: what early stops decide, and what limits on the cost do."""

import numpy as np
from benchmark_shared import Benchmark


def decisions(bench: Benchmark) -> None:
    """Whether a run that stops early decides as one with a fixed number of copies."""
    digits, n = (4, 400) if bench.args.quick else (50, 1_000)
    bench.say(f"## The same decisions: {digits} digits, fixed n = {n:,}, or stopped early\n")
    fixed, _ = bench.certify(digits, n=n)
    anytime = f"mixture, n at most {bench.args.n:,}"
    early = [(radii, anytime, {}) for radii in bench.radii]
    early.append((bench.radii[-1], f"clopper-pearson, curtailed, n = {n:,}", {"n": n}))
    rows = []
    for radii, bound, settings in early:
        stopped, _ = bench.certify(digits, radii=radii, bound=bound.partition(",")[0], **settings)
        for radius in radii:
            rows.append(
                {
                    "asked for": radii,
                    "stopped by": bound,
                    "radius": radius,
                    f"certified, n = {n:,}": bench.certified(fixed, radius),
                    "certified, stopped": bench.certified(stopped, radius),
                    "both": sum(
                        bench.correct(a, index, radius) and bench.correct(b, index, radius)
                        for index, (a, b) in enumerate(zip(fixed, stopped, strict=True))
                    ),
                    "evaluations, fixed": float(np.mean([c.evaluations for c in fixed])),
                    "stopped": float(np.mean([c.evaluations for c in stopped])),
                }
            )
    bench.table(rows)


def limits(bench: Benchmark) -> None:
    """Certified accuracy against the cost of all images, without and with limits on the cost."""
    digits, radius = 2 if bench.args.quick else 16, 2 * bench.args.sigma
    bench.say(f"## Limits on the cost: {digits} digits, radius {radius:g} asked for, n at most {bench.args.n:,}\n")
    rows = []
    for copies, evaluations in ((None, None), (50_000, None), (5_000, None), (None, 20_000)):
        certificates, seconds = bench.certify(
            digits, radii=(radius,), max_copies_per_radius=copies, max_evaluations=evaluations
        )
        bench.say_each(certificates, seconds, (radius,))
        spent = np.array([certificate.evaluations for certificate in certificates])
        certified = bench.certified(certificates, radius)
        rows.append(
            {
                "max_copies_per_radius": "-" if copies is None else f"{copies:,}",
                "max_evaluations": "-" if evaluations is None else f"{evaluations:,}",
                "certified": f"{certified} of {digits}",
                "ACR": bench.average_radius(certificates),
                "evaluations, all images": f"{spent.sum():,}",
                "for each certified": f"{spent.sum() / max(1, certified):,.0f}",
                "mean": f"{spent.mean():,.0f}",
                "median": f"{np.median(spent):,.0f}",
                "largest": f"{spent.max():,}",
                "at the budget": "-" if evaluations is None else int((spent >= evaluations).sum()),
                "seconds": float(seconds.sum()),
            }
        )
    bench.table(rows)
