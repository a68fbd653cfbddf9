"""Training from the command line: what it writes, how it ends, and that a run goes on exactly where it was."""

from __future__ import annotations

import datetime
import errno
import json
import os
import platform
import shutil
import signal
import sys
import types
from dataclasses import replace

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from jointmae import checkpoint, pretraining, step, train, trainer
from jointmae.data import load, normalize_unit_sphere
from jointmae.data.augment import augment
from jointmae.device import is_out_of_memory, out_of_memory_errors
from jointmae.errors import DiskError, OutOfMemoryError
from jointmae.model import JointMAE
from jointmae.optimizer import adamw, load_state_tensors, parameter_groups, state_tensors
from jointmae.progress import Progress
from jointmae.recipes import train_config
from jointmae.run_folder import RunFolder
from jointmae.signals import Stopped, StopSignals
from jointmae.step import Step
from tests.models import micro_config
from tests.runs import contents, fails, results, run, small_argv, small_config, write_clouds


@pytest.fixture
def command(monkeypatch, capfd):
    """The command `python -m jointmae.train` in this process."""
    return lambda argv: run(train.main, argv, monkeypatch, capfd)


def status(folder):
    """status.json without what differs between two runs: who wrote it and when, and what it expected."""
    found = json.loads((folder / "run" / "status.json").read_text())
    for name in ("host", "process", "written", "seconds_left"):
        del found[name]
    return found


def metrics(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert pretraining.train(small_config(folder)) == 0
    return folder


# ---- a run and its files ----


def test_a_run_leaves_these_files(whole):
    names = sorted(path.name for path in (whole / "run").iterdir())
    jsonl = ["metrics.jsonl", "model.safetensors", "status.json", "timings.jsonl"]
    assert names == ["checkpoints", "config.json", "env.json", *jsonl]
    assert sorted(path.name for path in (whole / "run/checkpoints").iterdir()) == ["step-12", "step-6"]
    end = {"exit_code": 0, "evaluated": False, "result": ""}
    assert status(whole) == {"state": "finished", "step": 12, "num_steps": 12, "checkpoint": 12, **end}


def test_the_status_is_one_that_a_scheduler_can_read(tmp_path, command):
    """Who writes, when, how far, and how long it will take."""
    command(small_argv(tmp_path, "--max-steps", "5"))
    found = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (found["state"], found["step"], found["num_steps"], found["seconds_left"]) == ("finished", 5, 5, 0)
    assert (found["host"], found["process"]) == (platform.node(), os.getpid())
    written = datetime.datetime.fromisoformat(found["written"])
    assert abs((datetime.datetime.now(datetime.timezone.utc) - written).total_seconds()) < 60
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, Step, "run", 6, RuntimeError())
        with pytest.raises(RuntimeError):
            command(small_argv(tmp_path))
    found = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (found["state"], found["step"], found["num_steps"]) == ("failed", 10, 12) and found["seconds_left"] > -1


def test_metrics_hold_means_and_nothing_of_time_host_or_path(whole):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == [1, 10, 12] and [line["epoch"] for line in lines] == [0, 1, 1]
    always = {"step", "epoch", "loss", "loss_3d", "loss_2d", "loss_cross", "grad_norm", "lr"}
    assert all(set(line) == always for line in lines[1:])
    diagnostics = {"feature_std", "grad_norm_3d", "grad_norm_2d", "grad_norm_cross", "valid_pairs", "without_pair"}
    assert set(lines[0]) == always | diagnostics
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_3d"] + line["loss_2d"] + line["loss_cross"], rel=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_line_is_the_mean_of_its_steps(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_STEPS", 1)
    shutil.copy(whole / "clouds.h5", tmp_path)
    pretraining.train(small_config(tmp_path))
    single = [line["loss"] for line in metrics(tmp_path)]
    means = [single[0], sum(single[1:10]) / 9, sum(single[10:]) / 2]
    assert [line["loss"] for line in metrics(whole)] == pytest.approx(means)


