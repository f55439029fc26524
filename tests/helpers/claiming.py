"""Two processes share images, of which one is never finished before all the others.

    accelerate launch --multi_gpu --num_processes 2 tests/helpers/claiming.py

Whoever claims image 0 keeps it until all other images are finished, by whomever. Prints how many images that process
and the other one claimed.
"""

import time

from accelerate import Accelerator

from diffusers_ndc.evaluation.claims import Claims


IMAGES = 20
DEADLINE = 60
"""Seconds until a process that waits for the others gives up."""


def wait_for_others(claims: Claims) -> None:
    """Wait until one image alone is unfinished.

    Raises:
        TimeoutError: The other images are still unfinished after `DEADLINE` seconds, as if nobody else took them.
    """
    start = time.monotonic()
    while claims.finished < IMAGES - 1:
        if time.monotonic() - start > DEADLINE:
            raise TimeoutError(f"{claims.finished} of {IMAGES} images are finished")
        time.sleep(0.01)


def main():
    accelerator = Accelerator(cpu=True)
    claims = Claims(IMAGES, patience=DEADLINE)
    worker = "quick"
    for image in claims:
        if image == 0:
            worker = "slow"
            wait_for_others(claims)
        claims.finish({worker: 1})
    if accelerator.is_main_process:
        claims.wait(lambda: None, pause=0.01)
        print(f"slow {claims.count('slow')} quick {claims.count('quick')}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
