"""What a certificate costs: the reference procedure against this package, on the embedded model and its test digits.

    python examples/benchmark.py --quick     # under five minutes on two cores
    python examples/benchmark.py             # about 90 minutes on two cores

Reference: the procedure of Chen et al. as their program has it. 124 noise levels (a grid of 126 points from tau to 3
with `edm-reference` weights), all classes one by one, a fixed number n of copies. Where its cost would be days it is
*counted by formula*, n * (classes * levels + 1), and marked so; everything else was run. All parts print Markdown;
`--output DIR` also gets it, with the plot of certified accuracy against evaluations, and the certificates: the same
command goes on where it was stopped.
"""

import argparse
import json
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from labelled_images import load_labelled_images
from tqdm.auto import tqdm

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.certification.lipschitz import LEVELS
from diffusers_ndc.evaluation.subject import weight_hash
from diffusers_ndc.pipelines.inputs import to_pixel_batch


matplotlib.use("Agg")
from matplotlib import pyplot as plt


HERE = Path(__file__).parent


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=HERE / "mnist", help="pipeline folder or Hub id (default: the embedded model)")
    add("--dataset", default=HERE / "mnist" / "data", help="images with labels (default: its test digits)")
    add("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (default: 0.25)")
    add("--n", type=int, default=10_000, help="most copies of an image (default: 10,000)")
    add("--n0", type=int, default=10, help="copies that choose the candidate (default: 10)")
    add("--alpha", type=float, default=0.001)
    add("--batch-size", type=int, default=64)
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="a few images for each part")
    add("--compile", action="store_true", help="also time torch.compile (needs a C++ compiler, a minute of warm-up)")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    add("--output", type=Path, default=Path("benchmark"), help="folder for the report (default: benchmark)")
    return parser.parse_args()


class Benchmark:
    """The model, the images and the report that the parts share."""

    def __init__(self, args):
        self.args = args
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.pipe = NoisedDiffusionClassifierPipeline.from_pretrained(args.model).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.weights, self.done = weight_hash(self.pipe.unet), {}
        dataset, image_column, label_column = load_labelled_images(str(args.dataset), "test")
        self.images, self.labels = dataset[image_column], dataset[label_column]
        self.radii = ((args.sigma,), (args.sigma, 2 * args.sigma))
        self.tau = 2 * args.sigma  # model units
        self.reference_levels = NoiseLevels.reference_grid(self.tau, 126)
        self.per_copy = self.pipe.denoiser.num_classes * len(self.reference_levels) + 1  # of the reference
        args.output.mkdir(parents=True, exist_ok=True)
        self.report = open(args.output / "benchmark.md", "w")
        self.kept = open(args.output / "certificates.jsonl", "a+")
        self.kept.seek(0)
        for line in map(json.loads, self.kept):
            found = Certificate.from_dict(line["certificate"]), line["seconds"]
            self.done.setdefault(line["settings"], []).append(found)

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        print(text, file=self.report, flush=True)

    def table(self, rows: list[dict]) -> None:
        self.say("| " + " | ".join(rows[0]) + " |")
        self.say("|" + " --- |" * len(rows[0]))
        for row in rows:
            self.say("| " + " | ".join(f"{v:,.4g}" if isinstance(v, float) else f"{v}" for v in row.values()) + " |")
        self.say()

    def batch(self, count: int) -> torch.Tensor:
        """The first images, pixel units, on the model's device."""
        pipe = self.pipe
        images, _ = to_pixel_batch(list(self.images[:count]), pipe.unet.config.in_channels, pipe.denoiser.image_size)
        return images.to(pipe.device)

    def certify(self, count: int, **settings) -> tuple[list[Certificate], np.ndarray]:
        """Certificates of the first images, eight at a time, and the seconds of each; none is made twice."""
        settings = {"n0": self.args.n0, "n": self.args.n, "batch_size": self.args.batch_size, **settings}
        settings = {"sigma": self.args.sigma, "alpha": self.args.alpha, "seed": self.args.seed, **settings}
        told = repr((self.weights, self.args.dataset, sorted(settings.items(), key=lambda item: item[0])))
        done = self.done.setdefault(told, [])
        for first in tqdm(range(len(done), count, 8), leave=False):
            images, start = list(self.images[first : min(first + 8, count)]), time.perf_counter()
            certificates = self.pipe.certify(images, **settings)
            seconds = (time.perf_counter() - start) / len(images)
            for certificate in certificates:
                done.append((certificate, seconds))
                line = {"settings": told, "seconds": seconds, "certificate": certificate.to_dict()}
                print(json.dumps(line), file=self.kept, flush=True)
        return [certificate for certificate, _ in done[:count]], np.array([seconds for _, seconds in done[:count]])

    def each(self, certificates: list[Certificate], seconds: np.ndarray, radii: tuple[float, ...]) -> None:
        """One line for each image."""
        for index, (found, wall) in enumerate(zip(certificates, seconds, strict=True)):
            decisions = ", ".join(f"{r:g} {'proved' if self.right(found, index, r) else 'not'}" for r in radii)
            self.say(
                f"    {index:3}: {self.labels[index]} -> {found.label}, radius {found.radius:.3f} ({decisions}), "
                f"{found.votes:,} copies, {found.evaluations:,} evaluations, {wall:.1f} s"
            )
        self.say()

    def right(self, found: Certificate, index: int, radius: float) -> bool:
        return found.label == self.labels[index] and found.radius >= radius

    def certified(self, certificates: list[Certificate], radius: float) -> int:
        """How many are right and proved at this radius."""
        return sum(self.right(found, index, radius) for index, found in enumerate(certificates))

    def acr(self, certificates: list[Certificate]) -> float:
        """Average certified radius, a wrong label or an abstention counting as 0."""
        return float(np.mean([self.right(c, index, 0) * c.radius for index, c in enumerate(certificates)]))


