"""A part of `benchmark.py`: how fast the network is on a CPU with torch's threads, and with those of the command."""

import os
import statistics
import subprocess
import sys
import time


WAYS = {"torch's defaults": "default", "short spins, number by a trial (the command)": "chosen"}

ROUNDS = 5
"""Runs of each way, in turn: the speed of a machine wanders."""


def threads(bench) -> None:
    """Network evaluations a second, each way in a new process: how threads wait is settled when torch is loaded."""
    seconds, rounds = (1, 1) if bench.args.quick else (4, ROUNDS)
    bench.say(f"## Threads of the CPU: batches of {bench.args.batch_size}, {rounds} runs of {seconds} s each way\n")
    told = ("OMP_", "MKL_", "KMP_", "GOMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    numbers: dict[str, list[str]] = {name: [] for name in WAYS}
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            command = [sys.executable, __file__, way, str(bench.args.model), str(bench.args.batch_size), str(seconds)]
            result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            number, rate = result.stdout.split()
            numbers[name].append(number)
            rates[name].append(float(rate))
    rows = [
        {
            "threads": name,
            "numbers": " ".join(numbers[name]),
            "evaluations a second (median)": statistics.median(rates[name]),
            "least": min(rates[name]),
            "most": max(rates[name]),
        }
        for name in WAYS
    ]
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
