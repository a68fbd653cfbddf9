"""Processes that train together do what one does alone."""

from __future__ import annotations

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from jointmae import distributed, random, train, trainer
from jointmae.distributed import Heartbeat, World, name_of_this_start, share_of
from jointmae.errors import UsageError, WorkerError
from tests.runs import contents, fails, run, small_argv

# ---- who does what of a batch ----


@pytest.mark.parametrize("batch", [1, 128, 4095, 4096, 5000])
def test_shares_are_disjoint_and_complete_at_every_size(batch):
    """From 1 to 4,096 processes; without processes, because a sampler is a function."""
    for size in range(1, 4097):
        ranks = torch.arange(size)
        share = share_of(batch, ranks, size)
        assert share.start[0] == 0 and share.stop[-1] == batch  # together they are the batch, in its order
        assert torch.equal(share.start[1:], share.stop[:-1])
        lengths = share.stop - share.start
        assert int(lengths.max()) - int(lengths.min()) <= 1
        assert int(lengths.min()) == batch // size


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 64, 1000, 4095, 4096])
def test_the_order_of_an_epoch_does_not_depend_on_the_number_of_processes(size):
    order = random.epoch_order(7, 1, 5000)
    assert torch.equal(torch.cat([World(rank, size).share(order) for rank in range(size)]), order)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_batch_too_small_for_all_is_refused(parts):
    """What is accepted leaves nobody without a cloud, at any size."""
    for size in range(1, 257):
        for batch in (size * parts - 1, size * parts, size * parts + 1):
            lengths = torch.tensor([s.stop - s.start for s in (share_of(batch, rank, size) for rank in range(size))])
            if batch < size * parts:
                with pytest.raises(UsageError, match=rf"of {batch} clouds? is too small for {size} process(es)? with"):
                    trainer._require_enough(batch, size, parts)
            else:
                trainer._require_enough(batch, size, parts)
                assert int(lengths.min()) >= parts


def test_one_cloud_and_one_process_are_named_as_one():
    with pytest.raises(UsageError, match="^a batch of 1 cloud is too small for 1 process with --accumulate 2: wanted"):
        trainer._require_enough(1, 1, 2)


# ---- the same run in 1, 2 and 4 processes ----

# 6 clouds a step are 1, 2, 1 and 2 clouds of four processes, and 3 clouds in parts of 2 and 1 of two.
STEPS = "--batch-size 6 --epochs 10 --max-steps 20 --num-points 128 --num-centers 32 8 --image-size 32".split()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


def trained(launcher, work, name, size, *more):
    """The folder of a run in `size` processes, with a line of metrics.jsonl for each step."""
    argv = small_argv(work, *STEPS, *more)
    folder = work / name
    argv[argv.index("--out") + 1] = str(folder)
    for outcome in launcher.run(argv, size, LOG_STEPS=1):
        assert outcome.code == 0 and outcome.err == "", outcome
    return folder


