"""Put certificates to the test: certify digits, then look for images of another class inside and outside the radius.

    python examples/attack_certificates.py              # about 45 minutes of one core
    python examples/attack_certificates.py --limit 2    # a few minutes

Every certified image, correct or not, is attacked at multiples of its own radius, by back-propagation and by
score-function gradients. An image has *fallen* where the smoothed classifier predicts another class than the certified
one. Where it predicts none, it has *abstained*, which proves nothing. A multiple of 1 means just inside the radius,
where nothing may fall. But a certificate is wrong with probability at most alpha, and so is each prediction: of m
digits attacked inside their radius with two gradients, up to about 3 * alpha * m may seem to fall.

The program prints its table as Markdown and writes it to --output, beside a file of JSON lines: one line for each
certificate and one for each image and distance, written as soon as it is known. The exit code is 1 if an image fell
inside its radius.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from labelled_images import load_labelled_images
from tqdm.auto import tqdm

from diffusers_ndc import Certificate, NoisedDiffusionClassifierPipeline, NoiseLevels, SmoothedClassifier, attack
from diffusers_ndc.evaluation.records import RecordWriter
from diffusers_ndc.pipelines.inputs import to_pixel_batch


MODEL = Path(__file__).parent / "mnist"
OUTCOMES = ("kept", "abstained", "fallen")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=MODEL, help="pipeline folder or Hub id (default: the embedded model)")
    add("--dataset", default=MODEL / "data", help="images with labels (default: its test digits)")
    add("--split", default="test")
    add("--limit", type=int, default=32, help="number of images, from the first (default: 32)")
    add("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (default: 0.25)")
    add("--n", type=int, default=500, help="noisy copies behind each certificate (default: 500)")
    add("--alpha", type=float, default=0.001, help="error probability of a certificate or prediction (default: 0.001)")
    add("--multiples", type=float, nargs="+", default=[1, 1.25, 2, 3, 4], help="distances in radii (1 1.25 2 3 4)")
    add("--steps", type=int, default=20, help="gradient steps of each attack (default: 20)")
    add("--draws", type=int, default=4, help="noisy copies per back-propagated gradient; 0: none (default: 4)")
    add("--score-draws", type=int, default=10, help="noisy copies per score-function gradient; 0: none (default: 10)")
    add("--restarts", type=int, default=1, help="starting points of each attack (default: 1, the image itself)")
    add("--levels", type=float, nargs=2, default=[3, 6], help="noise levels to attack, model units (default: 3 6)")
    add("--judging", type=int, default=200, help="noisy copies behind each prediction (default: 200)")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("attacks"), help="folder for table and records (default: attacks)")
    args = parser.parse_args()
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message unless all options are in range."""
    for name in ("draws", "score_draws"):
        value = getattr(args, name)
        if value < 0 or value % 2:
            parser.error(f"`--{name.replace('_', '-')}` must be an even number (for antithetic pairs), got {value}.")
    if not gradients(args):
        parser.error("`--draws` or `--score-draws` must be above 0, got 0 for both.")
    for name in ("steps", "restarts", "judging", "limit"):
        if getattr(args, name) < 1:
            parser.error(f"`--{name}` must be at least 1, got {getattr(args, name)}.")
    if min(args.multiples) <= 0:
        parser.error(f"`--multiples` must be above 0, got {min(args.multiples):g}.")


def gradients(args: argparse.Namespace) -> dict[str, int]:
    """The kinds of gradients to attack with, and the noisy copies for each."""
    copies = {"backprop": args.draws, "score-function": args.score_draws}
    return {gradient: count for gradient, count in copies.items() if count}


def worst_outcome(attacks: list[dict]) -> str:
    """Of all attacks on an image at a distance: the worst outcome for the certificate."""
    return max((each["outcome"] for each in attacks), key=OUTCOMES.index)


