"""How threads wait, and how many there are: what the environment says is kept, and a trial decides the rest."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet

from diffusers_ndc.common import threads
from diffusers_ndc.common.threads import choose_threads, share_cores
from diffusers_ndc.diffusion.denoiser import Denoiser
from diffusers_ndc.diffusion.thread_trial import choose_threads_for


VARIABLES = ("OMP_", "KMP_", "GOMP_", "MKL_")
COMMAND = """
import os, sys
from diffusers_ndc.command import main
main(["verify", sys.argv[1]])
print(*(os.environ.get(name) for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")), "torch" in sys.modules)
"""
TRIAL = """
from diffusers_ndc.common.threads import share_cores, choose_threads
share_cores()
import os, time, torch
choose_threads(lambda: time.sleep(0.001 if torch.get_num_threads() == 1 else 0.01))
print(os.environ.get("GOMP_SPINCOUNT"), torch.get_num_threads())
"""


@pytest.fixture
def free(monkeypatch):
    """An environment that says nothing of threads, two of them, and a program that asked for a trial."""
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "_asked", True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield monkeypatch
    torch.set_num_threads(before)


def run_alone(code, *words, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    command = [sys.executable, "-c", code, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**kept, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "environment, spins",
    [
        ({}, "10000 1"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"KMP_BLOCKTIME": "7"}, "None 7"),
    ],
)
def test_the_command_lets_threads_sleep_unless_the_environment_says_otherwise(environment, spins, tmp_path):
    """Before torch is loaded, which reads it."""
    (tmp_path / "empty.jsonl").write_text("")
    assert run_alone(COMMAND, tmp_path / "empty.jsonl", **environment) == f"{spins} False"


def test_a_number_in_the_environment_is_kept():
    assert run_alone(TRIAL, OMP_NUM_THREADS="2") == "10000 2"


def test_a_child_of_a_program_that_shares_cores_has_a_trial_too():
    assert run_alone(TRIAL, **threads.SPINNING) == "10000 1"


class Work:
    """A piece of work that takes so many seconds with each number of threads, by a clock of its own."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.runs = 0.0, seconds, []
        monkeypatch.setattr(threads, "time", self)

    def perf_counter(self):
        return self.now

    def __call__(self):
        self.runs.append(torch.get_num_threads())
        self.now += self.seconds[self.runs[-1]]


@pytest.mark.parametrize("faster", [1, 2])
def test_the_faster_number_of_threads_is_chosen(free, faster):
    """After all rounds, or after the first one if the difference is clear."""
    work = Work(free, {faster: 0.1, 3 - faster: 0.12})
    choose_threads(work)
    assert torch.get_num_threads() == faster and work.runs == [2, 2, *[2, 1] * threads.ROUNDS]
    torch.set_num_threads(2)
    work = Work(free, {faster: 0.1, 3 - faster: 0.3})
    choose_threads(work)
    assert torch.get_num_threads() == faster and work.runs == [2, 2, 2, 1]


def test_one_thread_that_is_faster_by_a_little_is_not_chosen(free):
    choose_threads(Work(free, {1: 0.1, 2: 0.105}))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_HW_SUBSET", "GOMP_CPU_AFFINITY"])
def test_there_is_no_trial_where_the_environment_counts(free, name):
    free.setenv(name, "2")
    choose_threads(lambda: pytest.fail("there was a trial"))


def test_there_is_no_trial_for_those_who_did_not_ask(free):
    free.setattr(threads, "_asked", False)
    choose_threads(lambda: pytest.fail("there was a trial"))
    share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ, "torch is loaded: it would only mislead"
    choose_threads(Work(free, {1: 0.1, 2: 0.3}))
    assert torch.get_num_threads() == 1


def test_a_failed_or_long_trial_leaves_all_threads(free):
    runs = []

    def fail():
        runs.append(torch.get_num_threads())
        if len(runs) == 4:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        choose_threads(fail)
    assert runs == [2, 2, 2, 1] and torch.get_num_threads() == 2
    work = Work(free, {1: 0.1, 2: 1.5})
    choose_threads(work)
    assert work.runs == [2] and torch.get_num_threads() == 2


def test_a_denoiser_is_tried_and_stays_as_it_is(free):
    denoiser = Denoiser(tiny_unet(), DDPMScheduler(), 3, 3)
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    state = torch.get_rng_state()
    with torch.no_grad():
        before = denoiser(images, denoiser.nearest_sigma(1.0), labels)
        choose_threads_for(denoiser)
        after = denoiser(images, denoiser.nearest_sigma(1.0), labels)
    assert torch.get_num_threads() in (1, 2) and torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_do_the_trial_keeps_all_threads(free):
    """Seven stages need images of 64 pixels, which the configuration does not say."""
    stages = {"block_out_channels": [4] * 7, "norm_num_groups": 2, "layers_per_block": 1, "add_attention": False}
    stages |= {"down_block_types": ["DownBlock2D"] * 7, "up_block_types": ["UpBlock2D"] * 7}
    denoiser = Denoiser(tiny_unet(sample_size=None, **stages), DDPMScheduler(), 3, 3)
    choose_threads_for(denoiser)
    assert torch.get_num_threads() == 2
    with torch.no_grad():
        assert denoiser(torch.rand(1, 1, 64, 64), denoiser.nearest_sigma(1.0), torch.tensor([0])).isfinite().all()
