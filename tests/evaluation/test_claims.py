"""Work shared by processes."""

import subprocess
import sys
import threading

import pytest
from helpers.paths import ROOT

from diffusers_ndc.evaluation.claims import Claims


def test_one_process_claims_everything_in_order():
    claims = Claims(5, patience=1)
    claimed = []
    for number in claims:
        claims.finish({"even": number % 2 == 0})
        claimed.append((number, claims.finished, claims.count("even")))
    assert claimed == [(0, 1, 1), (1, 2, 1), (2, 3, 2), (3, 4, 2), (4, 5, 3)]
    assert list(claims) == []  # a claim is claimed once
    looks = []
    claims.wait(lambda: looks.append(claims.finished))
    assert looks == [5]


def test_nobody_waits_for_ever():
    claims = Claims(3, patience=0.3)
    next(iter(claims))
    with pytest.raises(TimeoutError, match="3 images are not finished.*run the same command again"):
        claims.wait(lambda: None, pause=0.02)


def test_a_sign_of_life_is_waited_for():
    """An image that takes several times as long as `patience` is waited for while its process gives signs of life."""
    claims = Claims(1, patience=0.5)
    looks = []

    def look():
        looks.append(claims.finished)
        if len(looks) < 80:
            claims.beat()
        elif len(looks) == 80:
            claims.finish({})

    claims.wait(look, pause=0.02)  # 80 pauses of at least 0.02 s are 1.6 s
    assert looks == [0] * 80 + [1]


def test_images_are_waited_for_that_another_worker_finishes():
    claims = Claims(3, patience=60)
    finished_one = threading.Event()

    def work():
        for _ in claims:
            claims.finish({})
            finished_one.wait()

    worker = threading.Thread(target=work)
    worker.start()
    looks = []

    def look():
        looks.append(claims.finished)
        finished_one.set()

    claims.wait(look, pause=0.01)
    worker.join()
    assert looks[-1] == 3


def last_end(costs, workers, next_image):
    """When the last image is done, on a clock that counts costs: whoever is free first takes its next image.

    Args:
        costs: Cost of each image.
        workers: Number of workers.
        next_image: From a worker's number to the next image that it takes, `None` where it has no more.
    """
    free_at = dict.fromkeys(range(workers), 0)
    end = 0
    while free_at:
        worker = min(free_at, key=free_at.get)
        image = next_image(worker)
        if image is None:
            end = max(end, free_at.pop(worker))
        else:
            free_at[worker] += costs[image]
    return end


def test_the_last_image_is_done_soon_after_the_ideal_time():
    """Costs are unequal, and all expensive images fall to one worker if they are dealt out beforehand."""
    costs = [20 if image < 40 and image % 20 == 0 else 1 for image in range(80)]
    ideal = sum(costs) / 2
    claims = Claims(len(costs), patience=1)
    claiming = [iter(claims), iter(claims)]
    dealt_out = [iter(range(len(costs))[worker::2]) for worker in range(2)]
    assert last_end(costs, 2, lambda worker: next(claiming[worker], None)) <= ideal + 1
    assert last_end(costs, 2, lambda worker: next(dealt_out[worker], None)) >= 1.3 * ideal  # or this shows nothing


def test_a_process_that_is_busy_leaves_all_other_images_to_the_other_process():
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = ROOT / "tests" / "helpers" / "claiming.py"
    result = subprocess.run([*launch, script], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["slow", "1", "quick", "19"]
