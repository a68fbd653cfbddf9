"""One of several processes dies, freezes or is asked to stop: the job ends soon, says why, and goes on exactly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import free_port
from tests.runs import results, small_argv

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose /proc says which processes live")

SMALLER = "--num-points 128 --num-centers 32 8 --image-size 32 --epochs 4".split()  # 24 steps
END_SECONDS = 10  # a lost process ends the others within


def lives(pid: int) -> bool:
    """Whether a process is there, and no mere entry that waits to be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds, seconds: float = 120) -> float:
    """Seconds that it took."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < seconds, "took too long"
        time.sleep(0.01)
    return time.monotonic() - begin


class Job:
    """Two processes under torchrun, or under two of them as on two machines, that train in `folder`/run."""

    def __init__(self, folder: Path, *more: str, restarts: int = 0, machines: int = 1, **slower: float) -> None:
        self.run = folder / "run"
        self._said = [folder / f"said-{machine}" for machine in range(machines)]
        self.argv = small_argv(folder, *SMALLER, *more)
        argv = [json.dumps({"step": 0.05, **slower}), *self.argv]
        place = ["--standalone", "--nproc-per-node", "2"]
        if machines == 2:
            where = f"localhost:{free_port()}"
            place = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", where]
        launch = [sys.executable, "-m", "torch.distributed.run", *place, "--max-restarts", str(restarts)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self.machines = []
        for file in self._said:
            with file.open("w") as said:
                command = [*launch, "-m", "tests.faults.slow_steps", *argv]
                self.machines.append(subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment))
        self.torchrun = self.machines[0]

    @property
    def said(self) -> str:
        return "".join(file.read_text() for file in self._said)

    @property
    def step(self) -> int:
        """The newest step in status.json; -1 without one."""
        try:
            return int(json.loads((self.run / "status.json").read_text())["step"])
        except (OSError, ValueError):
            return -1

    def pids(self) -> dict[int, int]:
        """Of each rank, the newest."""
        return {int(rank): int(pid) for rank, pid in re.findall(r"process (\d) is (\d+)\n", self.said)}

    def trains(self, beyond: int = 2) -> dict[int, int]:
        """Waits until some steps are done; process ids by rank."""
        wait_until(lambda: self.step > beyond or self.torchrun.poll() is not None)
        assert self.torchrun.poll() is None, self.said
        return self.pids()

    def ends(self, seconds: float = 120) -> int:
        """The exit code of torchrun."""
        wait_until(lambda: self.torchrun.poll() is not None, seconds)
        return self.torchrun.wait()

    def clean_up(self) -> None:
        for pid in [*(torchrun.pid for torchrun in self.machines), *self.pids().values()]:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        for torchrun in self.machines:
            torchrun.wait()


@pytest.fixture
def job(tmp_path):
    """Starts jobs, and sees to it that none stays."""
    jobs = []

    def start(folder: Path = tmp_path, *more: str, **options) -> Job:
        jobs.append(Job(folder, *more, **options))
        return jobs[-1]

    yield start
    for started in jobs:
        started.clean_up()


@pytest.fixture(scope="module")
def whole(launcher, tmp_path_factory):
    """What two processes give that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert [outcome.code for outcome in launcher.run(small_argv(folder, *SMALLER), 2)] == [0, 0]
    return results(folder / "run")


def status(job: Job) -> tuple[str, int]:
    found = json.loads((job.run / "status.json").read_text())
    return found["state"], found["exit_code"]


