"""`jointmae.part_seg`: the metric is scikit-learn's, the model sees the whole cloud, results say what decides them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from jointmae import part_seg
from jointmae.config import PartSegConfig
from jointmae.data import load, normalize_unit_sphere
from jointmae.downstream.segmentation import (
    SegmentationTask,
    commonest_parts,
    parts_of_classes,
    predict_parts,
    shape_ious,
)
from jointmae.downstream.splits import load_splits
from jointmae.model import Segmenter
from jointmae.model.point_encoder import PointEncoder
from jointmae.model.segmenter import draw_segmenter, tapped_blocks
from jointmae.ops import reference
from jointmae.step import Step
from tests import official_sets
from tests.models import furniture, micro_config
from tests.runs import contents, fails, results, run, write_clouds

FAST = "--epochs 3 --batch-size 8 --warmup-epochs 1 --runs 1 --device cpu --dropout 0 --lr 1e-2".split()


@pytest.fixture
def command(monkeypatch, capfd):
    """The command `python -m jointmae.part_seg` in this process."""
    return lambda *argv: run(part_seg.main, list(map(str, argv)), monkeypatch, capfd)


@pytest.fixture
def argv(trained_run, tmp_path):
    data = ("--data", trained_run / "clouds.h5", "--checkpoint", trained_run / "run")
    return [*FAST, *data, "--out", tmp_path / "parts"]


@pytest.fixture(scope="module")
def task(trained_run) -> SegmentationTask:
    config = PartSegConfig(data=(str(trained_run / "clouds.h5"),), checkpoint=str(trained_run / "run"))
    return SegmentationTask(config, load_splits(config, torch.device("cpu")))


# ---- the metric ----


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_iou_of_a_cloud_is_scikit_learns(seed):
    """With zero_division=1: a part that neither has is a part that both agree on."""
    torch.manual_seed(seed)
    S, N, P = 20, 60, 5
    parts = torch.randint(0, P, (S, N)).minimum(torch.randint(0, P, (S, 1)))  # some clouds lack some parts
    predicted = torch.where(torch.rand(S, N) < 0.5, parts, torch.randint(0, 2, (S, N)))
    allowed = torch.rand(S, P) < 0.6
    allowed[:, 0] = True
    ours = shape_ious(parts, predicted, allowed)
    for i in range(S):
        labels = np.flatnonzero(allowed[i])
        theirs = jaccard_score(parts[i], predicted[i], labels=labels, average=None, zero_division=1.0)
        assert float(ours[i]) == pytest.approx(float(theirs.mean()))


def test_perfect_and_hopeless():
    parts = torch.tensor([[0, 0, 1, 1]])
    allowed = torch.tensor([[True, True, True]])
    assert shape_ious(parts, parts, allowed).tolist() == [1.0]
    assert shape_ious(parts, 1 - parts, allowed).tolist() == [pytest.approx(1 / 3)]  # the third part, in neither


def test_only_parts_of_the_class_are_predicted(task):
    assert parts_of_classes(task.clouds).tolist() == [
        [True, True, False],  # a cube's halves
        [True, False, False],  # a rod
        [True, False, True],  # a plate's rim
        [True, True, True],  # of an unknown class
    ]
    predicted = predict_parts(task.new_model(), task.test.first(256), task.parts_of)
    assert predicted[task.test.labels == 1].unique().tolist() == [0]
    assert 2 not in predicted[task.test.labels == 0] and 1 not in predicted[task.test.labels == 2]


def test_the_floor_is_the_commonest_part_of_each_class(task):
    """Left in cubes (by a few points) and rods, and what of a plate is no rim."""
    counts = [torch.bincount(task.clouds.parts[task.clouds.labels == label].flatten().long()) for label in range(3)]
    found = commonest_parts(task.clouds)
    assert found[:3].tolist() == [int(count.argmax()) for count in counts] and int(found[3]) == 0
    parts = task.test.first(256).parts.long()
    ious = shape_ious(parts, found[task.test.labels][:, None].expand(parts.shape), task.parts_of[task.test.labels])
    assert task.more_scores(task.new_model()) == {"trivial_instance_miou": float(ious.mean())}


def test_the_scores_of_a_known_prediction(task, monkeypatch):
    """All points are left: half a cube, a rod, and what of a plate is no rim."""
    nothing = torch.zeros(30, 256, dtype=torch.int64)
    monkeypatch.setattr("jointmae.downstream.segmentation.predict_parts", lambda *_: nothing)
    scores = task.scores(task.new_model(), task.test)
    parts = task.test.first(256).parts.long()
    share = (parts == 0).double().mean(1)
    ious = torch.where(task.test.labels == 1, 1.0, share / 2)
    by_class = [ious[task.test.labels == label].mean() for label in range(3)]
    assert scores["instance_miou"] == pytest.approx(float(ious.mean()))
    assert scores["class_miou"] == pytest.approx(float(sum(by_class) / 3))
    assert scores["point_accuracy"] == pytest.approx(float(share.mean()))


# ---- the model ----


def micro_segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(PointEncoder.of(micro_config()), "abc", "pqrs").eval()


def test_blocks_are_the_ends_of_thirds():
    assert tapped_blocks(12) == [3, 7, 11] and tapped_blocks(6) == [1, 3, 5] and tapped_blocks(1) == [0, 0, 0]
    assert tapped_blocks(4)[-1] == 3 and tapped_blocks(2)[-1] == 1


def test_interpolating_first_or_last_is_the_same():
    """A linear layer commutes with interpolation: the head on joined features, as the family writes it."""
    model = micro_segmenter()
    points = normalize_unit_sphere(furniture().points[:2, :256])
    classes = torch.tensor([1, 2])
    taps, centers = model.encoder.taps(points, model.blocks)
    tokens = torch.cat(taps, -1)
    joined = torch.cat([reference.knn_interpolate(points, centers, tokens, 3, None), points], -1)
    weight = torch.cat([model.lift_tokens.weight, model.lift_points.weight], 1)
    x = torch.nn.functional.linear(joined, weight, model.lift_points.bias)
    x = model._norm_relu(1, model.spread(model._norm_relu(0, x)))
    known = model.label(torch.nn.functional.one_hot(classes, 3).float())
    overall = torch.cat([tokens.amax(1), tokens.mean(1), known], -1)[:, None].expand(-1, 256, -1)
    weight = torch.cat([model.local.weight, model.overall.weight], 1)
    x = torch.nn.functional.linear(torch.cat([x, overall], -1), weight, model.overall.bias)
    logits = model.head(model._norm_relu(3, model.last(model._norm_relu(2, x))))
    torch.testing.assert_close(model(points, classes), logits, rtol=1e-4, atol=1e-5)


def test_widths_are_the_familys_at_the_papers_size():
    model = Segmenter(PointEncoder.of(micro_config(embed_dims=(96, 192, 384), num_heads=6)), "ab", "pq")
    assert model.widths == (1536, 1024, 512, 256) and model.lift_tokens.in_features == 1152
    assert model.overall.in_features == 2 * 1152 + 64


def test_the_order_of_points_does_not_matter():
    model = micro_segmenter()
    points, classes = normalize_unit_sphere(furniture().points[:1, :256]), torch.tensor([0])
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(255)])  # sampling begins with the first point
    torch.testing.assert_close(model(points[:, order], classes), model(points, classes)[:, order], rtol=1e-4, atol=1e-5)


def test_an_unknown_class_is_no_class():
    model = micro_segmenter()
    points = normalize_unit_sphere(furniture().points[:2, :256])
    unknown, known = model(points, torch.tensor([-1, -1])), model(points, torch.tensor([0, 0]))
    assert torch.isfinite(unknown).all() and not torch.allclose(unknown, known)


def test_every_parameter_is_trained(task):
    step = Step(task.objective(task.new_model().train()), task.clouds)
    before = {name: value.clone() for name, value in step.model.named_parameters()}
    step.run(torch.arange(16), 0, 1e-3)
    assert [name for name, value in step.model.named_parameters() if torch.equal(value, before[name])] == []


def test_points_and_parts_go_together(task):
    ids = torch.tensor([3, 7])
    points, parts = task.clouds.batch_with_parts(ids, 100, 0, 5)
    assert torch.equal(points, task.clouds.batch(ids, 100, 0, 5))
    for i, row in enumerate(ids):
        where = {
            tuple(p.tolist()): int(q) for p, q in zip(task.clouds.points[row], task.clouds.parts[row], strict=True)
        }
        assert [where[tuple(p.tolist())] for p in points[i]] == parts[i].tolist()


def test_dropout_is_a_function_of_the_sample():
    model = micro_segmenter()
    points, classes, ids = normalize_unit_sphere(furniture().points[:2, :256]), torch.zeros(2).long(), torch.arange(2)
    logits = [model(points, classes, draw_segmenter(model, 0, epoch, ids)) for epoch in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


# ---- the command ----


def test_it_learns_and_says_so(argv, command, tmp_path, trained_run):
    done = command(*argv, "--epochs", 12, "--json", tmp_path / "r.json")
    assert done.code == 0 and "instance mIoU" in done.out and "class mIoU" in done.out, done
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    one = row["runs"][0]
    assert set(one["test"]) == {"instance_miou", "class_miou", "point_accuracy", "trivial_instance_miou"}
    assert one["test"]["trivial_instance_miou"] < one["test"]["instance_miou"]
    assert (one["task"], one["num_train"], one["num_val"], one["num_test"]) == ("part segmentation", 42, 6, 30)
    assert one["inputs"]["part_names"] == ["left", "right", "rim"]
    assert one["test"]["instance_miou"] > 0.75, "halves and rims of boxes are easy; all left gives 0.6"
    page = (tmp_path / "parts/report.html").read_text()
    assert "Validation instance mIoU" in page and "Class by class" in page

    model = Segmenter.from_pretrained(tmp_path / "parts/seed-0")
    test = load(trained_run / "clouds.h5", ("test",))
    probabilities = model.segment(3 + 50 * test.points, test.labels)
    assert model.part_names == ("left", "right", "rim") and probabilities.shape == (30, 256, 3)
    share = (probabilities.argmax(-1) == test.parts).double().mean()
    assert float(share) == pytest.approx(one["test"]["point_accuracy"], abs=0.05)
    with pytest.warns(UserWarning, match="trained on 256 points a cloud, these have 40"):
        assert model.segment(test.points[:2, :40]).shape == (2, 40, 3)  # fewer points than centres, unknown classes


def test_a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on(argv, command, tmp_path):
    assert command(*argv).code == 0
    before = contents(tmp_path / "parts/seed-0")
    assert command(*argv).code == 0 and contents(tmp_path / "parts/seed-0") == before
    assert command(*argv, "--max-steps", 9, "--out", tmp_path / "other").code == 0
    assert command(*argv, "--out", tmp_path / "other").code == 0
    assert results(tmp_path / "other/seed-0") == results(tmp_path / "parts/seed-0")


@pytest.mark.parametrize("write", [official_sets.shapenet_part_txt, official_sets.shapenet_part_hdf5])
def test_shapenet_part(argv, command, tmp_path, write):
    """In both of its layouts, with its own validation split; where test classes are not those of train, too."""
    path = write(tmp_path / "official", N=80)
    done = command(*argv, "--data", path, "--batch-size", 2, "--epochs", 1)
    assert done.code == 0, done
    (one,) = json.loads((tmp_path / "parts/result.json").read_text())["rows"][0]["runs"]
    assert (one["num_train"], one["num_val"], one["num_test"]) == (3, 3, 3)
    assert 0 <= one["test"]["instance_miou"] <= 1 and len(one["inputs"]["part_names"]) == 50


def test_sets_that_cannot_serve(argv, command, tmp_path):
    path = write_clouds(tmp_path / "plain.h5", test=5, labels=True)
    assert fails(command(*argv, "--data", path), 3, "plain: part: wanted a label of one of at least two parts")
    assert fails(command(*argv, "--data", "furniture"), 3, "furniture: part: wanted")
