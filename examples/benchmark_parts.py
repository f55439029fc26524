"""The parts of `benchmark.py`: each measures one thing and says it as a Markdown table."""

import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import matplotlib
import numpy as np
import torch
from benchmark_classes import classes
from benchmark_shared import Benchmark, NetworkClock
from benchmark_sifter import sifter
from benchmark_stopping import decisions, limits
from benchmark_threads import threads
from tqdm.auto import tqdm

from diffusers_ndc import Certificate, NoiseLevels
from diffusers_ndc.diffusion.margins import UNSMOOTHED_LEVELS
from diffusers_ndc.diffusion.reference import apndc_clean_logits
from diffusers_ndc.diffusion.units import model_images


matplotlib.use("Agg")
from matplotlib import pyplot as plt


@torch.inference_mode()
def reference_votes(bench: Benchmark, image: torch.Tensor, copies: int, generator: torch.Generator) -> list[int]:
    """Classes of noisy copies by the reference procedure: each copy alone, its classes one by one."""
    levels = bench.reference_levels
    votes = []
    for _ in range(copies):
        noise = torch.randn(image.shape, generator=generator).to(image)
        eps = torch.randn((len(levels), *image.shape), generator=generator).to(image)
        x_tau = model_images(image + bench.args.sigma * noise)
        logits = apndc_clean_logits(bench.pipe.denoiser, x_tau, bench.tau, levels, eps)
        votes.append(logits.argmax().item())
    return votes


def cost(bench: Benchmark) -> None:
    """Evaluations until radius sigma is decided, and until sigma and 2 sigma are."""
    args, digits = bench.args, 4 if bench.args.quick else 100
    by_formula = args.n * bench.reference_per_copy
    bench.say(f"## Cost of a decision: {digits} digits, n at most {args.n:,}, n0 {args.n0}, alpha {args.alpha}\n")
    rows, saving_rows = [], []
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for radii, style in zip(bench.radii, ("-", "--"), strict=True):
        certificates, seconds = bench.certify(digits, radii=radii, bound="mixture")
        bench.say_each(certificates, seconds, radii)
        spent = np.array([certificate.evaluations for certificate in certificates])
        made = np.array([certificate.votes for certificate in certificates])
        certified = ", ".join(f"{bench.certified(certificates, radius)}" for radius in radii)
        rows.append(
            {
                "radii": radii,
                "certified": f"{certified} of {digits}",
                "ACR": bench.average_radius(certificates),
                "copies, mean": float(made.mean()),
                "evaluations, mean": float(spent.mean()),
                "median": float(np.median(spent)),
                "seconds an image": seconds.mean(),
                "reference by formula": f"{by_formula:,}",
                "times fewer": by_formula / spent.mean(),
            }
        )
        saving_rows += savings(bench, radii, made, spent)
        # share of the images that are correct and certified with at most this number of evaluations each
        enough = [
            count
            for index, (certificate, count) in enumerate(zip(certificates, spent, strict=True))
            if bench.correct(certificate, index, radii[-1])
        ]
        share = np.arange(1, len(enough) + 1) / digits
        axis.step(np.sort(enough), share, style, where="post", label=f"radius {radii[-1]}, asked for {radii}")
    bench.table(rows)
    bench.say("What each saving gives alone (the reference's cost by formula over its factor), and all three:\n")
    bench.table(saving_rows)
    axis.axvline(by_formula, color="black", linestyle=":", label=f"reference, n = {args.n:,} (by formula)")
    axis.set(xscale="log", ylim=(0, 1), xlabel="network evaluations per image, at most", ylabel="certified accuracy")
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    figure.savefig(args.output / "frontier.png", dpi=150)
    bench.say("![certified accuracy against evaluations](frontier.png)\n")


def savings(bench: Benchmark, radii: tuple[float, ...], made: np.ndarray, spent: np.ndarray) -> list[dict]:
    """What each of the three savings gives while the other two are as in the reference."""
    ours, total = bench.pipe.classifier(bench.args.sigma), bench.args.n * bench.reference_per_copy
    all_classes, per_copy = ours.evaluations_per_image, spent.sum() / made.sum()
    factors = {
        f"levels: {len(bench.reference_levels)} to {len(ours.levels)}": bench.reference_per_copy / all_classes,
        f"classes sifted: {all_classes} to {per_copy:.1f} evaluations a copy": all_classes / per_copy,
        f"copies: {bench.args.n:,} to {made.mean():.0f}": bench.args.n / made.mean(),
    }
    factors["all three"] = float(np.prod(list(factors.values())))
    return [
        {"radii": radii, "saving": name, "factor": float(factor), "evaluations": float(total / factor)}
        for name, factor in factors.items()
    ]