def test_the_weights_load_as_a_model_and_are_the_last_checkpoints(whole):
    model = JointMAE.from_pretrained(whole / "run")
    weights = safetensors.torch.load_file(whole / "run/model.safetensors")
    last = checkpoint.load(whole / "run/checkpoints/step-12").model
    assert weights.keys() == last.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], last[name]) for name in last)


def test_the_same_command_gives_the_same_bytes(whole, tmp_path, command):
    shutil.copy(whole / "clouds.h5", tmp_path)
    outcome = command(small_argv(tmp_path))
    assert outcome.code == 0 and outcome.err == ""
    assert results(tmp_path / "run") == results(whole / "run")


def test_another_seed_gives_another_run(whole, tmp_path):
    shutil.copy(whole / "clouds.h5", tmp_path)
    pretraining.train(small_config(tmp_path, "--seed", "1"))
    mine, theirs = results(tmp_path / "run"), results(whole / "run")
    assert mine[0] != theirs[0] and mine[1] != theirs[1]


def test_what_is_said(tmp_path, command):
    outcome = command(small_argv(tmp_path, "--batch-size", "999", "--threads", "1"))
    assert outcome.code == 0 and outcome.err == ""
    first, *others = outcome.out.splitlines()
    assert first.startswith("jointmae: tiny (0.0") and "recipe best" in first
    assert "24 clouds x 256 points" in others[0] and "2 steps of 24 clouds, 2 epochs" in others[1]
    assert "note: only 24 clouds, so that is the batch size" in outcome.out
    assert "step 1/2" in outcome.out and "step 2/2" in outcome.out and "ETA 0:00" in outcome.out
    assert others[-1] == f"run       {tmp_path / 'run'}"
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_set_of_one_cloud(tmp_path, command, norm):
    write_clouds(tmp_path / "clouds.h5", train=1)
    outcome = command(small_argv(tmp_path, "--point-norm", norm))
    assert outcome.code == 0 and outcome.err == ""
    assert metrics(tmp_path)[0]["feature_std"] == 0.0


def test_files_that_are_left_out_are_named(tmp_path, command):
    (tmp_path / "set").mkdir()
    for i in range(8):
        np.save(tmp_path / "set" / f"{i}.npy", np.random.default_rng(i).normal(size=(64, 3)))
    for i in range(7):
        (tmp_path / "set" / f"bad{i}.npy").write_bytes(b"\x1b[2J")
    outcome = command(["--data", str(tmp_path / "set"), "--skip-bad", "--dry-run"])
    assert outcome.code == 0 and outcome.out.count("left out  ") == 6 and "\x1b" not in outcome.out
    assert "left out  bad0.npy: " in outcome.out and "left out  and 2 more files" in outcome.out


def test_a_warm_up_longer_than_the_run_is_mentioned(tmp_path, command):
    outcome = command(small_argv(tmp_path, "--dry-run", "--warmup-epochs", "5"))
    assert "note: the warm-up of 5 epochs takes the whole run" in outcome.out


# ---- the same command again ----


def test_a_finished_run_is_left_as_it_is(whole, command):
    before = contents(whole / "run")
    outcome = command(small_argv(whole))
    assert outcome.code == 0 and outcome.out == f"finished  {whole / 'run'}\n" and outcome.err == ""
    assert contents(whole / "run") == before
    outcome = command([*small_argv(whole), "--threads", "1", "--resume", "never", "--device", "auto"])
    assert outcome.code == 0 and contents(whole / "run") == before


def test_its_result_is_printed_again(tmp_path, command):
    argv = small_argv(tmp_path, "--max-steps", "2")
    command(argv)
    file = tmp_path / "run" / "status.json"
    file.write_text(json.dumps({**status(tmp_path), "evaluated": True, "result": "linear SVM 91 %"}))
    assert command([*argv, "--evaluate"]).out == f"finished  {tmp_path / 'run'}\nlinear SVM 91 %\n"


