"""Put certificates to the test: certify digits, then look for images of another class inside and outside the radius.

    python examples/attack_certificates.py              # about 45 minutes of one core
    python examples/attack_certificates.py --limit 2    # a few minutes

Every certified image, rightly or not, is attacked at multiples of its own radius, by back-propagation and by
score-function gradients. It has fallen where the smoothed classifier predicts another class than the certified one,
has abstained where it predicts none, which proves nothing. 1 means just inside the radius, where nothing may fall. But
a certificate is wrong with probability at most alpha, and so is each prediction: of m digits attacked inside by two
gradients up to about 3 * alpha * m may seem to fall.

The table is printed as Markdown and kept in --output, with a file of JSON lines: a line for each certificate, and one
for each image and distance, on the disk as soon as it is there. The exit code is 1 if an image fell inside.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from labelled_images import load_labelled_images
from tqdm.auto import tqdm

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels, SmoothedClassifier, attack
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
    add("--limit", type=int, default=32, help="only the first so many images (default: 32)")
    add("--sigma", type=float, default=0.25, help="smoothing noise, pixel units (default: 0.25)")
    add("--n", type=int, default=500, help="noisy copies behind each certificate (default: 500)")
    add("--alpha", type=float, default=0.001, help="of each certificate and of each prediction (default: 0.001)")
    add("--multiples", type=float, nargs="+", default=[1, 1.25, 2, 3, 4], help="distances in radii (1 1.25 2 3 4)")
    add("--steps", type=int, default=20, help="gradient steps of an attack (default: 20)")
    add("--draws", type=int, default=4, help="noisy copies for a gradient by back-propagation; 0: none (default: 4)")
    add("--score-draws", type=int, default=10, help="likewise, for a score-function gradient (default: 10)")
    add("--restarts", type=int, default=1, help="starts of each attack (default: 1, the image)")
    add("--levels", type=float, nargs=2, default=[3, 6], help="the attack's, in model units (default: 3 6)")
    add("--judging", type=int, default=200, help="noisy copies behind each prediction (default: 200)")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("attacks"), help="folder for table and records (default: attacks)")
    args = parser.parse_args()
    if not gradients(args) or any(draws < 0 or draws % 2 for draws in gradients(args).values()):
        parser.error("--draws and --score-draws: accepted are even numbers, for antithetic pairs, not both 0.")
    if min(args.multiples) <= 0 or min(args.steps, args.restarts, args.judging, args.limit) < 1:
        parser.error("--multiples, --steps, --restarts, --judging and --limit: accepted are numbers above 0.")
    return args


def outcome(attacks: list[dict]) -> str:
    """Of all attacks on an image at a distance: the worst for the certificate."""
    return max((found["outcome"] for found in attacks), key=OUTCOMES.index)


def fell(record: dict) -> bool:
    """Whether an attack on an image at a distance succeeded."""
    return outcome(record["attacks"]) == "fallen"


def table(records: list[dict]) -> str:
    """A row for each distance."""
    kinds = list(dict.fromkeys(found["gradient"] for record in records for found in record["attacks"]))
    head = [
        "distance, radii",
        "attacked",
        *OUTCOMES,
        *(f"by {gradient}" for gradient in kinds),
        "mean l2 distance",
    ]
    rows = [head, ["---"] * len(head)]
    for multiple in sorted({record["multiple"] for record in records}):
        attacks = [record["attacks"] for record in records if record["multiple"] == multiple]
        outcomes = [outcome(each) for each in attacks]
        fallen = [found["gradient"] for each in attacks for found in each if found["outcome"] == "fallen"]
        mean = np.mean([found["distance"] for each in attacks for found in each])
        rows.append(
            [
                "1, just inside" if multiple == 1 else f"{multiple:g}",
                len(attacks),
                *map(outcomes.count, OUTCOMES),
                *map(fallen.count, kinds),
                f"{mean:.3f}",
            ]
        )
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def attack_all(smoothed, surrogate, image, certificate, radius: float, args) -> list[dict]:
    """What each kind of gradient finds at this distance."""
    judging = {"n": args.judging, "alpha": args.alpha, "seed": args.seed}
    attacks = []
    for gradient, draws in gradients(args).items():
        settings = {"steps": args.steps, "draws": draws, "restarts": args.restarts, "gradient": gradient}
        found = attack(smoothed, image, certificate.label, radius, surrogate=surrogate, **settings, **judging)
        said = {"outcome": found.outcome, "distance": found.distance, "counts": found.prediction.counts}
        attacks.append({**settings, **said})
    return attacks


def gradients(args) -> dict[str, int]:
    """The kinds of gradients that are asked for, and the noisy copies for each."""
    kinds = {"backprop": args.draws, "score-function": args.score_draws}
    return {gradient: draws for gradient, draws in kinds.items() if draws}


def main():
    args, start = parse_args(), time.perf_counter()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(args.model).to(device)
    dataset, image_column, label_column = load_labelled_images(str(args.dataset), f"{args.split}[:{args.limit}]")
    images, _ = to_pixel_batch(list(dataset[image_column]), pipe.denoiser.image_channels, pipe.denoiser.image_size)
    images, labels = images.to(device), dataset[label_column]
    smoothed = SmoothedClassifier(pipe.classifier(args.sigma), args.sigma)
    surrogate = pipe.classifier(args.sigma, levels=NoiseLevels.log_grid(*args.levels, 2))

    with RecordWriter(args.output) as records, tqdm(total=len(images) * (1 + len(args.multiples))) as bar:
        certified, attacked = {}, []
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

    inside = [record["index"] for record in attacked if record["multiple"] <= 1 and fell(record)]
    right = sum(certificate.label == labels[index] for index, certificate in certified.items())
    evaluations = smoothed.base_classifier.evaluations + surrogate.evaluations
    radius = np.mean([certificate.radius for certificate in certified.values()] or 0)
    report = f"""{len(certified)} of {len(images)} images certified, {right} of them rightly, at \
sigma {args.sigma:g}, n {args.n:,}, alpha {args.alpha:g}; radius {radius:.3f} on average.

{table(attacked)}

Inside the radius {len(inside)} fell. {evaluations:,} network evaluations forward, \
{(time.perf_counter() - start) / 60:.0f} minutes ({time.process_time() / 60:.0f} of computing)."""
    print(report)
    (args.output / "attacks.md").write_text(report + "\n")
    if inside:
        chance = (1 + len(gradients(args))) * args.alpha * len(certified)
        sys.exit(
            f"{len(inside)} CERTIFIED IMAGES FELL INSIDE THEIR RADIUS: {inside}. With alpha {args.alpha:g} for each "
            f"certificate and each prediction, {len(certified)} digits explain about {chance:.2g} of them by chance."
        )


if __name__ == "__main__":
    main()