def reference(bench: Benchmark) -> None:
    """The reference procedure, the pooled classifier with the same levels and classes, and this package's defaults.

    All of them certify the same images with the same number of noisy copies.
    """
    args, n0 = bench.args, 1
    digits, n = (1, 44) if args.quick else (2, 100)
    bench.say(f"## The same number of copies, run: {digits} digits, n0 {n0}, n {n} for all\n")
    generator, certificates, seconds = torch.Generator().manual_seed(args.seed), [], []
    for image in bench.batch(digits):
        start = time.perf_counter()
        votes = reference_votes(bench, image, n0 + n, generator)
        seconds.append(time.perf_counter() - start)
        selection, counts = dict(Counter(votes[:n0])), dict(Counter(votes[n0:]))
        evaluations = (n0 + n) * bench.reference_per_copy
        certificates.append(
            Certificate.from_counts(selection, counts, args.sigma, args.alpha, evaluations=evaluations)
        )
    results = {
        "reference loop": (certificates, np.array(seconds)),
        "same levels, classes, n: pooled": bench.certify(
            digits, levels=bench.reference_levels, method="apndc-clean", n0=n0, n=n
        ),
        "calibrated, sifted, fixed n": bench.certify(digits, n0=n0, n=n),
        "calibrated, sifted, stopped": bench.certify(digits, radii=bench.radii[0], n0=n0, n=n),
    }
    reference_seconds, rows = np.mean(seconds), []
    for name, (certificates, seconds) in results.items():
        bench.say(f"{name}:")
        bench.say_each(certificates, seconds, (0, args.sigma))
        evaluations = float(np.mean([certificate.evaluations for certificate in certificates]))
        rows.append(
            {
                "procedure": name,
                "evaluations an image": evaluations,
                "seconds an image": seconds.mean(),
                "evaluations a second": float(evaluations / seconds.mean()),
                "certified at 0 and sigma": ", ".join(f"{bench.certified(certificates, r)}" for r in (0, args.sigma)),
                "ACR": bench.average_radius(certificates),
                "reference loop's time, times": reference_seconds / seconds.mean(),
            }
        )
    bench.table(rows)


@torch.inference_mode()
def single_copies(bench: Benchmark) -> None:
    """Accuracy on single noisy copies: the calibrated classifier and the reference's, on the same copies."""
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
        predictions = []
        for first in tqdm(range(0, copies, 20), leave=False):
            part = noisy[first : first + 20]
            logits = classifier(part, seeds=list(range(first, first + len(part))))
            predictions += logits.argmax(1).tolist()
        rows.append(
            {
                "classifier": name,
                "accuracy": f"{np.mean(np.equal(predictions, bench.labels[:copies])):.1%}",
                "evaluations a copy": classifier.evaluations / copies,
            }
        )
    bench.table(rows)


def unsifted(bench: Benchmark):
    """The classifier with the calibrated levels that scores all classes at each of them."""
    calibrated = bench.pipe.classifier(bench.args.sigma).levels
    levels = NoiseLevels(calibrated.sigmas, calibrated.weights)
    return bench.pipe.classifier(bench.args.sigma, levels=levels, batch_size=bench.args.batch_size)


def full_radius(bench: Benchmark) -> None:
    """The largest radius, none asked for: sifted classes or an early stop, against all classes and all copies."""
    digits, n = (2, 60) if bench.args.quick else (20, 1_000)
    bench.say(f"## The full radius: {digits} digits, n = {n:,}\n")
    default = bench.pipe.classifier(bench.args.sigma)
    loose, sifted = default.levels.loosened(2), {} if default.sift is None else {"sift": "candidates"}
    runs = {
        "all classes at all calibrated levels, fixed n": bench.certify(digits, n=n, levels=unsifted(bench).levels),
        "sifted at twice the thresholds, fixed n": bench.certify(digits, n=n, levels=loose, **sifted),
        "sifted, fixed n": bench.certify(digits, n=n),
        "sifted, resolution 0.01": bench.certify(digits, n=n, resolution=0.01),
    }
    if default.sift is not None and default.sift.level_zero is not None:
        runs["scores of the sifter as level 0, fixed n"] = bench.certify(digits, n=n, sift="scores")
    full = bench.average_radius(runs["all classes at all calibrated levels, fixed n"][0])
    rows = []
    for name, (certificates, seconds) in runs.items():
        spent = float(np.mean([certificate.evaluations for certificate in certificates]))
        rows.append(
            {
                "procedure": name,
                "ACR": bench.average_radius(certificates),
                "of the first": bench.average_radius(certificates) / full if full else 1.0,
                "evaluations an image": spent,
                "reference by formula, times": n * bench.reference_per_copy / spent,
                "seconds an image": seconds.mean(),
            }
        )
    bench.table(rows)