def losses(folder):
    """Losses, their sum and the norm of the gradient, by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    names = [name for name in lines[0] if name.startswith("loss") or name == "grad_norm"]
    return torch.tensor([[line[name] for name in names] for line in lines], dtype=torch.float64)


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_same_run(folder, expected, rtol):
    torch.testing.assert_close(losses(folder), losses(expected), rtol=rtol, atol=0)
    # A step is about lr wide whatever the gradient's size is, so that small weights have no digits of their own.
    torch.testing.assert_close(weights(folder), weights(expected), rtol=rtol, atol=rtol)


@pytest.fixture(scope="module")
def alone(launcher, work):
    """20 steps in float64, in one process."""
    return trained(launcher, work, "alone", 1, "--precision", "fp64")


@pytest.mark.parametrize(("size", "parts"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_same_losses_in_float64(launcher, work, alone, size, parts):
    folder = trained(
        launcher, work, f"{size}-processes-{parts}-parts", size, "--precision", "fp64", "--accumulate", str(parts)
    )
    assert len(losses(folder)) == 20
    assert_same_run(folder, alone, rtol=1e-9)
    ours, theirs = ([json.loads(line) for line in (f / "metrics.jsonl").open()][0] for f in (folder, alone))
    for name in ("feature_std", "grad_norm_3d", "grad_norm_2d", "grad_norm_cross", "valid_pairs", "without_pair"):
        assert math.isclose(ours[name], theirs[name], rel_tol=1e-6), name  # the norms are taken in float32


def test_batch_norm_sees_the_clouds_of_all_processes(launcher, work):
    one, two = (trained(launcher, work, f"norm-{n}", n, "--precision", "fp64", "--point-norm", "batch") for n in (1, 2))
    assert_same_run(two, one, rtol=1e-9)


@pytest.mark.parametrize(("command", "parallel"), [("finetune", "ddp"), ("finetune", "fsdp"), ("part_seg", "ddp")])
def test_downstream_runs_are_the_same_in_two_processes(launcher, trained_run, tmp_path, command, parallel):
    """Two runs, one after the other, in the same processes; the head's batch norm sees the clouds of both."""
    options = "--epochs 2 --batch-size 8 --warmup-epochs 1 --runs 2 --device cpu --precision fp64 --votes 2".split()
    options = options if command == "finetune" else options[:-2]
    data = ["--data", str(trained_run / "clouds.h5"), "--checkpoint", str(trained_run / "run")]
    options += ["--parallel", parallel]
    for size in (1, 2):
        outcomes = launcher.run([*options, *data, "--out", str(tmp_path / str(size))], size, (), command, LOG_STEPS=1)
        assert [outcome.code for outcome in outcomes] == [0] * size, outcomes
        assert [outcome.out.count("report ") for outcome in outcomes] == [1] + [0] * (size - 1)
    for seed in ("seed-0", "seed-1"):
        assert_same_run(tmp_path / "2" / seed, tmp_path / "1" / seed, rtol=1e-9)
        one, two = (json.loads((tmp_path / size / seed / "result.json").read_text()) for size in "12")
        assert {name: one[name] for name in ("test", "epoch")} == {name: two[name] for name in ("test", "epoch")}


def test_same_losses_with_weights_in_shards(launcher, work, alone):
    """Checkpoints are whole all the same: begun with shards in two processes, it ends in one."""
    trained(launcher, work, "shards", 2, "--precision", "fp64", "--parallel", "fsdp", "--max-steps", "10")
    assert_same_run(trained(launcher, work, "shards", 1, "--precision", "fp64"), alone, rtol=1e-9)


def test_begun_with_two_ended_with_one_and_the_other_way_round(launcher, work, alone):
    for first, then in ((2, 1), (1, 2)):
        name = f"{first}-then-{then}"
        trained(launcher, work, name, first, "--precision", "fp64", "--max-steps", "10")
        assert_same_run(trained(launcher, work, name, then, "--precision", "fp64"), alone, rtol=1e-9)


def test_same_losses_in_float32(launcher, work):
    """50 steps; then the first 10 of them again, to the same bytes."""
    one, two = (
        trained(launcher, work, f"float32-{size}", size, "--max-steps", "50", "--epochs", "13") for size in (1, 2)
    )
    torch.testing.assert_close(losses(two)[0], losses(one)[0], rtol=1e-6, atol=0)
    assert len(losses(two)) == 50
    torch.testing.assert_close(losses(two)[:, 0], losses(one)[:, 0], rtol=1e-3, atol=0)
    again = trained(launcher, work, "float32-again", 2, "--max-steps", "10", "--epochs", "13")
    lines = (again / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 10 and (two / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:10] == lines


def test_the_first_process_alone_writes_and_speaks(launcher, work, tmp_path):
    """Each process in a folder of its own, where --out leads to: of the others, they stay empty."""
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    argv = small_argv(work, *STEPS, "--max-steps", "3")
    argv[argv.index("--out") + 1] = "run"
    first, second = launcher.run(argv, 2, homes)
    assert (first.code, second.code, first.err, second.err, second.out) == (0, 0, "", "", "")
    assert "processes 2" in first.out and "step 3/3" in first.out
    assert list(contents(homes[1])) == ["."]
    assert len((homes[0] / "run/metrics.jsonl").read_text().splitlines()) == 2  # of the first step and of the last


def test_a_batch_too_small_ends_every_process_with_code_2(launcher, tmp_path):
    for outcome in launcher.run(small_argv(tmp_path, *STEPS, "--batch-size", "3", "--accumulate", "2"), 2):
        assert fails(outcome, 2, "a batch of 3 clouds is too small for 2 processes with --accumulate 2", "at least 4")
    assert not (tmp_path / "run").exists()


# ---- what torchrun sets ----


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0"}, "RANK is set and WORLD_SIZE, MASTER_ADDR, MASTER_PORT not: start with torchrun, or unset it"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK=2 WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "WORLD_SIZE=two"),
    ],
)
def test_half_an_environment_is_a_usage_error(variables, said, tmp_path, monkeypatch, capfd):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert fails(run(train.main, small_argv(tmp_path), monkeypatch, capfd), 2, said)


