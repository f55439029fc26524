"""Images of very unequal cost on two processes: how long until the last one is done, claimed or dealt out beforehand.

    accelerate launch --multi_gpu --num_processes 2 tests/makespan.py 0.05

The argument is the seconds of a cheap image; every twentieth image of the first half costs 20 times as much. Prints
the ideal time (all the work, evenly) and both times, which are measured from the first start to the last end.
"""

import sys
import time

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffusers_ndc.evaluation.claims import Claims


def makespan(accelerator, seconds, images) -> float:
    accelerator.wait_for_everyone()
    start = time.time()
    for image in images:
        time.sleep(seconds[image])
    (starts, ends) = zip(*gather_object([(start, time.time())]), strict=True)
    return max(ends) - min(starts)


def main():
    unit = float(sys.argv[1])
    # of the expensive images, dealing out every second one to each process gives them all to the first
    seconds = [unit * (20 if image < 40 and image % 20 == 0 else 1) for image in range(80)]
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    ideal = sum(seconds) / accelerator.num_processes
    claimed = makespan(accelerator, seconds, Claims(len(seconds), patience=60))
    dealt = range(len(seconds))[accelerator.process_index :: accelerator.num_processes]
    static = makespan(accelerator, seconds, dealt)
    if accelerator.is_main_process:
        print(f"processes {accelerator.num_processes} ideal {ideal:.3f} claimed {claimed:.3f} dealt out {static:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