@torch.inference_mode()
def reference_votes(bench: Benchmark, image: torch.Tensor, copies: int, generator: torch.Generator) -> list[int]:
    """Classes of noisy copies by the reference procedure: each copy alone, its classes one by one."""
    denoiser, levels = bench.pipe.denoiser, bench.reference_levels
    sigmas, weights = (image.new_tensor(values) for values in (levels.sigmas, levels.weights))
    votes = []
    for _ in range(copies):
        noise = torch.randn(image.shape, generator=generator).to(image)
        x_tau = 2 * (image + bench.args.sigma * noise) - 1
        x0_hat = denoiser(x_tau[None], bench.tau)
        eps = torch.randn((len(levels), *image.shape), generator=generator).to(image)
        x_i = x0_hat + sigmas.view(-1, 1, 1, 1) * eps
        losses = []
        for label in range(denoiser.num_classes):
            x0 = denoiser(x_i, sigmas, torch.full((len(levels),), label, device=image.device))
            losses.append((weights * (x0 - x0_hat).square().flatten(1).sum(1)).sum().item())
        votes.append(int(np.argmin(losses)))
    return votes


def cost(bench: Benchmark) -> None:
    """Evaluations for the decisions at the radius sigma, and at sigma and 2 sigma."""
    args, digits = bench.args, 4 if bench.args.quick else 100
    by_formula = args.n * bench.per_copy
    bench.say(f"## Cost of a decision: {digits} digits, n at most {args.n:,}, n0 {args.n0}, alpha {args.alpha}\n")
    rows, lever_rows = [], []
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for radii, style in zip(bench.radii, ("-", "--"), strict=True):
        certificates, seconds = bench.certify(digits, radii=radii, bound="mixture")
        bench.each(certificates, seconds, radii)
        spent = np.array([certificate.evaluations for certificate in certificates])
        made = np.array([certificate.votes for certificate in certificates])
        certified = ", ".join(f"{bench.certified(certificates, radius)}" for radius in radii)
        rows.append(
            {
                "radii": radii,
                "certified": f"{certified} of {digits}",
                "ACR": bench.acr(certificates),
                "copies, mean": float(made.mean()),
                "evaluations, mean": float(spent.mean()),
                "median": float(np.median(spent)),
                "seconds an image": seconds.mean(),
                "reference by formula": f"{by_formula:,}",
                "times fewer": by_formula / spent.mean(),
            }
        )
        lever_rows += levers(bench, radii, made, spent)
        # the frontier: share of the images that are rightly certified with at most so many evaluations each
        enough = [c for index, c in enumerate(spent) if bench.right(certificates[index], index, radii[-1])]
        share = np.arange(1, len(enough) + 1) / digits
        axis.step(np.sort(enough), share, style, where="post", label=f"radius {radii[-1]}, asked for {radii}")
    bench.table(rows)
    bench.say("What each lever gives alone (the reference's cost by formula, divided by its factor), and all three:\n")
    bench.table(lever_rows)
    axis.axvline(by_formula, color="black", linestyle=":", label=f"reference, n = {args.n:,} (by formula)")
    axis.set(xscale="log", ylim=(0, 1), xlabel="network evaluations on an image, at most", ylabel="certified accuracy")
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    figure.savefig(args.output / "frontier.png", dpi=150)
    bench.say("![certified accuracy against evaluations](frontier.png)\n")


