"""What a certificate costs: the reference procedure against this package, on the embedded model and its test digits.

    python examples/benchmark.py --quick     # under five minutes on two cores
    python examples/benchmark.py             # about 90 minutes on two cores

The reference is the procedure of Chen et al. as their program runs it: 124 noise levels (a grid of 126 points from tau
to 3 with `edm-reference` weights), all classes one by one, and a fixed number n of noisy copies. Where it would take
days, its cost is *computed by formula*, n * (classes * levels + 1), and the table says so; everything else is run.

All parts print Markdown. `--output DIR` holds the same report, the plot of certified accuracy against evaluations, and
the certificates. The same command continues where a stopped one ended.
"""

import argparse
import time
from pathlib import Path

import torch
from benchmark_parts import PARTS
from benchmark_shared import Benchmark


HERE = Path(__file__).parent


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=HERE / "mnist", help="pipeline folder or Hub id (default: the embedded model)")
    add("--dataset", default=HERE / "mnist" / "data", help="images with labels (default: its test digits)")
    add("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (default: 0.25)")
    add("--n", type=int, default=10_000, help="at most this many noisy copies of an image (default: 10,000)")
    add("--n0", type=int, default=10, help="noisy copies that select the candidate (default: 10)")
    add("--alpha", type=float, default=0.001)
    add("--batch-size", type=int, default=64)
    add("--seed", type=int, default=0)
    add("--quantile", type=float, default=0.9995, help="of the calibrations in the part `classes` (default: 0.9995)")
    add("--sift-quantile", type=float, default=0.998, help="of the same (default: 0.998)")
    add("--scores-quantile", type=float, default=0.995, help="of the same (default: 0.995)")
    add("--classes", type=int, nargs="+", default=[2, 5, 10, 20, 50, 100], help="numbers of classes in the same part")
    add("--quick", action="store_true", help="run each part on a few images")
    add("--compile", action="store_true", help="also time torch.compile (needs a C++ compiler, a minute of warm-up)")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    add("--output", type=Path, default=Path("benchmark"), help="folder for the report (default: benchmark)")
    return parser.parse_args()


def main():
    args = parse_args()
    bench = Benchmark(args)
    levels = bench.pipe.classifier(args.sigma).levels
    bench.say(f"# Benchmark: {args.model}, sigma {args.sigma}, {len(levels)} calibrated levels, seed {args.seed}\n")
    bench.say(f"{bench.pipe.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    start = time.perf_counter()
    for name, part in PARTS.items():
        if name in args.only:
            part(bench)
    bench.say(f"{time.perf_counter() - start:.0f} s in all")
    bench.report.close()
    bench.kept.close()


if __name__ == "__main__":
    main()
