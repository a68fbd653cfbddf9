"""What TensorBoard shows of a run while it goes on: event files in `<run>/tensorboard`.

metrics/*, timings/*  every number of the lines of metrics.jsonl and timings.jsonl that is worth a curve
depth_maps/*          input, visible patches and reconstruction, side by side
clouds/*              input, visible groups, and these with the predicted ones

Events are written where they arise, not by torch's SummaryWriter: its thread would answer a full disk with a traceback
and drop what waits in its queue, and the run would hear of it at a later event. B clouds, n points of each.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.tensorboard.summary import mesh

from jointmae.config import TrainConfig
from jointmae.data import PointClouds
from jointmae.device import out_of_memory_errors
from jointmae.evaluate import first_test_split, reconstruct
from jointmae.files import disk_errors, make_folder
from jointmae.model import JointMAE, Reconstruction
from jointmae.model.projection import View, world_to_cam
from jointmae.report.figures import PREDICTED, VISIBLE, DepthTriple, choose, depth_triple, visible_and_predicted
from jointmae.report.render import colors_by_height, depth_pixels, png

NUM_SHAPES = 4
DRAW_SECONDS = 60.0  # at least, between drawings
MAX_DRAWINGS = 100  # of a run, but for its last step: each is some hundred kilobytes

_NO_CURVE = ("step", "epoch", "seconds")
_PREFIX = "events.out.tfevents"  # what TensorBoard knows event files by
_GAP = 4  # pixels between depth maps side by side
_AZIMUTH = 0.20 * math.pi  # shapes are turned a little, as in the report
_MATERIAL = {"material": {"cls": "PointsMaterial", "size": 0.03}}


class Board:
    """One event file: that of this start of the run. Nothing is open between two events."""

    def __init__(self, run: Path, config: TrainConfig, clouds: PointClouds, num_steps: int, logged: int) -> None:
        """For a run that goes on after step `logged`; shapes of the first test split, or else of `clouds`, are drawn.

        What earlier event files say of later steps gives way to what this one will say: no step is shown twice.
        """
        self._clouds = _shapes(config, clouds)
        self._num_steps = num_steps
        self._drawn_step, self._drawn_at = -math.inf, -math.inf
        folder = run / "tensorboard"
        make_folder(folder)
        self._file = folder / f"{_PREFIX}.{_next_number(folder):06d}"
        self._write(file_version="brain.Event:2")
        self._write(session_log=SessionLog(status=SessionLog.START), step=logged + 1)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """One line of `name`.jsonl as scalars."""
        values = [
            Summary.Value(tag=f"{name}/{key}", simple_value=value)
            for key, value in record.items()
            if key not in _NO_CURVE
        ]
        self._write(summary=Summary(value=values), step=record["step"])

    def draw(self, model: nn.Module, step: int, force: bool) -> None:
        """Depth maps and clouds at the end of `step`, if the last drawing is long ago (or if forced).

        `model` stays as it is. A model that predicts what is not finite is not drawn: its next step ends the run.
        """
        assert isinstance(model, JointMAE)
        due = time.monotonic() - self._drawn_at >= DRAW_SECONDS
        if not force and not (due and step - self._drawn_step >= self._num_steps / MAX_DRAWINGS):
            return
        output = _reconstruction(model, self._clouds)
        if output is not None:
            values = [*_depth_maps(model, output), *_meshes(model, self._clouds.up, output)]
            self._write(summary=Summary(value=values), step=step)
        self._drawn_step, self._drawn_at = step, time.monotonic()

    def _write(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content).SerializeToString()
        with disk_errors(self._file, len(event)), self._file.open("ab") as file:
            RecordWriter(file).write(event)


def _shapes(config: TrainConfig, clouds: PointClouds) -> PointClouds:
    with out_of_memory_errors("while reading the clouds for TensorBoard", "Leave out --tensorboard."):
        test_clouds = first_test_split(config, torch.device("cpu"))
    shown = clouds if test_clouds is None else test_clouds
    return shown.select(torch.tensor(choose(shown.labels.tolist(), NUM_SHAPES))).to(clouds.device)


def _next_number(folder: Path) -> int:
    """TensorBoard reads files by name, and no clock gives names in the order of starts for sure."""
    with disk_errors(folder):
        endings = [path.suffix[1:] for path in folder.glob(f"{_PREFIX}.*")]
    return 1 + max((int(ending) for ending in endings if ending.isdigit()), default=-1)


def _reconstruction(model: JointMAE, clouds: PointClouds) -> Reconstruction | None:
    """None if it is not finite."""
    training = model.training
    try:
        output = reconstruct(model, clouds, torch.arange(len(clouds)))
    except ValueError as error:  # on a CPU, ops refuse such predictions
        if "must be finite" not in str(error):
            raise
        return None
    finally:
        model.train(training)
    return output if bool(output.loss.isfinite()) else None


# ---- depth maps ----


def _depth_maps(model: JointMAE, output: Reconstruction) -> list[Summary.Value]:
    triples = [depth_triple(model, row, output) for row in range(len(output.pred_groups))]
    return [
        Summary.Value(tag=f"depth_maps/{row}", image=_strip(triple))
        for row, triple in enumerate(triples)
        if triple is not None
    ]


def _strip(triple: DepthTriple) -> Summary.Image:
    """Input, visible patches and reconstruction, from left to right."""
    before, hidden, after = triple
    pictures = [depth_pixels(before), depth_pixels(before, hidden), depth_pixels(after)]
    gap = np.full_like(pictures[0][:, :_GAP], 255)
    pixels = np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1)
    height, width, colorspace = pixels.shape
    return Summary.Image(height=height, width=width, colorspace=colorspace, encoded_image_string=png(pixels))


# ---- clouds ----


def _meshes(model: JointMAE, up: Tensor, output: Reconstruction) -> list[Summary.Value]:
    """Clouds as TensorBoard stands them up, y upwards, in the colours of the report."""
    view = View(up.new_full((len(up),), _AZIMUTH), up.new_zeros(len(up)))
    right_down_away = world_to_cam(model.config, view, up, 1)[:, 0, :, :3]  # [B, 3, 3]
    rotation = right_down_away * right_down_away.new_tensor([1, -1, -1])[:, None]
    points = output.inputs.points.float()  # [B, N, 3]
    heights = torch.linalg.vecdot(points, up[:, None]).cpu().double().numpy()  # [B, N]
    parts = [visible_and_predicted(row, output) for row in range(len(up))]
    visible, predicted = (torch.stack(part) for part in zip(*parts, strict=True))  # [B, n, 3]
    blue, orange = _plain(visible, VISIBLE), _plain(predicted, PREDICTED)
    layers = {
        "input": (points, torch.tensor(np.stack([colors_by_height(height) for height in heights]))),
        "visible": (visible, blue),
        "reconstruction": (torch.cat([visible, predicted], 1), torch.cat([blue, orange], 1)),
    }
    values: list[Summary.Value] = []
    for name, (vertices, colors) in layers.items():
        upright = vertices @ rotation.mT
        values += mesh(f"clouds/{name}", upright, (colors * 255).round(), None, _MATERIAL).value
    return values


def _plain(points: Tensor, color: tuple[float, float, float]) -> Tensor:
    """`color` for each of `points` [B, n, 3]."""
    return torch.tensor(color).expand(points.shape)