def levers(bench: Benchmark, radii: tuple[float, ...], made: np.ndarray, spent: np.ndarray) -> list[dict]:
    """What each of the three gives, the other two left as the reference has them."""
    ours, total = bench.pipe.classifier(bench.args.sigma), bench.args.n * bench.per_copy
    all_classes, per_copy = ours.evaluations_per_image, spent.sum() / made.sum()
    factors = {
        f"levels: {len(bench.reference_levels)} to {len(ours.levels)}": bench.per_copy / all_classes,
        f"classes sifted: {all_classes} to {per_copy:.1f} evaluations a copy": all_classes / per_copy,
        f"copies: {bench.args.n:,} to {made.mean():.0f}": bench.args.n / made.mean(),
    }
    factors["all three"] = float(np.prod(list(factors.values())))
    return [
        {"radii": radii, "lever": name, "factor": float(factor), "evaluations": float(total / factor)}
        for name, factor in factors.items()
    ]


def reference(bench: Benchmark) -> None:
    """The reference as it runs, ours with everything but the loop alike, and ours: the same images and copies."""
    args, n0, (digits, n) = bench.args, 1, (1, 44) if bench.args.quick else (2, 100)
    bench.say(f"## The same draws budget, run: {digits} digits, n0 {n0}, n {n} for all three\n")
    images = bench.batch(digits)
    generator, found, seconds = torch.Generator().manual_seed(args.seed), [], []
    for image in images:
        start = time.perf_counter()
        votes = reference_votes(bench, image, n0 + n, generator)
        seconds.append(time.perf_counter() - start)
        counts = [dict(Counter(part)) for part in (votes[:n0], votes[n0:])]
        found.append(Certificate.from_counts(*counts, args.sigma, args.alpha, evaluations=(n0 + n) * bench.per_copy))
    results = {"reference loop": (found, np.array(seconds))}
    settings = {"n0": n0, "n": n}
    results["same levels, classes, n: pooled"] = bench.certify(
        digits, levels=bench.reference_levels, method="apndc-clean", **settings
    )
    results["calibrated, sifted, fixed n"] = bench.certify(digits, **settings)
    results["calibrated, sifted, stopped"] = bench.certify(digits, radii=bench.radii[0], n0=n0, n=n)
    for name, (found, seconds) in results.items():
        bench.say(f"{name}:")
        bench.each(found, seconds, (0, args.sigma))
    spent = [np.mean([c.evaluations for c in found]) for found, _ in results.values()]
    bench.table(
        [
            {
                "procedure": name,
                "evaluations an image": float(evaluations),
                "seconds an image": seconds.mean(),
                "evaluations a second": float(evaluations / seconds.mean()),
                "certified at 0 and sigma": ", ".join(f"{bench.certified(found, r)}" for r in (0, args.sigma)),
                "ACR": bench.acr(found),
                "reference loop's time, times": results["reference loop"][1].mean() / seconds.mean(),
            }
            for (name, (found, seconds)), evaluations in zip(results.items(), spent, strict=True)
        ]
    )