@pytest.mark.parametrize("stops", [(2,), (3, 7), (6, 11)])
def test_max_steps_may_grow_and_the_result_is_that_of_one_run(whole, tmp_path, stops):
    shutil.copy(whole / "clouds.h5", tmp_path)
    for stop in stops:
        pretraining.train(small_config(tmp_path, "--max-steps", str(stop)))
        assert status(tmp_path)["step"] == stop and metrics(tmp_path)[-1]["step"] == stop
    pretraining.train(small_config(tmp_path))
    assert results(tmp_path / "run") == results(whole / "run")


def test_more_epochs_continue_fewer_are_refused(whole, tmp_path, command):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    outcome = command(small_argv(tmp_path, "--epochs", "3"))
    assert outcome.code == 0 and "resumed from step 12" in outcome.out
    assert status(tmp_path)["step"] == 18 and metrics(tmp_path)[-1]["step"] == 18
    before = contents(tmp_path / "run")
    assert fails(command(small_argv(tmp_path)), 2, "epochs: 3 there, 2 now")
    assert fails(command(small_argv(tmp_path, "--epochs", "3", "--max-steps", "4")), 2, "max_steps: 0 there, 4 now")
    assert contents(tmp_path / "run") == before


def test_another_config_is_refused_with_its_differences(whole, command):
    before = contents(whole / "run")
    outcome = command(small_argv(whole, "--lr", "0.1", "--mask-ratio", "0.5"))
    assert fails(outcome, 2, "another config", "lr: 0.001 there, 0.1 now", "model.mask_ratio: 0.75 there, 0.5 now")
    assert contents(whole / "run") == before


def test_a_folder_of_other_files_is_refused(tmp_path, command):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert fails(command(small_argv(tmp_path)), 2, "not empty and holds no run (found thesis.tex)")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_resume_never(whole, tmp_path, command):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    outcome = command(small_argv(tmp_path, "--resume", "never", "--epochs", "3"))
    assert fails(outcome, 2, "holds a run and --resume is never: choose another --out")
    assert status(tmp_path)["state"] == "finished"


@pytest.mark.parametrize("resume", ["never", "no/such/checkpoint"])
def test_a_refused_command_changes_nothing(whole, tmp_path, command, resume):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = {name: data for name, (data, _) in contents(tmp_path / "run").items()}
    assert command(small_argv(tmp_path, "--epochs", "9", "--resume", resume)).code in (2, 4)
    assert {name: data for name, (data, _) in contents(tmp_path / "run").items()} == before


