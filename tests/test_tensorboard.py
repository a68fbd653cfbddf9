"""Event files of small runs, read as TensorBoard reads them."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from jointmae import board, pretraining, train
from jointmae.board import Board
from jointmae.config import TrainConfig
from jointmae.data import load, normalize_unit_sphere
from jointmae.report.figures import choose
from jointmae.step import Step
from tests.models import furniture, micro_config, micro_model
from tests.runs import fails, results, run, small_argv, small_config, write_clouds

OPTIONS = ("--point-norm", "batch")  # running statistics: a model that is not left as it was gives other bytes
GREY = 128


@pytest.fixture
def command(monkeypatch, capfd):
    return lambda argv: run(train.main, argv, monkeypatch, capfd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same 12 steps in `run`, with event files, and in `plain`, without, where their writer cannot be had."""
    folder = tmp_path_factory.mktemp("runs")
    assert pretraining.train(small_config(folder, *OPTIONS, "--tensorboard")) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "jointmae.board", None)
        patch.setitem(sys.modules, "tensorboard", None)
        assert pretraining.train(small_config(folder, *OPTIONS, "--out", str(folder / "plain"))) == 0
    return folder


def read(run: Path) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()


def scalars(run: Path, prefix: str) -> dict[str, list[tuple[int, float]]]:
    events = read(run)
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(prefix)]
    return {tag.removeprefix(prefix): [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def lines(file: Path, *left_out: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and float32 values of every name in a .jsonl file."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in map(json.loads, file.read_text().splitlines()):
        for name in record.keys() - {"step", *left_out}:
            found.setdefault(name, []).append((record["step"], float(np.float32(record[name]))))
    return found


def panels(png: bytes) -> list[np.ndarray]:
    """Input, visible patches and reconstruction [320, 320, 3] of a picture of three maps of 64 pixels."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.size == (3 * 320 + 2 * 4, 320)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[:, 320:324] > 250).all() and (pixels[:, 644:648] > 250).all()
    return [pixels[:, start : start + 320] for start in (0, 324, 648)]


def vertices(run: Path, name: str, content: str = "VERTEX") -> np.ndarray:
    """The newest of them [4, n, 3]."""
    return make_ndarray(read(run).Tensors(f"clouds/{name}_{content}")[-1].tensor_proto)


# ---- what is in them ----


def test_drawing_changes_no_byte_of_the_run(folder):
    assert results(folder / "run") == results(folder / "plain")
    assert not (folder / "plain" / "tensorboard").exists()


def test_scalars_are_the_lines_of_the_run(folder):
    run = folder / "run"
    assert scalars(run, "metrics/") == lines(run / "metrics.jsonl", "epoch")
    assert scalars(run, "timings/") == lines(run / "timings.jsonl", "seconds")
    assert {"loss", "lr", "grad_norm", "grad_norm_2d", "feature_std"} <= scalars(run, "metrics/").keys()


def test_depth_maps_before_and_after(folder):
    events = read(folder / "run")
    assert events.Tags()["images"] == [f"depth_maps/{i}" for i in range(4)]
    for tag in events.Tags()["images"]:
        early, late = events.Images(tag)
        assert (early.step, late.step) == (6, 12) and (late.width, late.height) == (968, 320)
        before, masked, after = panels(late.encoded_image_string)
        hidden = (abs(masked - GREY) <= 4).all(-1)
        assert hidden.mean() == pytest.approx(12 / 16, abs=0.01)
        assert np.ptp(before) > 100 and np.ptp(after) > 20
        # the palette of 256 colours moves single pixels a little, a prediction moves whole patches
        assert abs(before - masked)[~hidden].mean() < 6 and abs(before - after)[~hidden].mean() < 6
        assert abs(before - after)[hidden].mean() > 12
        assert (panels(early.encoded_image_string)[2] != after).any()


def test_clouds_stand_upright(folder):
    """Without a test split the training clouds are shown: 256 points, 4 of 16 groups of 8 visible."""
    clouds = load(folder / "clouds.h5")
    clouds = clouds.select(torch.tensor(choose(clouds.labels.tolist(), 4)))
    points = normalize_unit_sphere(clouds.points)
    shown, visible, rebuilt = (
        torch.tensor(vertices(folder / "run", n)) for n in ("input", "visible", "reconstruction")
    )
    assert shown.shape == (4, 256, 3) and visible.shape == (4, 4 * 8, 3) and rebuilt.shape == (4, 16 * 8, 3)
    torch.testing.assert_close(shown[..., 1], torch.linalg.vecdot(points, clouds.up[:, None]))
    torch.testing.assert_close(torch.cdist(shown, shown), torch.cdist(points, points), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.linalg.det(shown[0, :3]), torch.linalg.det(points[0, :3]))  # not mirrored
    torch.testing.assert_close(rebuilt[:, :32], visible)
    assert torch.cdist(visible, shown).amin(2).amax() < 1e-3
    assert torch.cdist(rebuilt[:, 32:], shown).amin(2).amax() > 1e-2
    colors = [vertices(folder / "run", name, "COLOR") for name in ("input", "visible", "reconstruction")]
    assert [c.shape for c in colors] == [shown.shape, visible.shape, rebuilt.shape]
    assert np.ptp(colors[0]) > 100 and colors[2][0, 0].tolist() == [51, 120, 199]
    assert colors[2][0, -1].tolist() == [240, 125, 33]


# ---- runs that go on, and runs that cannot ----


def test_a_resumed_run_shows_no_step_twice(folder, tmp_path, monkeypatch):
    """A run cut short, gone on with, crashed after a line that no checkpoint holds, and finished."""
    pretraining.train(small_config(tmp_path, *OPTIONS, "--tensorboard", "--max-steps", "3"))
    run_step, steps = Step.run, []

    def crash(*arguments):
        steps.append(arguments)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return run_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Step, "run", crash)
        pretraining.train(small_config(tmp_path, *OPTIONS, "--tensorboard"))
    assert lines(tmp_path / "run/metrics.jsonl")["loss"][-1][0] == 10
    pretraining.train(small_config(tmp_path, *OPTIONS, "--tensorboard"))
    names = sorted(path.name for path in (tmp_path / "run/tensorboard").iterdir())
    assert names == [f"events.out.tfevents.{i:06d}" for i in range(3)]
    assert scalars(tmp_path / "run", "metrics/") == lines(tmp_path / "run/metrics.jsonl", "epoch")
    assert [event.step for event in read(tmp_path / "run").Images("depth_maps/0")] == [12]
    assert results(tmp_path / "run") == results(folder / "plain")


def test_without_the_package_nothing_starts(tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert fails(command(small_argv(tmp_path, "--tensorboard")), 2, "--tensorboard", "pip install 'jointmae[tb]'")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
@pytest.mark.parametrize("kind", ["scalars", "pictures"])
def test_a_full_disk(folder, tmp_path, command, monkeypatch, kind):
    write = Board._write

    def full(self, **content):
        if content.get("step") == {"scalars": 10, "pictures": 6}[kind]:
            self._file = Path("/dev/full")
        write(self, **content)

    argv = small_argv(tmp_path, *OPTIONS, "--tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(Board, "_write", full)
        assert fails(command(argv), 74, "cannot write /dev/full", "No space left on device")
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 74
    assert command(argv).code == 0 and results(tmp_path / "run") == results(folder / "plain")


# ---- drawing ----


def a_board(path: Path, num_steps: int = 1000, **changes: object) -> Board:
    config = replace(TrainConfig(model=micro_config()), **changes)
    return Board(path, config, furniture(), num_steps, 0)


@pytest.mark.parametrize("changes", [{"modality": "3d"}, {"color_render": True}, {"normalize_patches": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_kind_of_model_is_drawn(tmp_path, changes, dtype):
    model = micro_model(**changes).to(dtype).train()
    a_board(tmp_path).draw(model, 5, force=False)
    tags = read(tmp_path).Tags()
    assert len(tags["images"]) == (0 if changes == {"modality": "3d"} else 4) and len(tags["tensors"]) == 6
    assert all(module.training for module in model.modules())


def test_clouds_that_were_not_trained_on_are_shown_where_there_are_some(tmp_path):
    file = write_clouds(tmp_path / "clouds.h5", train=3, test=9, labels=True)
    shown = a_board(tmp_path, data=(str(file),))._clouds
    test_points = load(file, ("test",)).points
    assert len(shown) == 4 and all((points == test_points).flatten(1).all(1).any() for points in shown.points)


@pytest.mark.parametrize("spoilt", ["point_head", "pixel_head"])
def test_what_is_not_finite_is_not_drawn(tmp_path, spoilt):
    model = micro_model().train()
    torch.nn.init.constant_(next(getattr(model, spoilt).parameters()), torch.nan)
    drawing = a_board(tmp_path)
    drawing.draw(model, 5, force=True)
    assert read(tmp_path).Tags()["images"] == [] and model.training


def test_drawings_are_few(tmp_path, monkeypatch):
    """None within a minute, nor within a hundredth of the run, but for the last step's."""
    drawn, now = [], [0.0]
    monkeypatch.setattr(board, "_reconstruction", lambda *_: drawn.append(now[0]))
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    drawing = a_board(tmp_path)
    for seconds, step, force in [(0, 5, False), (59, 50, False), (61, 51, False), (200, 60, False), (300, 61, False)]:
        now[0] = float(seconds)
        drawing.draw(micro_model(), step, force)
    drawing.draw(micro_model(), 62, force=True)
    assert drawn == [0.0, 61.0, 300.0, 300.0]