@torch.inference_mode()
def single_copies(bench: Benchmark) -> None:
    """Accuracy on single noisy copies: the calibrated classifier and the reference's on the same copies."""
    args, copies = bench.args, min(20 if bench.args.quick else 500, len(bench.labels))
    bench.say(f"## One noisy copy of each of {copies} digits, the same copies for both\n")
    images = bench.batch(copies)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(args.seed)).to(images)
    noisy = images + args.sigma * noise
    classifiers = {
        "reference, 126 points": bench.pipe.classifier(
            args.sigma, "apndc-clean", bench.reference_levels, args.batch_size
        ),
        "calibrated, all classes": unsifted(bench),
        "calibrated, sifted": bench.pipe.classifier(args.sigma, batch_size=args.batch_size),
    }
    rows = []
    for name, classifier in classifiers.items():
        right = 0
        for first in tqdm(range(0, copies, 20), leave=False):
            part = noisy[first : first + 20]
            logits = classifier(part, seeds=list(range(first, first + len(part))))
            right += sum(
                a == b for a, b in zip(logits.argmax(1).tolist(), bench.labels[first : first + 20], strict=False)
            )
        rows.append(
            {
                "classifier": name,
                "accuracy": f"{right / copies:.1%}",
                "evaluations a copy": classifier.evaluations / copies,
            }
        )
    bench.table(rows)


def unsifted(bench: Benchmark):
    """The calibrated levels with all classes at each of them."""
    calibrated = bench.pipe.classifier(bench.args.sigma).levels
    levels = NoiseLevels(calibrated.sigmas, calibrated.weights)
    return bench.pipe.classifier(bench.args.sigma, levels=levels, batch_size=bench.args.batch_size)


def decisions(bench: Benchmark) -> None:
    """Whether stopping early decides as a fixed number of copies does."""
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
                        bench.right(a, index, radius) and bench.right(b, index, radius)
                        for index, (a, b) in enumerate(zip(fixed, stopped, strict=True))
                    ),
                    "evaluations, fixed": float(np.mean([c.evaluations for c in fixed])),
                    "stopped": float(np.mean([c.evaluations for c in stopped])),
                }
            )
    bench.table(rows)


def full_radius(bench: Benchmark) -> None:
    """The radius itself, no radii given: classes sifted, or stopped by resolution, against all classes and copies."""
    digits, n = (2, 60) if bench.args.quick else (20, 1_000)
    bench.say(f"## The full radius: {digits} digits, n = {n:,}\n")
    loose = bench.pipe.classifier(bench.args.sigma).levels.loosened(2)
    runs = {
        "all classes at all calibrated levels, fixed n": bench.certify(digits, n=n, levels=unsifted(bench).levels),
        "sifted at twice the thresholds, fixed n": bench.certify(digits, n=n, levels=loose),
        "sifted, fixed n": bench.certify(digits, n=n),
        "sifted, resolution 0.01": bench.certify(digits, n=n, resolution=0.01),
    }
    full = bench.acr(runs["all classes at all calibrated levels, fixed n"][0])
    rows = []
    for name, (certificates, seconds) in runs.items():
        spent = float(np.mean([certificate.evaluations for certificate in certificates]))
        rows.append(
            {
                "procedure": name,
                "ACR": bench.acr(certificates),
                "of the first": bench.acr(certificates) / full if full else 1.0,
                "evaluations an image": spent,
                "reference by formula, times": n * bench.per_copy / spent,
                "seconds an image": seconds.mean(),
            }
        )
    bench.table(rows)


