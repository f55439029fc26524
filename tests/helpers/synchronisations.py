"""Print, as JSON, how often certificates wait for a device, and how much work there was. Run it as a program."""

import json
from functools import partial

import torch
from diffusers import DDPMScheduler

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels, SiftingRule, SmoothedClassifier
from diffusers_ndc.diffusion.sifting import SiftingPool
from helpers import simulated_device
from helpers.networks import tiny_unet
from helpers.sifters import random_sift


RULE = SiftingRule((0.1,))


def certify(n, rule, sifted, grid):
    """Certify an image with n copies; returns waits, additions to the pool, steps, and those that decide copies."""
    denoiser = Denoiser(tiny_unet(), DDPMScheduler(), null_class=3)
    levels = NoiseLevels((2.0, 4.0), (1.0, 0.5), RULE if rule else None)
    sift = random_sift() if sifted else None
    classifier = NoisedDiffusionClassifier(denoiser, 0.25, "apndc", levels, 16, sift=sift)
    smoothed = SmoothedClassifier(classifier, 0.25, grid)
    image = torch.randint(256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 255
    (expected,) = smoothed.certify(image, n0=1, n=n, seed=0)

    simulated_device.to_simulated(classifier)
    work = {"adds": 0, "steps": 0, "decided": 0}
    add, step = SiftingPool.add, SiftingPool.step

    def counted_add(pool, copies):
        work["adds"] += 1
        add(pool, copies)

    def counted_step(pool):
        decided = step(pool)
        work["steps"] += 1
        work["decided"] += bool(decided.keys)
        return decided

    SiftingPool.add, SiftingPool.step = counted_add, counted_step
    image = image.to(simulated_device.NAME)
    simulated_device.waits.clear()
    (certificate,) = smoothed.certify(image, n0=1, n=n, seed=0)
    SiftingPool.add, SiftingPool.step = add, step
    assert certificate.device == simulated_device.NAME and certificate.counts == expected.counts
    return {"waits": len(simulated_device.waits), **work}


def main():
    """Each case with few and with many copies."""
    cases = {
        "all classes": partial(certify, rule=False, sifted=False, grid=None),
        "rule": partial(certify, rule=True, sifted=False, grid=None),
        "sifter and rule": partial(certify, rule=True, sifted=True, grid=None),
        "grid": partial(certify, rule=True, sifted=False, grid=16),
    }
    print(json.dumps({name: [case(n=20), case(n=80)] for name, case in cases.items()}))


if __name__ == "__main__":
    main()
