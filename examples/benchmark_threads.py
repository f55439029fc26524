"""A part of `benchmark.py`: how fast the network is on a CPU with torch's threads, and with those of the command."""

import os
import subprocess
import sys
import time


WAYS = {"torch's defaults": "default", "waiting asleep, number by a trial (the command)": "chosen"}


def threads(bench) -> None:
    """Network evaluations a second, each way in a new process: how threads wait is settled when torch is loaded."""
    seconds = 1 if bench.args.quick else 10
    bench.say(f"## Threads of the CPU: batches of {bench.args.batch_size}, {seconds} s each\n")
    told = ("OMP_", "MKL_", "KMP_", "GOMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    rows = []
    for name, way in WAYS.items():
        command = [sys.executable, __file__, way, str(bench.args.model), str(bench.args.batch_size), str(seconds)]
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        count, rate = result.stdout.split()
        rows.append({"threads": name, "number": count, "evaluations a second": float(rate)})
    bench.table(rows)


def main(way: str, model: str, batch_size: int, seconds: float) -> None:
    """Print the number of threads, and evaluations a second."""
    from diffusers_ndc.common.threads import share_cores

    if way == "chosen":
        share_cores()

    import torch

    from diffusers_ndc.diffusion.thread_trial import choose_threads_for, trial_batch
    from diffusers_ndc.pipelines.loading import load_pipeline

    denoiser = load_pipeline(model).denoiser
    choose_threads_for(denoiser)
    run = trial_batch(denoiser, batch_size)
    run()  # warm-up
    start, evaluations = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        run()
        evaluations += batch_size
    print(torch.get_num_threads(), evaluations / (time.perf_counter() - start))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