def codes(job: Job) -> set[int]:
    """Exit codes of processes that torchrun reports."""
    return {int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", job.said)}


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_job(job, dead, release):
    """Within 10 s; the other one says why, and if it is the first, in status.json too."""
    if dead == 1 and not release:
        pytest.skip("needs --release: what is said then, the test of a restart looks at")
    running = job()
    pids = running.trains()
    os.kill(pids[dead], signal.SIGKILL)
    assert running.ends(END_SECONDS) != 0
    assert not any(lives(pid) for pid in pids.values())
    assert "error: another process of this run has ended" in running.said
    assert "Traceback" not in running.said.partition("ChildFailedError")[0].partition("Traceback")[0]
    assert -signal.SIGKILL in codes(running)
    if dead == 1:
        assert status(running) == ("failed", 7)


@pytest.mark.parametrize("frozen", [1, 0])
def test_a_frozen_process_ends_the_others(job, frozen, release):
    """The other one within 10 s; then torchrun gives the frozen one 30 s, which the test does not wait for."""
    if frozen == 0 and not release:
        pytest.skip("needs --release: takes as long as the other one")
    running = job()
    pids = running.trains()
    os.kill(pids[frozen], signal.SIGSTOP)
    wait_until(lambda: not lives(pids[1 - frozen]), END_SECONDS)
    assert f"error: process {frozen} of this run has not been heard of for 6 s" in running.said
    if not release:
        os.kill(pids[frozen], signal.SIGKILL)
    assert running.ends(END_SECONDS if not release else 40) != 0
    assert 7 in codes(running)
    if frozen == 1:
        assert status(running) == ("failed", 7)


def test_a_restart_ends_in_the_same_bytes(job, whole, tmp_path_factory, release):
    """torchrun starts all again after one was killed: 16 times with --release, and each comes back."""
    for attempt in range(16 if release else 1):
        running, dead = job(tmp_path_factory.mktemp("restart"), restarts=1), (attempt + 1) % 2
        pids = running.trains()
        os.kill(pids[dead], signal.SIGKILL)
        wait_until(lambda pids=pids: not any(lives(pid) for pid in pids.values()), END_SECONDS)
        assert "error: another process of this run has ended" in running.said
        if dead == 1:
            assert status(running) == ("failed", 7)  # until it has started again
        assert running.ends() == 0, (attempt, running.said)
        assert "resumed from step" in running.said
        assert results(running.run) == whole, attempt


def test_a_restart_on_two_machines(job, whole, tmp_path_factory, release):
    """Only one of them counts the restart, as the other one is asked to join before its process has failed."""
    if not release:
        pytest.skip("needs --release: two processes on one machine have been restarted")
    for attempt in range(4):
        running = job(tmp_path_factory.mktemp("machines"), machines=2, restarts=1)
        os.kill(running.trains()[attempt % 2], signal.SIGKILL)
        for torchrun in running.machines:
            assert torchrun.wait(120) == 0, (attempt, running.said)
        assert len(re.findall(r"process \d is", running.said)) == 4  # nobody had to start a third time
        assert results(running.run) == whole, attempt


@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGTERM, 1), (signal.SIGTERM, 0), (signal.SIGINT, 1), (signal.SIGUSR1, 1), (signal.SIGUSR1, 0)],
)
def test_one_process_asked_to_stop(launcher, job, whole, number, asked, release):
    """Both stop after the same step, saves take longer than torchrun looks away, and the same command goes on."""
    if (number, asked) != (signal.SIGTERM, 1) and not release:
        pytest.skip("needs --release: takes as long as the first one")
    running = job(save=0.5)
    os.kill(running.trains()[asked], number)
    assert running.ends() == 1, running.said
    code = 128 + number
    assert codes(running) == {code}, running.said
    assert status(running) == ("stopped", code)
    step = running.step
    assert f"stopped by {number.name}; the same command resumes at step {step}" in running.said
    first, second = launcher.run(running.argv, 2)
    assert (first.code, second.code) == (0, 0) and f"resumed from step {step}\n" in first.out, (first, second)
    assert results(running.run) == whole


def test_suspended_as_a_whole_then_asked_to_stop(job):
    """As a scheduler does it: suspended, nobody takes the others for lost; torchrun passes SIGTERM on to all."""
    running = job(patience=1, step=0.2)
    pids = running.trains()
    everyone = [running.torchrun.pid, *pids.values()]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    step = running.step
    time.sleep(2.5)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    running.trains(beyond=step)
    running.torchrun.terminate()
    assert running.ends() != 0
    assert not any(lives(pid) for pid in pids.values())
    assert status(running) == ("stopped", 143)
    assert f"stopped by SIGTERM; the same command resumes at step {running.step}" in running.said


def test_torchrun_lost(job, release):
    """Processes whose torchrun is gone do not stay behind."""
    if not release:
        pytest.skip("needs --release")
    running = job()
    pids = running.trains()
    running.torchrun.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids.values()), END_SECONDS)
    assert "error: torchrun's store does not answer" in running.said
    assert status(running) == ("failed", 7)


def test_what_only_the_first_process_does_may_take_its_time(job, tmp_path):
    """Saves longer than the heartbeat is patient, an evaluation longer than a collective may wait."""
    running = job(tmp_path, "--evaluate", "--max-steps", "1", patience=1, save=3, evaluation=4.5, timeout=4)
    assert running.ends() == 0, running.said
    assert status(running) == ("finished", 0)
    assert "evaluated\n" in running.said and "error" not in running.said