def test_without_augmentation_clouds_are_in_the_unit_sphere_too():
    clouds = load("furniture").select(torch.arange(4))
    config = replace(train_config("tiny"), augment="none")
    ids = torch.arange(4)
    points = augment(config.augment, clouds.batch(ids, config.model.num_points, 0, 0), clouds.up, ids, 0, seed=0)
    torch.testing.assert_close(points.mean(1), torch.zeros(4, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(points.norm(dim=2).amax(1), torch.ones(4))


def test_resume_from_a_path(whole, tmp_path, command):
    """In a new folder, and in the folder of the run itself, which goes back."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    middle = str(whole / "run" / "checkpoints" / "step-6")
    other = command([*small_argv(tmp_path, "--resume", middle), "--out", str(tmp_path / "other")])
    assert other.code == 0 and "resumed from step 6" in other.out
    assert (tmp_path / "other/model.safetensors").read_bytes() == results(whole / "run")[1]
    (tmp_path / "run/status.json").unlink()  # as if it had not been finished
    back = command(small_argv(tmp_path, "--resume", str(tmp_path / "run/checkpoints/step-6")))
    assert back.code == 0 and "resumed from step 6" in back.out
    assert results(tmp_path / "run") == results(whole / "run")


@pytest.mark.parametrize("path", ["nowhere", "run", "clouds.h5"])
def test_resume_from_what_is_no_checkpoint(whole, tmp_path, command, path):
    argv = [*small_argv(whole, "--resume", str(whole / path)), "--out", str(tmp_path / "new")]
    assert fails(command(argv), 4, str(whole / path), "wanted a step-N folder")


def test_resume_from_another_models_checkpoint(whole, tmp_path, command):
    argv = small_argv(whole, "--resume", str(whole / "run/checkpoints/step-6"), "--num-layers", "3")
    outcome = command([*argv, "--out", str(tmp_path / "new")])
    assert fails(outcome, 4, "the checkpoint of step 6 is of another model")


def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(whole, tmp_path, command):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run/status.json").unlink()
    file = tmp_path / "run/checkpoints/step-12/optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    outcome = command(small_argv(tmp_path))
    assert outcome.code == 0 and "resumed from step 6" in outcome.out
    assert (
        outcome.err
        == f"warning: {file}: damaged (its SHA-256 is not the one in manifest.json); trying an older checkpoint\n"
    )
    assert results(tmp_path / "run") == results(whole / "run")
    assert checkpoint.load_newest(tmp_path / "run/checkpoints")[1] == []


def test_no_valid_checkpoint_is_left(whole, tmp_path, command):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run/status.json").unlink()
    for folder in (tmp_path / "run/checkpoints").iterdir():
        (folder / "model.safetensors").write_bytes(b"")
    outcome = command(small_argv(tmp_path))
    assert outcome.code == 4 and len(outcome.err.splitlines()) <= 6 and "remove" in outcome.err
    assert len(metrics(tmp_path)) == 3  # nothing was cut


def test_checkpoints_that_were_removed_are_not_trained_again_in_silence(whole, tmp_path, command):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert command(small_argv(tmp_path)).code == 0  # finished all the same
    assert fails(command(small_argv(tmp_path, "--epochs", "3")), 4, "no valid checkpoint left")
    assert len(metrics(tmp_path)) == 3


# ---- exactness: stop anywhere, go on, get the same bytes ----


class Crash(BaseException):
    """The process ends here."""


def crash_at(monkeypatch, owner, name, at, error=Crash):
    original, count = getattr(owner, name), 0

    def call(*arguments, **options):
        nonlocal count
        count += 1
        if count == at:
            raise error() if isinstance(error, type) else error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("norm", ["layer", "batch"])  # batch norm has running statistics
@pytest.mark.parametrize("steps", [(1,), (4, 9), (5, 6, 7, 11)], ids=str)
def test_a_crash_in_any_step_changes_no_byte(tmp_path, monkeypatch, norm, steps):
    """With a checkpoint after every step: in the middle of epochs and between the lines of metrics.jsonl."""
    pretraining.train(small_config(tmp_path, "--point-norm", norm, "--out", str(tmp_path / "whole")))
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    config = small_config(tmp_path, "--point-norm", norm)
    done = 0
    for at in steps:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
            crash_at(patch, Step, "run", at - done)
            pretraining.train(config)
        done = at - 1
    pretraining.train(config)
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize("name", ["rename", "replace", "fsync"])
def test_a_crash_in_any_write_changes_no_byte(whole, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    shutil.copy(whole / "clouds.h5", tmp_path)
    config, crashes = small_config(tmp_path), 0
    for at in (2, 17, 40, 90, 31, 7):
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, os, name, at)
            try:
                pretraining.train(config)
                break
            except Crash:
                crashes += 1
    pretraining.train(config)
    assert crashes >= 2 and results(tmp_path / "run") == results(whole / "run")


def test_lines_after_the_last_checkpoint_are_written_again(whole, tmp_path):
    shutil.copy(whole / "clouds.h5", tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, Step, "run", 12)  # the newest checkpoint is of step 6, the newest line of step 10
        pretraining.train(small_config(tmp_path))
    assert metrics(tmp_path)[-1]["step"] == 10 and status(tmp_path)["step"] == 6
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 11, "lo')
    pretraining.train(small_config(tmp_path))
    assert results(tmp_path / "run") == results(whole / "run")


def send(number):
    """What calls `function` and sends this process a signal."""

    def wrap(function, at):
        count = 0

        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), number)
            return function(*arguments, **options)

        return call

    return wrap


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 128 + signal.SIGUSR1)]
)
@pytest.mark.parametrize("step", [1, 4, 6, 12])
def test_a_signal_saves_the_step_at_hand(whole, tmp_path, command, number, code, step):
    """In the first step, in the middle of an epoch, in its last step, in the run's last step."""
    shutil.copy(whole / "clouds.h5", tmp_path)
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "run", send(number)(Step.run, step))
        outcome = command(small_argv(tmp_path))
    name = signal.Signals(number).name
    assert outcome.code == code and outcome.err == "" and signal.getsignal(number) == before
    assert outcome.out.splitlines()[-1] == f"stopped by {name}; the same command resumes at step {step}"
    end = {"exit_code": code, "message": f"stopped by {name}"}
    assert status(tmp_path) == {"state": "stopped", "step": step, "num_steps": 12, "checkpoint": step, **end}
    assert f"resumed from step {step}" in command(small_argv(tmp_path)).out
    assert results(tmp_path / "run") == results(whole / "run")


def test_a_second_signal_stops_at_once(whole, tmp_path, command):
    shutil.copy(whole / "clouds.h5", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "run", send(signal.SIGTERM)(Step.run, 4))
        patch.setattr(Step, "_clip_and_step", send(signal.SIGTERM)(Step._clip_and_step, 4))
        outcome = command(small_argv(tmp_path))
    assert outcome.code == 143 and "resumes at step 0" in outcome.out
    command(small_argv(tmp_path))
    assert results(tmp_path / "run") == results(whole / "run")


def test_signals_outside_and_inside_of_what_is_deferred():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop, StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert (stop.value.name, stop.value.exit_code) == ("SIGTERM", 143)
    done = []
    with pytest.raises(Stopped), StopSignals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the step ends")
    assert done and signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_another_process_was_sent_first_is_not_a_second_one():
    """Schedulers signal all processes of a run, some of them late: these save like the others."""
    done = []
    with pytest.raises(Stopped), StopSignals() as signals, signals.deferred():
        signals.wanted = signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("saved")
    assert done


# ---- evaluation ----


@pytest.fixture
def evaluation(monkeypatch):
    """Stands in for jointmae.evaluate; `evaluation.does` is what it does."""
    module = types.ModuleType("jointmae.evaluate")
    module.does = lambda: "linear SVM 91 %"
    module.evaluate_run = lambda *_arguments: module.does()
    monkeypatch.setitem(sys.modules, "jointmae.evaluate", module)
    return module


def test_a_run_without_evaluation_can_be_evaluated_later(whole, tmp_path, command, evaluation):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    outcome = command(small_argv(tmp_path, "--evaluate"))
    assert outcome.code == 0 and "linear SVM 91 %" in outcome.out
    assert status(tmp_path)["result"] == "linear SVM 91 %" and status(tmp_path)["evaluated"]
    assert results(tmp_path / "run") == results(whole / "run")
    evaluation.does = lambda: pytest.fail("evaluated twice")
    assert "linear SVM 91 %" in command(small_argv(tmp_path, "--evaluate")).out


@pytest.mark.parametrize("error", [DiskError("cannot write x"), OutOfMemoryError("out of memory"), ZeroDivisionError()])
def test_a_failed_evaluation_leaves_a_run_that_goes_on(whole, tmp_path, command, evaluation, error):
    def fail():
        raise error

    evaluation.does = fail
    shutil.copy(whole / "clouds.h5", tmp_path)
    if isinstance(error, ZeroDivisionError):
        with pytest.raises(ZeroDivisionError):
            command(small_argv(tmp_path, "--evaluate"))
        assert status(tmp_path)["message"].startswith("ZeroDivisionError")
    else:
        assert fails(command(small_argv(tmp_path, "--evaluate")), error.exit_code, str(error))
    assert status(tmp_path)["state"] == "failed" and status(tmp_path)["exit_code"] == getattr(error, "exit_code", 1)
    assert results(tmp_path / "run") == results(whole / "run")  # the model is there already
    evaluation.does = lambda: "linear SVM 91 %"
    assert "linear SVM 91 %" in command(small_argv(tmp_path, "--evaluate")).out
    assert status(tmp_path)["state"] == "finished" and results(tmp_path / "run") == results(whole / "run")


def test_a_signal_during_evaluation(whole, tmp_path, command, evaluation):
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    evaluation.does = stop
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    outcome = command(small_argv(tmp_path, "--evaluate"))
    assert outcome.code == 143 and "resumes at step 12" in outcome.out
    assert status(tmp_path)["state"] == "stopped" and status(tmp_path)["exit_code"] == 143


# ---- failures ----


def test_no_such_data(tmp_path, command):
    argv = [*small_argv(tmp_path), "--data", str(tmp_path / "nowhere.h5")]
    assert fails(command(argv), 3, "nowhere.h5", "does not exist")
    assert not (tmp_path / "run").exists()


def test_data_of_another_format(tmp_path, command):
    (tmp_path / "clouds.docx").write_text("1,2,3")
    assert fails(command([*small_argv(tmp_path), "--data", str(tmp_path / "clouds.docx")]), 3, "clouds.docx", "h5")


def test_a_cloud_with_nan(tmp_path, command):
    argv = small_argv(tmp_path)
    with h5py.File(tmp_path / "clouds.h5", "a") as file:
        file["train/points"][7, 100, 1] = np.nan
    assert fails(command(argv), 3, "clouds.h5", "7")


def test_a_cut_file(tmp_path, command):
    argv = small_argv(tmp_path)
    data = (tmp_path / "clouds.h5").read_bytes()
    (tmp_path / "clouds.h5").write_bytes(data[: len(data) // 2])
    assert fails(command(argv), 3, "clouds.h5")


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/none"])
def test_an_out_that_cannot_be_written(tmp_path, command, out):
    (tmp_path / "file").touch()
    assert fails(command([*small_argv(tmp_path), "--out", str(tmp_path / out)]), 74, "cannot write", out)


@pytest.mark.parametrize("at", [3, 30, 60, 75])
def test_a_disk_that_fills_up(whole, tmp_path, command, at):
    shutil.copy(whole / "clouds.h5", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, os, "fsync", at, OSError(errno.ENOSPC, "No space left on device"))
        patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
        outcome = command(small_argv(tmp_path))
    assert fails(outcome, 74, "cannot write", "No space left on device")
    if at > 3:
        assert status(tmp_path)["state"] == "failed" and status(tmp_path)["exit_code"] == 74
    assert command(small_argv(tmp_path)).code == 0
    assert results(tmp_path / "run") == results(whole / "run")


def test_a_disk_that_stays_full(tmp_path, command, monkeypatch):
    crash_at(monkeypatch, os, "fsync", 20, OSError(errno.ENOSPC, "No space left on device"))

    def refuse(self, state, **more):
        if state == "failed":
            raise DiskError("cannot write status.json")

    monkeypatch.setattr(RunFolder, "write_status", refuse)
    outcome = command(small_argv(tmp_path))
    assert fails(outcome, 74, "No space left on device") and "status.json" not in outcome.err


def test_a_loss_that_is_not_finite(tmp_path, command):
    """Here the op of L_3D refuses the prediction before there is a loss."""
    outcome = command(small_argv(tmp_path, "--lr", "1e30", "--min-lr", "1e29", "--warmup-epochs", "0"))
    assert fails(outcome, 5, "the optimizer has not stepped", "Clouds of the batch: ", "Try a lower --lr")
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("failed", 5)
    assert "the optimizer has not stepped" in status(tmp_path)["message"]


def with_loss_times(factor):
    """`JointMAE.forward` with another loss."""
    forward = JointMAE.forward

    def changed(*arguments):
        output = forward(*arguments)
        return output._replace(loss=output.loss * factor)

    return changed


def test_the_clouds_of_a_batch_that_is_not_finite(tmp_path, command):
    """All of them are in a file, with their names; an attempt that goes well takes it away."""
    argv = small_argv(tmp_path, "--batch-size", "12")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JointMAE, "forward", with_loss_times(torch.nan))
        outcome = command(argv)
    file = tmp_path / "run" / "non_finite.json"
    assert fails(outcome, 5, f", ... (see {file})")
    record = json.loads(file.read_text())
    names = load(tmp_path / "clouds.h5").names
    assert len(record["clouds"]) == 12 and all(cloud["name"] == names[cloud["id"]] for cloud in record["clouds"])
    assert (record["what"], record["step"], record["value"]) == ("loss", 0, "nan")
    assert command(argv).code == 0 and not file.exists()


def test_only_the_loss_is_not_finite(tmp_path, command, monkeypatch):
    monkeypatch.setattr(JointMAE, "forward", with_loss_times(torch.inf))
    assert fails(command(small_argv(tmp_path)), 5, "the loss of step 0 is inf")
    assert status(tmp_path)["checkpoint"] == 0


def test_a_run_that_failed_before_its_first_checkpoint_starts_again(whole, tmp_path, command):
    shutil.copy(whole / "clouds.h5", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, Step, "run", 4, MemoryError())
        assert command(small_argv(tmp_path)).code == 6
    assert command(small_argv(tmp_path)).code == 0
    assert results(tmp_path / "run") == results(whole / "run")


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(tmp_path, command, monkeypatch):
    weights, steps = {}, []

    def poison(self, loss):
        steps.append(loss)
        if len(steps) == 4:
            weights.update({name: value.clone() for name, value in self.model.state_dict().items()})
            next(self._grads()).fill_(torch.inf)
        return clip_and_step(self, loss)

    clip_and_step = Step._clip_and_step
    monkeypatch.setattr(Step, "_clip_and_step", poison)
    made = []
    monkeypatch.setattr(step, "adamw", lambda model, config: made.append(model) or adamw(model, config))
    assert fails(command(small_argv(tmp_path)), 5, "the gradient of step 3 is ")
    assert all(torch.equal(weights[name], value) for name, value in made[0].state_dict().items())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"),
        MemoryError("std::bad_alloc"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["GPU", "CPU", "Windows", "native", "Triton", "cuBLAS"],
)
def test_out_of_memory(tmp_path, command, monkeypatch, error):
    crash_at(monkeypatch, JointMAE, "forward", 6, error)  # of four in the first step
    outcome = command(small_argv(tmp_path))
    assert fails(outcome, 6, "out of memory at step 2 with 4 clouds at once (peak ", "with 2 did fit", "--accumulate 2")
    assert status(tmp_path)["exit_code"] == 6


def test_out_of_memory_with_batches_of_one(tmp_path, command, monkeypatch):
    crash_at(monkeypatch, JointMAE, "forward", 1, MemoryError())
    outcome = command(small_argv(tmp_path, "--batch-size", "1"))
    assert fails(outcome, 6, "with 1 cloud at once (peak ", "not even a single cloud fits: try a smaller")


def test_out_of_memory_while_reading(tmp_path, command, monkeypatch):
    crash_at(monkeypatch, pretraining, "load", 1, MemoryError())
    assert fails(command(small_argv(tmp_path)), 6, "out of memory while reading the data")


def test_other_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_errors("", ""):
        raise RuntimeError("shapes do not match")


def test_a_bug_keeps_its_traceback_and_is_in_the_status(tmp_path, command, monkeypatch):
    crash_at(monkeypatch, Step, "run", 3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        command(small_argv(tmp_path))
    end = {"exit_code": 1, "message": "RuntimeError: shapes do not match"}
    assert status(tmp_path) == {"state": "failed", "step": 2, "num_steps": 12, "checkpoint": 0, **end}


def test_the_progress_is_left_when_a_step_fails(tmp_path, command, monkeypatch):
    left = []
    monkeypatch.setattr(Progress, "__exit__", lambda self, *exception: left.append(exception[0]))
    crash_at(monkeypatch, Step, "run", 3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError):
        command(small_argv(tmp_path))
    assert left == [RuntimeError] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---- optimizer and batches ----


@pytest.mark.parametrize(
    "changes", [{}, {"point_norm": "batch", "position_2d": "learned"}, {"modality": "3d"}], ids=str
)
def test_what_decays(changes):
    model = JointMAE(micro_config(**changes))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying, others = ({names[p] for p in group["params"]} for group in parameter_groups(model, 0.05))
    assert decaying | others == set(names.values()) and not decaying & others
    tokens = [name for name in names.values() if "modality" in name or "token" in name or "depth_position" in name]
    assert len(tokens) == {"joint": 4, "3d": 2}[model.config.modality] + 2 * (model.config.position_2d == "learned")
    assert set(tokens) <= others
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.GroupNorm)):
            assert {f"{prefix}weight", f"{prefix}bias"} <= others
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            assert f"{prefix}weight" in decaying and (module.bias is None or f"{prefix}bias" in others)
    groups = parameter_groups(model, 0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]


def test_the_optimizers_state_is_taken_over_exactly(tmp_path):
    config = small_config(tmp_path)
    model = JointMAE(config.model)
    optimizer = adamw(model, config)
    assert state_tensors(optimizer, model) == {}
    for number in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 + number)
        optimizer.step()
    saved = state_tensors(optimizer, model)
    slots = {"exp_avg", "exp_avg_sq", "step"}
    assert set(saved) == {f"{name}/{slot}" for name, _ in model.named_parameters() for slot in slots}
    other = adamw(model, config)
    load_state_tensors(other, model, saved)
    again = state_tensors(other, model)
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_an_epoch_visits_every_cloud_once_and_epochs_differ(tmp_path):
    config = small_config(tmp_path)
    clouds = load(config.data[0])
    schedule = trainer.Schedule(config, 6)
    task = pretraining.PretrainingTask(config, clouds)
    one = trainer.Trainer(task, schedule, RunFolder(tmp_path / "run", config, task.inputs))

    def ids_of(step):
        one.step = step
        return one._batch_ids()[0]

    epochs = [torch.cat([ids_of(6 * epoch + position) for position in range(6)]) for epoch in (0, 1, 0)]
    assert all(sorted(ids.tolist()) == list(range(24)) for ids in epochs)
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_batches_are_what_augmentation_says(tmp_path):
    config = small_config(tmp_path)
    clouds = load(config.data[0])
    ids = torch.tensor([3, 5])
    points = clouds.points[ids]
    plain = augment("none", points, clouds.up[ids], ids, 0, seed=0)
    assert torch.equal(plain, normalize_unit_sphere(points))
    first, again, later = (augment("scale+shift", points, clouds.up[ids], ids, epoch, seed=0) for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, plain)
    assert first.norm(dim=-1).amax() <= 1 + 1e-5


def test_several_files_are_joined(tmp_path, command):
    argv = small_argv(tmp_path)
    write_clouds(tmp_path / "more.h5", train=8, num_points=300)
    data = ["--data", str(tmp_path / "clouds.h5"), str(tmp_path / "more.h5")]
    outcome = command([*argv, *data, "--epochs", "1"])
    assert outcome.code == 0 and "32 clouds x 300 points" in outcome.out and "8 steps" in outcome.out
