"""The linear probe and its command: the same numbers as scikit-learn's own search, in one JSON."""

from __future__ import annotations

import json
import shutil
import warnings

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

from jointmae import linear_svm, pretraining, probe
from jointmae.config import TrainConfig
from jointmae.data import load
from jointmae.evaluate import _probe
from jointmae.probe import C_GRID, POOLINGS, can_probe, linear_probe, pooled_features
from tests.models import micro_model
from tests.runs import contents, fails, run, small_config, write_clouds

KEYS = ["pooling", "accuracy", "accuracy_c001", "accuracy_cv", "C", "num_train", "num_test"]


@pytest.fixture
def command(monkeypatch, capfd):
    """The command `python -m jointmae.linear_svm` in this process."""
    return lambda *argv: run(linear_svm.main, ["--device", "cpu", *map(str, argv)], monkeypatch, capfd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on labelled clouds: folder/run and folder/clouds.h5, 48 and 21 clouds of three classes."""
    folder = tmp_path_factory.mktemp("trained")
    write_clouds(folder / "clouds.h5", train=48, test=21, labels=True)
    assert pretraining.train(small_config(folder, "--max-steps", "3")) == 0
    return folder


def noisy(folder):
    """The same clouds with every fourth label wrong, so that C matters."""
    path = folder / "noisy.h5"
    shutil.copy(folder / "clouds.h5", path)
    with h5py.File(path, "a") as file:
        for split in ("train", "test"):
            labels = file[f"{split}/label"][:]
            labels[::4] = (labels[::4] + 1) % 3
            file[f"{split}/label"][:] = labels
    return path


def test_it_is_scikit_learns_search_on_the_features(trained):
    """The Gram matrix that is computed once changes nothing: SVC(kernel="linear") on the features says the same."""
    file = noisy(trained)
    train, test = load(file, ("train",)), load(file, ("test",))
    model = micro_model().eval()
    x_train, x_test = (pooled_features(model, clouds) for clouds in (train, test))
    y_train, y_test = train.labels.numpy(), test.labels.numpy()
    columns = {"mean": slice(0, 24), "max": slice(24, 48), "mean+max": slice(0, 48)}
    for result in linear_probe(model, train, test):
        chosen = columns[result.pooling]
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        search = GridSearchCV(SVC(kernel="linear"), {"C": C_GRID}, cv=folds).fit(x_train[:, chosen], y_train)
        assert result.C == search.best_params_["C"]
        assert result.accuracy == pytest.approx(search.score(x_test[:, chosen], y_test))
        fixed = SVC(kernel="linear", C=0.01).fit(x_train[:, chosen], y_train)
        assert result.accuracy_c001 == pytest.approx(fixed.score(x_test[:, chosen], y_test))
        assert (result.num_train, result.num_test) == (48, 21)


def test_features_are_the_encoders_in_batches_of_any_size(trained):
    clouds = load(trained / "clouds.h5", ("test",))
    model = micro_model()
    whole = pooled_features(model, clouds)
    assert whole.shape == (21, 48) and whole.dtype == np.float64
    np.testing.assert_allclose(pooled_features(model, clouds, batch_size=4), whole, rtol=1e-5, atol=1e-6)
    pooled = model.encode(clouds.points).pooled.detach().double().numpy()
    np.testing.assert_allclose(whole, pooled, rtol=1e-5, atol=1e-6)


def test_clouds_without_a_label_are_left_out(trained, tmp_path):
    file = shutil.copy(trained / "clouds.h5", tmp_path)
    with h5py.File(file, "a") as h5:
        h5["train/label"][:6] = -1
    results = linear_probe(micro_model(), load(file, ("train",)), load(file, ("test",)))
    assert [(result.num_train, result.num_test) for result in results] == [(42, 21)] * 3


@pytest.mark.parametrize(
    ("labels", "enough"),
    [
        ([-1] * 9, False),
        ([0] * 9, False),
        ([0] * 8 + [1], False),
        ([0] * 7 + [1, 1], True),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], True),
    ],
    ids=str,
)
def test_labels_enough_for_a_probe(trained, tmp_path, labels, enough):
    write_clouds(tmp_path / "few.h5", train=9, test=3, labels=True)
    with h5py.File(tmp_path / "few.h5", "a") as file:
        file["train/label"][:] = labels
    train, test = load(tmp_path / "few.h5", ("train",)), load(tmp_path / "few.h5", ("test",))
    assert can_probe(train, test) == enough
    pair = _probe(str(tmp_path / "few.h5"), micro_model(), TrainConfig())  # what a finished run does: passes over it
    assert (pair is not None) == enough
    if not enough:
        with pytest.raises(ValueError, match="two classes of at least two train clouds each"):
            linear_probe(micro_model(), train, test)


def test_a_search_that_is_cut_short_says_so(trained, monkeypatch):
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 1)
    file = noisy(trained)
    with pytest.warns(UserWarning, match=r"the SVM on .* features at C = .* not that of the optimum"):
        linear_probe(micro_model(), load(file, ("train",)), load(file, ("test",)))


def test_the_json(trained, tmp_path, command):
    file = tmp_path / "result.json"
    outcome = command("--checkpoint", trained / "run", "--data", trained / "clouds.h5", "--json", file)
    assert outcome.code == 0 and outcome.err == ""
    record = json.loads(file.read_text())
    assert {"results", "config", "model", "data_sha256", "environment", "time"} == set(record)
    assert [list(result) for result in record["results"]] == [KEYS] * 3
    assert [result["pooling"] for result in record["results"]] == list(POOLINGS) == ["mean", "max", "mean+max"]
    for result in record["results"]:
        assert 0 <= result["accuracy"] <= 1 and 0 <= result["accuracy_c001"] <= 1 and result["C"] in C_GRID
        assert (result["num_train"], result["num_test"]) == (48, 21)
        assert f"{result['accuracy']:.1%}" in outcome.out
    assert record["results"][2]["accuracy"] > 0.9  # cubes, rods and plates
    assert "commit" in record["environment"] and len(record["data_sha256"]) == 64


def results_of(command, tmp_path, *argv):
    file = tmp_path / "result.json"
    outcome = command(*argv, "--json", file)
    assert outcome.code == 0, outcome
    return json.loads(file.read_text())["results"]


def test_a_folder_and_its_weights_are_the_same_encoder(trained, tmp_path, command):
    data = ("--data", noisy(trained))
    before = contents(trained / "run")
    by_folder = results_of(command, tmp_path, *data, "--checkpoint", trained / "run")
    assert by_folder == results_of(command, tmp_path, *data, "--checkpoint", trained / "run/model.safetensors")
    assert contents(trained / "run") == before


def test_the_random_floor_is_reproducible_and_follows_the_seed(trained, tmp_path, monkeypatch, command):
    from jointmae import encoders as known

    small = small_config(trained)
    monkeypatch.setattr(known, "train_config", lambda *_names: small)
    floor = ("--checkpoint", "random", "--data", noisy(trained), "--seed")
    first, again = (results_of(command, tmp_path, *floor, "0") for _ in range(2))
    assert first == again
    encoders = [known.load_encoder("random", "small", "best", seed) for seed in (0, 0, 1)]
    points = load(trained / "clouds.h5").points[:2]
    features = [encoder.encode(points).pooled for encoder in encoders]
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 2, ["--checkpoint is missing", "model.safetensors", "random"]),
        (["--checkpoint", "random", "--threads", "-1"], 2, ["--threads must be at least 0"]),
        (["--checkpoint", "random", "--seed", "-1"], 2, ["--seed must be at least 0"]),
        (["--checkpoint", "random", "--preset", "huge"], 2, ["--preset must be one of tiny, small, paper"]),
        (["--checkpoint", "random", "--device", "banana"], 2, ["--device banana cannot be used"]),
        (["--checkpoint", "nowhere"], 4, ["nowhere: no such run"]),
        (["--checkpoint", "."], 4, ["not a trained model"]),
        (
            ["--checkpoint", "random", "--json", "no/such/folder.json"],
            74,
            ["--json", "there is no folder no/such: make it"],
        ),
        (["--checkpoint", "random", "--json", "."], 74, ["--json . cannot be written: it is a folder"]),
        (["--checkpoint", "random", "--preset", "tiny", "--data", "nowhere.h5"], 3, ["nowhere.h5", "does not exist"]),
        (
            ["--checkpoint", "random", "--preset", "tiny", "--data", "plain.h5"],
            3,
            ["plain.h5", "labels", "two classes"],
        ),
        (["--checkpoint", "random", "--preset", "tiny", "--data", "no-test.h5"], 3, ["no-test.h5", "test"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_errors(tmp_path, monkeypatch, command, argv, code, said):
    monkeypatch.chdir(tmp_path)
    write_clouds(tmp_path / "plain.h5", train=6, test=6)
    write_clouds(tmp_path / "no-test.h5", train=6, labels=True)
    before = contents(tmp_path)
    assert fails(command(*argv), code, *said)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["remove", "empty", "cut short"])
def test_a_damaged_run(trained, tmp_path, command, name, damage):
    shutil.copytree(trained / "run", tmp_path / "run")
    file = tmp_path / "run" / name
    data = file.read_bytes()
    file.unlink()
    if damage != "remove":
        file.write_bytes(data[: len(data) // 2] if damage == "cut short" else b"")
    assert fails(command("--checkpoint", tmp_path / "run", "--data", trained / "clouds.h5"), 4, "not a trained model")


def test_an_encoder_that_has_diverged(trained, tmp_path, command):
    shutil.copytree(trained / "run", tmp_path / "run")
    weights = safetensors.torch.load_file(tmp_path / "run/model.safetensors")
    weights["encoder.norm.weight"][0] = torch.nan
    safetensors.torch.save_file(weights, tmp_path / "run/model.safetensors")
    outcome = command("--checkpoint", tmp_path / "run", "--data", trained / "clouds.h5")
    assert fails(outcome, 5, "the encoder's features are not finite")


def test_no_warning_reaches_the_user(trained, command):
    """Classes of fewer clouds than folds and large C are ordinary, and no reason for scikit-learn to speak."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = command("--checkpoint", trained / "run", "--data", noisy(trained))
    assert outcome.code == 0 and outcome.err == ""
