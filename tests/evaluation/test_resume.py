"""Runs of the evaluation that are killed at a random moment and go on: nothing lost, nothing done twice.

pytest tests/test_resume.py --rounds 20
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers.paths import EXAMPLES

from diffusers_ndc.evaluation.records import read_records


SCRIPT = EXAMPLES / "evaluate.py"
IMAGES = 30
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the launchers set it for several processes


def launch(processes, model, data, output):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0"]
    options = ["--model", model, "--dataset", data, "--n0", 5, "--n", 60, "--batch-size", 64, "--output", output]
    command += [str(part) for part in (SCRIPT, *options)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(process):
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error


def kill(rng, process, output):
    """SIGKILL to all, to one worker, or to the launcher, after some images; returns when all are gone."""
    images = rng.randrange(IMAGES)
    while process.poll() is None and len(lines(output)) < images:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.5))
    if process.poll() is not None:
        return "nobody, it had ended,"
    launcher = psutil.Process(process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    workers = [one for one in family[1:] if str(SCRIPT) in one.cmdline()] or [launcher]
    whom = rng.choice(["all", "worker", "launcher"])
    for victim in {"all": family, "worker": [rng.choice(workers)], "launcher": [launcher]}[whom]:
        victim.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=300)
    assert not alive, f"after a kill of {whom}: {alive}"  # orphans end by themselves
    return whom


def lines(output):
    """The indices of all records that are whole, in the order of the files."""
    found = []
    for path in sorted(output.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line)["index"])
            except ValueError:
                pass  # cut short by the kill
    return found


def report(output):
    (found,) = json.loads((output / "report.json").read_text())["runs"]
    del found["name"], found["per_image"]["seconds"]
    return found


@pytest.fixture(scope="module")
def undisturbed(resume_folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    finish(launch(1, *resume_folders, output))
    return output


@pytest.fixture(scope="module")
def resume_folders(small_model, tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("resume"), images_per_class=IMAGES // 3)


@pytest.mark.slow
def test_a_killed_run_goes_on(request, resume_folders, undisturbed, tmp_path):
    expected = read_records(undisturbed)
    assert list(expected) == list(range(IMAGES))
    for number in range(request.config.getoption("--rounds")):
        rng, output = random.Random(number), tmp_path / str(number)
        first, second = (2, rng.randint(1, 3)) if number % 3 != 2 else (1, 2)
        whom = kill(rng, launch(first, *resume_folders, output), output)
        before = len(lines(output))
        print(f"round {number}: {first} processes, killed {whom} after {before} images, resumed with {second}")
        finish(launch(second, *resume_folders, output))
        assert sorted(lines(output)) == list(range(IMAGES))
        found = read_records(output)
        for index, record in found.items():
            assert {**record, "seconds": 0} == {**expected[index], "seconds": 0}
        assert report(output) == report(undisturbed)