def unsmoothed(bench: Benchmark) -> None:
    """Certificates of the diffusion classifier itself: losses clipped only, as in the paper, and capped."""
    first, digits, n = 100, 2 if bench.args.quick else 30, 1_000
    bench.say(f"## Without smoothing: digits {first} to {first + digits - 1}, n0 20, n {n:,}\n")
    images, labels = list(bench.images[first : first + digits]), bench.labels[first : first + digits]
    settings = {"n0": 20, "n": n, "alpha": bench.args.alpha, "seed": bench.args.seed}
    rows = []
    for cap in (4.0, UNSMOOTHED_LEVELS.cap):
        levels = replace(UNSMOOTHED_LEVELS, cap=cap)
        certificates = [
            bench.pipe.certify_unsmoothed(image, levels=levels, **settings) for image in tqdm(images, leave=False)
        ]
        radii = [c.radius if c.label == label else 0.0 for c, label in zip(certificates, labels, strict=True)]
        rows.append(
            {
                "level": levels.sigmas[0],
                "cap": cap,
                "certified": f"{sum(not c.abstained for c in certificates)} of {digits}",
                "correct": sum(radius > 0 for radius in radii),
                **{f"at {least}": sum(radius >= least for radius in radii) for least in (0.05, 0.1, 0.2)},
                "ACR": float(np.mean(radii)),
                "evaluations an image": float(np.mean([c.evaluations for c in certificates])),
            }
        )
    bench.table(rows)


def network(bench: Benchmark) -> None:
    """Speed and votes of variants of the network, and the share of the time outside it, at the quickstart's n0."""
    args, pipe = bench.args, bench.pipe
    digits, n = (1, 100) if args.quick else (4, 500)
    bench.say(f"## The network: {digits} digits, n0 20, n {n}\n")
    variants = {
        "float32": nullcontext(),
        "channels_last": nullcontext(),
        "batch size 32": nullcontext(),
        "autocast bfloat16": torch.autocast(pipe.device.type, torch.bfloat16),
    }
    if args.compile:
        variants["compiled, dynamic batch"] = nullcontext()
    clock = NetworkClock(pipe.unet)
    rows, plain = [], None
    for name, context in variants.items():
        if name.startswith("compiled"):
            pipe.unet.compile(dynamic=True)
            bench.certify(1, n0=3, n=30)  # warm-up
        pipe.unet.to(memory_format=torch.channels_last if name == "channels_last" else torch.contiguous_format)
        bench.done.clear()
        clock.seconds = 0.0
        with context:
            batch_size = 32 if name == "batch size 32" else args.batch_size
            certificates, seconds = bench.certify(digits, n0=20, n=n, batch_size=batch_size)
        if plain is None:
            plain = certificates
        moved = sum(a.votes_moved(b) for a, b in zip(plain, certificates, strict=True))
        outside = f"{1 - clock.seconds / seconds.sum():.1%}" if pipe.device.type == "cpu" else "-"
        rows.append(
            {
                "variant": name,
                "evaluations a second": float(sum(c.evaluations for c in certificates) / seconds.sum()),
                "time outside the network": outside,
                "votes that moved": f"{moved} of {sum(c.votes for c in plain)}",
            }
        )
    clock.close()
    bench.table(rows)


PARTS = {
    "cost": cost,
    "single-copies": single_copies,
    "decisions": decisions,
    "sifter": sifter,
    "classes": classes,
    "limits": limits,
    "full-radius": full_radius,
    "unsmoothed": unsmoothed,
    "reference": reference,
    "threads": threads,
    "network": network,  # last, because it leaves the network compiled
}
