"""Commands and their options: what is accepted, what is refused, with which words and exit code."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

import jointmae.config
from jointmae import ablate, cli, linear_svm, train
from jointmae.config import (
    FewShotConfig,
    FinetuneConfig,
    ModelConfig,
    PartSegConfig,
    TrainConfig,
    model_config_from_dict,
    to_dict,
)
from jointmae.errors import UsageError
from jointmae.limits import require_valid
from jointmae.recipes import PRESETS, RECIPES, train_config
from tests.runs import SMALL, fails, run, small_argv, write_clouds

COMMANDS = {
    "train": TrainConfig,
    "linear_svm": linear_svm.LinearSVMConfig,
    "ablate": ablate.AblateConfig,
    "finetune": FinetuneConfig,
    "few_shot": FewShotConfig,
    "part_seg": PartSegConfig,
}
HEAVY = ("torch", "sklearn", "h5py", "matplotlib", "scipy", "numpy")
HELP = """
import sys
sys.argv = ["command", "--help"]
from jointmae import cli, {command}
try:
    cli.run({command}.main)
finally:
    loaded = [name for name in {heavy} if name in sys.modules]
    assert not loaded, loaded
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete_and_loads_nothing_heavy(command):
    script = HELP.format(command=command, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    config = COMMANDS[command]()
    assert [name for name in cli._option_names(config) if name not in done.stdout] == []


@pytest.mark.parametrize("config", [ModelConfig, *COMMANDS.values()])
def test_every_option_says_what_it_is(config, capsys):
    default = train_config() if config in (ModelConfig, TrainConfig) else config()
    with pytest.raises(SystemExit):
        cli.parse(default, ["--help"], "command", "")
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(config):
        if field.name == "model":
            continue
        flag = f"--{field.name.replace('_', '-')}"
        begin = words.index(f"{flag}{',' if isinstance(getattr(config(), field.name), bool) else ' '}")
        text = words[begin : words.index("(default:", begin)]
        assert len(text.split()) > 4 or "{" in text, text


def other_value(value):
    """A value that a field may have and has not."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, tuple):
        return tuple(other_value(v) for v in value)
    return value + 1


def other_choice(config, name):
    annotation = str(next(f.type for f in dataclasses.fields(config) if f.name == name))
    if annotation in ("Scope", "Augmentation"):
        annotation = str(getattr(jointmae.config, annotation)).removeprefix("typing.")
    if annotation.startswith("Literal"):
        choices = [word.strip().strip("\"'") for word in annotation[len("Literal[") : -1].split(",")]
        return next(choice for choice in choices if choice != getattr(config, name))
    return other_value(getattr(config, name))


def as_options(name, value):
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def test_every_field_is_an_option():
    default = train_config()
    for part in (default, default.model):
        for name in (field.name for field in dataclasses.fields(part)):
            if name in ("model", "preset", "recipe"):
                continue
            value = other_choice(part, name)
            parsed = train.parse_args(as_options(name, value))
            assert getattr(parsed if part is default else parsed.model, name) == value, name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_presets_and_recipes_set_the_defaults_of_other_options(preset, recipe):
    config = train.parse_args([f"--preset={preset}", "--recipe", recipe, "--epochs", "7"])
    assert config == dataclasses.replace(train_config(preset, recipe), epochs=7)
    require_valid(config)


def test_model_configs_survive_json():
    config = train_config("tiny").model
    assert model_config_from_dict(to_dict(config)) == config
    with pytest.raises(ValueError, match=r"unknown model fields \['depth'\]"):
        model_config_from_dict({**to_dict(config), "depth": 3})


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--epochs=3"], "epochs", 3),
        (["--mask_ratio", "0.5"], "mask_ratio", 0.5),
        (["--mask-ratio=.5"], "mask_ratio", 0.5),
        (["--num-centers", "32", "8"], "num_centers", (32, 8)),
        (["--data", "a.h5", "b.h5"], "data", ("a.h5", "b.h5")),
        (["--data=a.h5", "b.h5"], "data", ("a.h5", "b.h5")),
        (["--no-evaluate"], "evaluate", False),
        (["--lr", "1e-4"], "lr", 1e-4),
        (["--epochs", "3", "--epochs", "4"], "epochs", 4),
        (["--preset", "small", "--preset=tiny"], "preset", "tiny"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_accepted_forms(argv, name, value):
    config = train.parse_args(argv)
    assert getattr(config if hasattr(config, name) else config.model, name) == value


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epoch", "3"], "unknown option --epoch. Did you mean --epochs?"),
        (["--Epochs", "3"], "unknown option --Epochs. Did you mean --epochs?"),
        (["--mask-rato=0.5"], "unknown option --mask-rato. Did you mean --mask-ratio?"),
        (["--model.num-points", "3"], "unknown option --model.num-points. Did you mean --num-points?"),
        (["--zzz"], "unknown option --zzz."),
        (["my.h5"], "unexpected argument: my.h5. Options start with --"),
        ([""], "unexpected argument: ''"),
        (["-e", "3"], "unexpected argument: -e, 3"),
        (["--epochs"], "Missing value for argument '--epochs'"),
        (["--epochs", "three"], "--epochs must be an integer, got 'three'"),
        (["--epochs", "1.5"], "--epochs must be an integer, got '1.5'"),
        (["--lr", "fast"], "--lr must be a number, got 'fast'"),
        (["--num-centers", "64"], "'--num-centers'. Expected 2 values"),
        (["--num-centers", "64", "x"], "--num-centers: Could not parse arguments ['64', 'x']"),
        (["--epochs", "3", "4"], "unexpected argument: 4"),
        (
            ["--augment", "flip"],
            "'flip' for argument '--augment'. Expected one of ('scale+shift', 'rotate', 'scale+shift+rotate', 'none')",
        ),
        (["--evaluate", "yes"], "unexpected argument: yes"),
        (["--preset", "tinny"], "--preset must be one of tiny, small, paper, got 'tinny'"),
        (["--recipe=mine"], "--recipe must be one of best, paper, 3d-only, got 'mine'"),
        (["--preset"], "Missing value for argument '--preset'"),
        (["--out"], "Missing value for argument '--out'"),
        (["--data"], '--data must be paths of data sets, or "furniture", got nothing'),
        (["--data", ""], '--data must be paths of data sets, or "furniture", got nothing'),
        (["--splits"], "--splits must be names of splits, as in --splits train, got nothing"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--epochs", "-3"], "--epochs must be at least 1, got -3"),
        (["--max-steps", "-1"], "--max-steps must be at least 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--threads", "-1"], "--threads must be at least 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", str(10**30)], "--seed must be at least 0 and below 2^63"),
        (["--lr", "0"], "--lr must be positive, got 0.0"),
        (["--lr", "nan"], "--lr must be positive, got nan"),
        (["--lr", "inf"], "--lr must be positive, got inf"),
        (["--min-lr", "1"], "--min-lr must be between 0 and --lr 0.001, got 1.0"),
        (["--weight-decay", "-1"], "--weight-decay must be at least 0"),
        (["--betas", "0.9", "1"], "--betas must be at least 0 and below 1, got 0.9 1.0"),
        (["--clip-grad", "nan"], "--clip-grad must be at least 0"),
        (["--warmup-epochs", "-1"], "--warmup-epochs must be at least 0"),
        (["--warmup-epochs", "inf"], "--warmup-epochs must be at least 0"),
        (["--mask-ratio", "1.5"], "--mask-ratio must be above 0 and below 1, got 1.5"),
        (["--mask-ratio", "0"], "--mask-ratio must be above 0 and below 1, got 0.0"),
        (["--mask-ratio", "0.99"], "--mask-ratio must be low enough to leave one of 32 tokens visible"),
        (["--image-size", "100"], "--image-size must be a positive multiple of 16, got 100"),
        (["--image-size", "0"], "--image-size must be a positive multiple of 16, got 0"),
        (["--num-heads", "7"], "--num-heads must be a divisor of the width 96, got 7"),
        (["--num-heads", "0"], "--num-heads must be a divisor of the width 96, got 0"),
        (["--num-centers", "8", "16"], "--num-centers must be fine >= coarse >= 4, got 8 16"),
        (["--num-points", "16"], "--num-points must be at least the 128 fine centres, got 16"),
        (["--num-neighbors", "0", "4"], "--num-neighbors must be between 1"),
        (["--num-neighbors", "8", "999"], "--num-neighbors must be between 1"),
        (["--num-target-neighbors", "9999"], "--num-target-neighbors must be between 1 and --num-points 1024"),
        (["--embed-dims", "0", "8", "96"], "--embed-dims must be positive"),
        (["--embed-dims", "8", "8", "6"], "--embed-dims must be three widths, the last a multiple of 4"),
        (["--num-layers", "0"], "--num-layers must be at least 1"),
        (["--drop-path", "1"], "--drop-path must be at least 0 and below 1"),
        (["--footprint-radius", "-1"], "--footprint-radius must be between 0"),
        (["--camera-distance", "1"], "--camera-distance must be above 1"),
        (["--elevation", "1", "0"], "--elevation must be low <= high"),
        (["--loss-weight-2d", "-1"], "--loss-weight-2d must be at least 0"),
        (["--device", "banana"], "--device banana cannot be used"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--splits", "validation"], "has none of --splits validation; it has train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(argv, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert fails(run(train.main, argv, monkeypatch, capfd), 2, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="needs a machine without a GPU")
def test_no_gpu(tmp_path, monkeypatch, capfd):
    outcome = run(train.main, [*small_argv(tmp_path), "--device", "cuda"], monkeypatch, capfd)
    assert fails(outcome, 2, "--device cuda cannot be used")


def test_unknown_options_of_linear_svm(monkeypatch, capfd):
    outcome = run(linear_svm.main, ["--checkpoit", "x"], monkeypatch, capfd)
    assert fails(outcome, 2, "Did you mean --checkpoint?", "python -m jointmae.linear_svm --help")


def test_an_interrupt_before_training_is_130(monkeypatch, capfd):
    def interrupted(_argv):
        raise KeyboardInterrupt

    outcome = run(interrupted, [], monkeypatch, capfd)
    assert (outcome.code, outcome.err) == (130, "stopped\n")


def test_a_reader_that_leaves_is_no_traceback():
    command = f"{sys.executable} -m jointmae.train --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.returncode in (0, 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file on a disk that is always full")
def test_a_log_on_a_full_disk_is_no_traceback(tmp_path):
    command = [sys.executable, "-m", "jointmae.train", *small_argv(tmp_path), "--dry-run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 74
    assert (
        done.stderr == "error: cannot write what is said: No space left on device. Send the output to another place.\n"
    )


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda _argv: 1 // 0)


def test_dry_run_writes_nothing(tmp_path, monkeypatch, capfd):
    write_clouds(tmp_path / "clouds.h5")
    monkeypatch.chdir(tmp_path)
    outcome = run(train.main, [*SMALL, "--data", "clouds.h5", "--dry-run"], monkeypatch, capfd)
    assert outcome.code == 0 and outcome.err == ""
    assert "12 steps of 4 clouds, 2 epochs" in outcome.out and "runs/tiny-clouds-0" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["clouds.h5"]


def test_validity_is_checked_for_callers_of_the_library_too():
    with pytest.raises(UsageError, match="--lr must be positive"):
        require_valid(dataclasses.replace(train_config(), lr=math.nan))