# ---- the heartbeat, against a peer that is only words in a store ----


@pytest.fixture
def store(monkeypatch):
    """Quick beats; and an end of the process that is only noted."""
    monkeypatch.setattr(distributed, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(distributed, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(distributed, "LAST_WORDS_SECONDS", 0.1)
    return dist.HashStore()


@pytest.fixture
def ended(monkeypatch):
    """Set, with the exit code, when the process would have ended."""
    event, over = threading.Event(), threading.Event()

    def note(code):
        event.code = code
        event.set()
        over.wait()

    monkeypatch.setattr(distributed.os, "_exit", note)
    yield event
    over.set()


def test_a_silent_peer_ends_the_process_and_the_reason_is_told(store, ended, capfd):
    reasons = []
    store.set("alive/1", "5")
    with Heartbeat(store, World(0, 2, on_loss=reasons.append)):
        assert ended.wait(30)
    assert ended.code == WorkerError.exit_code
    assert reasons == ["process 1 of this run has not been heard of for 0.1 s"]
    assert f"error: {reasons[0]}; the same command resumes" in capfd.readouterr().err


def test_what_hangs_on_the_disk_does_not_keep_the_process(store, ended):
    stuck = threading.Event()
    store.set("alive/1", "5")
    with Heartbeat(store, World(0, 2, on_loss=lambda _: stuck.wait())):
        assert ended.wait(30)
    stuck.set()


@pytest.mark.parametrize("word", ["left", None])
def test_who_has_left_or_not_come_yet_is_not_missed(store, ended, word):
    if word is not None:
        store.set("alive/1", word)
    with Heartbeat(store, World(0, 2)):
        assert not ended.wait(0.5)
    assert store.get("alive/0") == b"left"


def test_who_fails_says_no_farewell(store, ended):
    with pytest.raises(ValueError), Heartbeat(store, World(0, 2)):
        while not store.check(["alive/0"]):
            time.sleep(0.001)
        raise ValueError
    assert store.get("alive/0") != b"left" and not ended.is_set()


def test_a_store_that_is_gone_ends_the_process(store, ended):
    class Gone:
        def set(self, key, value):
            raise dist.DistNetworkError("Connection reset by peer")

    with Heartbeat(Gone(), World(0, 2)):
        assert ended.wait(30)
    assert ended.code == WorkerError.exit_code


# ---- what earlier starts left in the store ----


def test_every_start_has_a_name_of_its_own(store):
    """Also where the first process answers those of an earlier start before it hears of the present ones."""
    names = set()
    for _ in range(20):
        with ThreadPoolExecutor(3) as pool:
            ours = set(pool.map(lambda rank: name_of_this_start(store, World(rank, 3)), (0, 2, 1)))
        assert len(ours) == 1
        names |= ours
        store.set("asks/1", "one that was killed before it had an answer")
    assert len(names) == 20


def test_a_process_that_does_not_come_is_named(store, monkeypatch):
    monkeypatch.setattr(distributed, "START_SECONDS", 0.05)
    with pytest.raises(WorkerError, match="process 1 of this run has not come within 0.05 s"):
        name_of_this_start(store, World(0, 2))