def unsmoothed(bench: Benchmark) -> None:
    """Certificates of the diffusion classifier itself: losses clipped only, as in the paper, and capped."""
    first, digits, n = 100, 2 if bench.args.quick else 30, 1_000
    bench.say(f"## Without smoothing: digits {first} to {first + digits - 1}, n0 20, n {n:,}\n")
    images, labels = list(bench.images[first : first + digits]), bench.labels[first : first + digits]
    rows = []
    for cap in (4.0, LEVELS.cap):
        settings = {"levels": replace(LEVELS, cap=cap), "n": n, "alpha": bench.args.alpha, "seed": bench.args.seed}
        found = [bench.pipe.certify(image, sigma=0, **settings) for image in tqdm(images, leave=False)]
        radii = [c.radius if c.label == label else 0.0 for c, label in zip(found, labels, strict=True)]
        rows.append(
            {
                "level": LEVELS.sigmas[0],
                "cap": cap,
                "certified": f"{sum(not c.abstained for c in found)} of {digits}",
                "rightly": sum(radius > 0 for radius in radii),
                **{f"at {least}": sum(radius >= least for radius in radii) for least in (0.05, 0.1, 0.2)},
                "ACR": float(np.mean(radii)),
                "evaluations an image": float(np.mean([c.evaluations for c in found])),
            }
        )
    bench.table(rows)


def network(bench: Benchmark) -> None:
    """Speed and votes of the network's variants, and the share of the time outside of it at the quickstart's n0, n."""
    args, pipe = bench.args, bench.pipe
    digits, n = (1, 100) if args.quick else (4, 500)
    bench.say(f"## The network: {digits} digits, n0 20, n {n}\n")
    clock, started = [0.0], [0.0]
    handles = [
        pipe.unet.register_forward_pre_hook(lambda *_: started.__setitem__(0, time.perf_counter())),
        pipe.unet.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + time.perf_counter() - started[0])),
    ]
    rows, plain = [], None
    variants = {
        "float32": nullcontext(),
        "channels_last": nullcontext(),
        "batch size 32": nullcontext(),
        "autocast bfloat16": torch.autocast(pipe.device.type, torch.bfloat16),
    }
    if args.compile:
        variants["compiled, dynamic batch"] = nullcontext()
    for name, context in variants.items():
        if name.startswith("compiled"):
            pipe.unet.compile(dynamic=True)
            bench.certify(1, n0=3, n=30)  # warm-up
        pipe.unet.to(memory_format=torch.channels_last if name == "channels_last" else torch.contiguous_format)
        bench.done.clear()
        clock[0] = 0.0
        with context:
            batch_size = 32 if name == "batch size 32" else args.batch_size
            certificates, seconds = bench.certify(digits, n0=20, n=n, batch_size=batch_size)
        plain = certificates if plain is None else plain
        moved = sum(a.votes_moved(b) for a, b in zip(plain, certificates, strict=True))
        rows.append(
            {
                "variant": name,
                "evaluations a second": float(sum(c.evaluations for c in certificates) / seconds.sum()),
                "time outside the network": f"{1 - clock[0] / seconds.sum():.1%}"
                if pipe.device.type == "cpu"
                else "-",
                "votes that moved": f"{moved} of {sum(a.votes for a in plain)}",
            }
        )
    for handle in handles:
        handle.remove()
    bench.table(rows)


PARTS = {
    "cost": cost,
    "single-copies": single_copies,
    "decisions": decisions,
    "full-radius": full_radius,
    "unsmoothed": unsmoothed,
    "reference": reference,
    "network": network,  # the last one: it leaves the network compiled
}


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


if __name__ == "__main__":
    main()