def table(records: list[dict]) -> str:
    """A Markdown table with a row for each distance."""
    kinds = list(dict.fromkeys(each["gradient"] for record in records for each in record["attacks"]))
    heads = ["distance, radii", "attacked", *OUTCOMES, *(f"by {kind}" for kind in kinds), "mean l2 distance"]
    rows = [heads, ["---"] * len(heads)]
    for multiple in sorted({record["multiple"] for record in records}):
        images = [record["attacks"] for record in records if record["multiple"] == multiple]
        attacks = [each for image in images for each in image]
        outcomes = [worst_outcome(image) for image in images]
        fallen_by = [each["gradient"] for each in attacks if each["outcome"] == "fallen"]
        rows.append(
            [
                "1, just inside" if multiple == 1 else f"{multiple:g}",
                len(images),
                *(outcomes.count(outcome) for outcome in OUTCOMES),
                *(fallen_by.count(kind) for kind in kinds),
                f"{np.mean([each['distance'] for each in attacks]):.3f}",
            ]
        )
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def attack_all(smoothed, surrogate, image, certificate, radius: float, args) -> list[dict]:
    """The outcome of an attack by each kind of gradient at this distance."""
    judging = {"n": args.judging, "alpha": args.alpha, "seed": args.seed}
    attacks = []
    for gradient, draws in gradients(args).items():
        settings = {"steps": args.steps, "draws": draws, "restarts": args.restarts, "gradient": gradient}
        result = attack(smoothed, image, certificate.label, radius, surrogate=surrogate, **settings, **judging)
        attacks.append(
            {
                **settings,
                "outcome": result.outcome,
                "distance": result.distance,
                "counts": result.prediction.counts,
            }
        )
    return attacks


def certify_and_attack(smoothed, surrogate, images, labels, args) -> tuple[dict[int, Certificate], list[dict]]:
    """Certificates by image, without abstentions, and a record of the attacks on each image at each distance."""
    certified, attacked = {}, []
    with RecordWriter(args.output) as records, tqdm(total=len(images) * (1 + len(args.multiples))) as bar:
        for index, certificate in smoothed.certify_each(images, n0=20, n=args.n, alpha=args.alpha, seed=args.seed):
            records.write({"index": index, "label": labels[index], "certificate": certificate.to_dict()})
            bar.update()
            if not certificate.abstained:
                certified[index] = certificate
        for index, certificate in sorted(certified.items()):
            for multiple in args.multiples:
                radius = multiple * certificate.radius
                attacks = attack_all(smoothed, surrogate, images[index], certificate, radius, args)
                attacked.append({"index": index, "multiple": multiple, "radius": radius, "attacks": attacks})
                records.write(attacked[-1])
                bar.update()
    return certified, attacked


def main():
    args, start = parse_args(), time.perf_counter()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(args.model).to(device)
    dataset, image_column, label_column = load_labelled_images(str(args.dataset), f"{args.split}[:{args.limit}]")
    images, _ = to_pixel_batch(list(dataset[image_column]), pipe.denoiser.image_channels, pipe.denoiser.image_size)
    images, labels = images.to(device), dataset[label_column]
    smoothed = SmoothedClassifier(pipe.classifier(args.sigma), args.sigma)
    surrogate = pipe.classifier(args.sigma, levels=NoiseLevels.log_grid(*args.levels, 2))
    certified, attacked = certify_and_attack(smoothed, surrogate, images, labels, args)

    inside = [
        record["index"]
        for record in attacked
        if record["multiple"] <= 1 and worst_outcome(record["attacks"]) == "fallen"
    ]
    correct = sum(certificate.label == labels[index] for index, certificate in certified.items())
    evaluations = smoothed.base_classifier.evaluations + surrogate.evaluations
    radius = np.mean([certificate.radius for certificate in certified.values()] or 0)
    report = f"""{len(certified)} of {len(images)} images certified, {correct} of them correctly, at \
sigma {args.sigma:g}, n {args.n:,}, alpha {args.alpha:g}; radius {radius:.3f} on average.

{table(attacked)}

{len(inside)} images fell inside their radius. {evaluations:,} network evaluations forward, \
{(time.perf_counter() - start) / 60:.0f} minutes ({time.process_time() / 60:.0f} of computing)."""
    print(report)
    (args.output / "attacks.md").write_text(report + "\n")
    if inside:
        chance = (1 + len(gradients(args))) * args.alpha * len(certified)
        sys.exit(
            f"{len(inside)} CERTIFIED IMAGES FELL INSIDE THEIR RADIUS: {inside}. With alpha {args.alpha:g} for each "
            f"certificate and each prediction, about {chance:.2g} of {len(certified)} are to be expected by chance."
        )


if __name__ == "__main__":
    main()
