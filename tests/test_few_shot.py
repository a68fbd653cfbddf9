"""`jointmae.few_shot`: draws are fair and repeatable, and every setting is a row."""

from __future__ import annotations

import json

import pytest
import torch

from jointmae import few_shot
from jointmae.downstream.episodes import draw_episode
from jointmae.downstream.splits import Splits
from jointmae.errors import UsageError
from tests.models import furniture
from tests.runs import contents, fails, run

FAST = "--epochs 2 --batch-size 8 --warmup-epochs 1 --runs 2 --device cpu --queries 10".split()


@pytest.fixture
def command(monkeypatch, capfd):
    """The command `python -m jointmae.few_shot` in this process."""
    return lambda *argv: run(few_shot.main, list(map(str, argv)), monkeypatch, capfd)


@pytest.fixture
def argv(trained_run, tmp_path):
    data = ("--data", trained_run / "clouds.h5", "--checkpoint", trained_run / "run")
    return [*FAST, *data, "--out", tmp_path / "few"]


def test_every_setting_is_a_row_of_as_many_draws(argv, command, tmp_path):
    done = command(*argv, "--ways", 2, 3, "--shots", 4, 8, "--json", tmp_path / "r.json")
    assert done.code == 0, done
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    settings = ["2-way 4-shot", "2-way 8-shot", "3-way 4-shot", "3-way 8-shot"]
    assert [row["setting"] for row in rows] == settings and all(setting in done.out for setting in settings)
    for row, (ways, shots) in zip(rows, [(2, 4), (2, 8), (3, 4), (3, 8)], strict=True):
        assert [one["seed"] for one in row["runs"]] == [0, 1] and row["summary"]["accuracy"]["runs"] == 2
        assert {(one["num_train"], one["num_test"], one["num_val"]) for one in row["runs"]} == {
            (ways * shots, 10 * ways, 0)
        }
        assert {(one["selection"], one["epoch"]) for one in row["runs"]} == {("last", 2)}
        assert set(row["summary"]) == {"accuracy"}
    page = (tmp_path / "few/report.html").read_text()
    assert all(text in page for text in ("2-way 4-shot: accuracy", "3-way-8-shot/seed-1", "6 more runs are not shown"))
    before = contents(tmp_path / "few" / "2-way-4-shot" / "seed-0")
    again = command(*argv, "--ways", 2, 3, "--shots", 4, 8)
    assert again.code == 0 and again.out.count("finished") == 8
    assert contents(tmp_path / "few" / "2-way-4-shot" / "seed-0") == before


def test_too_few_classes(argv, command, tmp_path):
    said = "--ways 4 --shots 4 --queries 10: only 3 of 3 classes of clouds have 4 train and 10 test clouds"
    assert fails(command(*argv, "--ways", 4, "--shots", 4), 2, said)
    assert fails(command(*argv, "--ways", 2, "--shots", 17), 2, "only 0 of 3 classes")
    assert fails(command(*argv, "--ways", 2, "--shots", 0), 2, "--shots must be")
    assert fails(command(*argv, "--ways", 1), 2, "--ways must be")
    assert not (tmp_path / "few").exists()


def test_a_draw_has_so_many_clouds_of_so_many_classes():
    clouds = furniture()
    splits = Splits(clouds, None, clouds.select(torch.arange(len(clouds) - 1, -1, -1)))
    drawn = draw_episode(splits, 3, 4, 5, seed=7)
    assert drawn.val is None and len(set(drawn.train.classes)) == 3
    assert torch.bincount(drawn.train.labels).tolist() == [4] * 3
    assert torch.bincount(drawn.test.labels).tolist() == [5] * 3
    known = {
        cloud.numpy().tobytes(): clouds.classes[label]
        for cloud, label in zip(clouds.points, clouds.labels, strict=True)
    }
    for part in (drawn.train, drawn.test):
        found = [known[cloud.numpy().tobytes()] for cloud in part.points]
        assert found == [part.classes[label] for label in part.labels]
        assert len({cloud.numpy().tobytes() for cloud in part.points}) == len(part)  # none twice


def test_draws_are_functions_of_the_seed_and_differ():
    clouds = furniture()
    draws = [draw_episode(Splits(clouds, None, clouds), 3, 4, 5, seed).train for seed in (0, 0, 1, 2, 3, 4)]
    assert torch.equal(draws[0].points, draws[1].points)
    assert len({draw.points.numpy().tobytes() for draw in draws}) == 5
    assert len({draw.classes for draw in draws}) >= 3


def test_unlabelled_clouds_are_never_drawn():
    clouds = furniture()
    labels = torch.where(clouds.labels == 0, -1, clouds.labels)
    clouds = type(clouds)(**{**vars(clouds), "labels": labels})
    for seed in range(20):
        assert clouds.classes[0] not in draw_episode(Splits(clouds, None, clouds), 3, 2, 2, seed).train.classes
    with pytest.raises(UsageError, match="only 12 of 13 classes"):
        draw_episode(Splits(clouds, None, clouds), 13, 1, 1, 0)
