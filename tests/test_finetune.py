"""`jointmae.finetune`: the recipe, the protocol, the metrics, and that a stopped run ends in the same bytes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.classification as oracle
from torch import nn

from jointmae import encoders, finetune, trainer
from jointmae.config import FinetuneConfig
from jointmae.data import load, normalize_unit_sphere
from jointmae.downstream.classification import Classification, ClassificationTask, class_scores, predict
from jointmae.downstream.runs import summarize
from jointmae.downstream.splits import farthest_first, hold_out, load_splits
from jointmae.model import Classifier, JointMAE
from jointmae.model.classifier import draw_classifier
from jointmae.model.point_encoder import PointEncoder
from jointmae.ops import farthest_point_sample
from jointmae.optimizer import parameter_groups
from jointmae.step import Step
from tests import official_sets
from tests.models import furniture, micro_config
from tests.runs import contents, fails, results, run, write_clouds

FAST = "--epochs 3 --batch-size 16 --warmup-epochs 1 --runs 1 --votes 2 --device cpu --dropout 0.2 --lr 3e-3".split()


@pytest.fixture
def command(monkeypatch, capfd):
    """The command `python -m jointmae.finetune` in this process."""
    return lambda *argv: run(finetune.main, list(map(str, argv)), monkeypatch, capfd)


@pytest.fixture
def argv(trained_run, tmp_path):
    data = ("--data", trained_run / "clouds.h5", "--checkpoint", trained_run / "run")
    return [*FAST, *data, "--out", tmp_path / "fine"]


@pytest.fixture(scope="module")
def whole(trained_run, tmp_path_factory):
    """The folder of a finished command of two runs."""
    folder = tmp_path_factory.mktemp("fine")
    options = [*FAST, "--runs", "2", "--data", str(trained_run / "clouds.h5")]
    assert finetune.main([*options, "--checkpoint", str(trained_run / "run"), "--out", str(folder / "fine")]) == 0
    return folder / "fine"


def result(folder: Path, seed: int = 0) -> dict:
    return json.loads((folder / f"seed-{seed}" / "result.json").read_text())


def config(**changes) -> FinetuneConfig:
    return dataclasses.replace(FinetuneConfig(checkpoint="random", preset="tiny", compile="off"), **changes)


# ---- the command ----


def test_a_result_says_what_decides_it(whole, trained_run):
    one = result(whole)
    assert (one["task"], one["data"], one["encoder"], one["seed"]) == ("classification", "clouds", "run", 0)
    assert (one["num_train"], one["num_val"], one["num_test"]) == (42, 6, 30)
    assert one["selection"] == "best of validation" and 1 <= one["epoch"] <= one["epochs"] == 3
    protocol = {"augmentation": "scale+shift", "pooling": "mean+max", "sampling": "fps", "num_points": 256, "votes": 2}
    assert {name: one[name] for name in protocol} == protocol
    assert one["inputs"]["checkpoint_sha256"] == encoders.sha256_of(str(trained_run / "run"))
    assert one["inputs"]["data_sha256"] == load(trained_run / "clouds.h5").sha256
    assert set(one["test"]) == {"accuracy", "class_accuracy", "voted_accuracy", "voted_class_accuracy"}
    assert {name: found["num_test"] for name, found in one["classes"].items()} == {"cube": 10, "rod": 10, "plate": 10}


def test_the_runs_together(whole):
    both = json.loads((whole / "result.json").read_text())
    (row,) = both["rows"]
    accuracies = torch.tensor([one["test"]["accuracy"] for one in row["runs"]], dtype=torch.float64)
    assert row["summary"]["accuracy"] == {"mean": accuracies.mean().item(), "std": accuracies.std().item(), "runs": 2}
    assert [one["seed"] for one in row["runs"]] == [0, 1] and both["config"]["runs"] == 1 + 1
    page = (whole / "report.html").read_text()
    assert all(text in page for text in ("Class by class", "best of validation", "Validation accuracy", "seed-1"))
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_the_best_epoch_of_validation_is_what_is_tested(whole, trained_run):
    """The scores of the test split are those of the weights of the epoch that validation chose."""
    lines = [json.loads(line) for line in (whole / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    by_epoch = [line["val_accuracy"] for line in lines if "val_accuracy" in line]
    assert len(by_epoch) == 3
    one = result(whole)
    assert one["epoch"] == 1 + by_epoch.index(max(by_epoch))
    model = Classifier.from_pretrained(whole / "seed-0")
    test = farthest_first(load(trained_run / "clouds.h5", ("test",)), 256, spare=False)
    assert class_scores(test.labels, predict(model, test).argmax(1))["accuracy"] == one["test"]["accuracy"]
    best = trainer.checkpoint.load(whole / "seed-0" / "checkpoints" / f"step-{2 * one['epoch']}")
    assert all(torch.equal(best.model[name], value) for name, value in model.state_dict().items())


def test_the_same_command_again_changes_nothing(whole, command, trained_run):
    before = contents(whole / "seed-0")
    moved = trained_run / "moved"
    shutil.copytree(trained_run / "run", moved, dirs_exist_ok=True)
    data = ("--data", trained_run / "clouds.h5", "--checkpoint", moved)  # another path, the same weights
    again = command(*FAST, "--runs", "2", *data, "--out", whole)
    assert again.code == 0 and again.out.count("finished") == 2 and "| clouds" in again.out
    assert contents(whole / "seed-0") == before


@pytest.mark.parametrize("at", [2, 5])
def test_a_crash_changes_no_byte(whole, argv, command, monkeypatch, tmp_path, at):
    class Crash(Exception):
        pass

    calls, step = [], Step.run

    def breaking(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise Crash
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Step, "run", breaking)
        finetune.main(list(map(str, argv)))
    again = command(*argv)
    assert again.code == 0, again
    assert results(tmp_path / "fine" / "seed-0") == results(whole / "seed-0")
    kept = ("test", "epoch", "classes")
    assert {name: result(tmp_path / "fine")[name] for name in kept} == {name: result(whole)[name] for name in kept}


def test_another_encoder_is_another_run(whole, command, trained_run):
    data = ("--data", trained_run / "clouds.h5", "--checkpoint", "random", "--preset", "tiny", "--out", whole)
    assert fails(
        command(*FAST, *data, "--num-points", 256, "--num-centers", 64, 16), 2, "holds a run of another config"
    )


def test_the_json(argv, command, tmp_path):
    assert command(*argv, "--epochs", 1, "--max-steps", 1, "--json", tmp_path / "r.json").code == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["runs"][0]["selection"] == "last"  # no epoch has ended, so that none could be chosen
    assert row["summary"]["accuracy"]["std"] is None


def test_the_familys_selection_is_labelled(argv, command, tmp_path):
    done = command(*argv, "--paper-selection")
    assert done.code == 0 and "best of TEST" in done.out
    one = result(tmp_path / "fine")
    assert one["num_val"] == 0 and one["num_train"] == 48
    lines = [json.loads(line) for line in (tmp_path / "fine/seed-0/metrics.jsonl").read_text().splitlines()]
    assert one["test"]["accuracy"] == max(line["test_accuracy"] for line in lines if "test_accuracy" in line)
    assert "chosen by the test split itself" in (tmp_path / "fine/report.html").read_text()


def test_without_validation_the_last_epoch_counts(argv, command, tmp_path):
    assert command(*argv, "--val-fraction", 0, "--votes", 0, "--sampling", "random").code == 0
    one = result(tmp_path / "fine")
    assert (one["selection"], one["epoch"], one["num_val"]) == ("last", 3, 0)
    assert set(one["test"]) == {"accuracy", "class_accuracy"}


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (["--checkpoint", ""], 2, "--checkpoint is missing"),
        (["--checkpoint", "nowhere"], 4, "nowhere: no such run"),
        (["--preset", "tiny"], 2, "--preset and --recipe are for --checkpoint random"),
        (["--votes", "-1"], 2, "--votes must be at least 0"),
        (["--val-fraction", "1"], 2, "--val-fraction must be at least 0 and below 1"),
        (["--val-fraction", "0.01"], 2, "--val-fraction 0.01 of 48 clouds in 3 classes is none"),
        (["--batch-size", "1"], 2, "batch norm cannot normalise a single cloud"),
        (["--batch-size", "6", "--accumulate", "4"], 2, "--batch-size must be at least 2 for each of 4 parts"),
        (["--num-centers", "512", "16"], 2, "--num-points must be at least the 512 fine centres"),
        (["--num-centers", "0", "16"], 2, "--num-centers must be positive (or all 0: as in pre-training), got 0 16"),
        (["--label-smoothing", "1"], 2, "--label-smoothing must be at least 0 and below 1"),
        (["--runs", "0"], 2, "--runs must be at least 1"),
        (["--json", "/nowhere/r.json"], 74, "there is no folder /nowhere"),
        (["--vote", "3"], 2, "Did you mean --votes?"),
    ],
)
def test_mistakes(argv, command, tmp_path, changes, code, said):
    assert fails(command(*argv, *changes), code, said)
    assert not (tmp_path / "fine").exists()


def test_sets_that_cannot_serve(argv, command, tmp_path):
    no_test, no_labels = write_clouds(tmp_path / "a.h5", labels=True), write_clouds(tmp_path / "b.h5", test=3)
    assert fails(command(*argv, "--data", no_test), 3, "a.h5: wanted a train and a test split, got train")
    assert fails(command(*argv, "--data", no_labels), 3, "wanted at least two classes and a test cloud")


@pytest.mark.parametrize(
    ("write", "variant"), [(official_sets.modelnet_hdf5, ""), (official_sets.scanobjectnn, ":pb_t50_rs")]
)
def test_official_sets(argv, command, tmp_path, write, variant):
    """ModelNet40 and ScanObjectNN by the commands of docs/deviations.md, on small files in their layouts."""
    path = write(tmp_path / "official", S=8, N=80)
    options = ("--num-points", 64, "--num-centers", 32, 8, "--augment", "rotate")
    done = command(*argv, *options, "--batch-size", 4, "--data", f"{path}{variant}", "--val-fraction", 0)
    assert done.code == 0, done
    one = result(tmp_path / "fine")
    assert (one["num_points"], one["augmentation"], one["num_test"]) == (64, "rotate", 8)


# ---- splits ----


def test_what_is_held_out_is_a_share_of_each_class():
    labels = furniture().labels
    held_out = hold_out(labels, 0.1, seed=0)
    for label in labels.unique():
        members = int((labels == label).sum())
        assert int(held_out[labels == label].sum()) == int(0.1 * members + 0.5)
    assert torch.equal(held_out, hold_out(labels, 0.1, seed=0)) and not held_out.equal(hold_out(labels, 0.1, seed=1))
    one_each = hold_out(torch.tensor([0, 1, 1]), 0.9, seed=0)
    assert one_each.tolist()[0] is False and int(one_each.sum()) == 1  # a class is never held out whole


def test_no_cloud_is_in_two_splits():
    train, val, test = load_splits(config(), torch.device("cpu"))
    assert val is not None and len(train) + len(val) == len(furniture())
    assert len({cloud.numpy().tobytes() for part in (train, val, test) for cloud in part.points}) == 414  # 330 and 84


def test_farthest_first_is_the_samples_in_their_order():
    clouds = furniture().select(torch.arange(300))  # more than are sampled at once
    some = farthest_first(clouds, 128, spare=True)
    assert some.points.shape == (300, 150, 3)
    rows = farthest_point_sample(clouds.points[257:258], 150)[0]
    assert torch.equal(some.points[257], clouds.points[257][rows])
    assert torch.equal(farthest_first(clouds, 128, spare=False).points, some.points[:, :128])
    assert farthest_first(clouds, 2048, spare=True) is clouds


# ---- the model and the step ----


def micro_task(**changes) -> ClassificationTask:
    task = ClassificationTask(config(**changes), load_splits(config(), torch.device("cpu")))
    task.model_config = micro_config()
    task._weights = JointMAE(micro_config()).state_dict()
    return task


def test_the_encoder_is_the_one_that_was_trained():
    model = JointMAE(micro_config(), seed=3).eval()
    points = furniture().points[:2, :256]
    features = model.point_encoder()(normalize_unit_sphere(points))
    assert all(torch.equal(a, b) for a, b in zip(features, model.encode(points), strict=True))
    names = {name for name, _ in model.named_parameters()}
    assert {name for name, _ in model.point_encoder().named_parameters()} < names


def test_the_head_is_the_familys():
    """256, batch norm, ReLU, dropout, twice, classes: against the same layers in a row, in evaluation mode."""
    torch.manual_seed(0)
    model = Classifier(PointEncoder.of(micro_config()), "abc").eval()
    for norm in model.norms:
        norm.running_mean.normal_()
    layers = [[linear, norm, nn.ReLU()] for linear, norm in zip(model.hidden, model.norms, strict=True)]
    head = nn.Sequential(*(layer for group in layers for layer in group), model.head)
    points = normalize_unit_sphere(furniture().points[:4, :256])
    torch.testing.assert_close(model(points), head(model.encoder(points).pooled))
    assert [linear.out_features for linear in (*model.hidden, model.head)] == [256, 256, 3]


def test_dropout_and_drop_path_are_functions_of_the_sample():
    model = micro_task().new_model().train()
    points, ids = normalize_unit_sphere(furniture().points[:4, :256]), torch.arange(4)
    with torch.no_grad():
        for norm in model.norms:
            norm.eval()  # clouds then do not depend on one another
        logits = [model(points, draw_classifier(2, 0, epoch, ids)) for epoch in (0, 0, 1)]
        alone = model(points[2:3], draw_classifier(2, 0, 0, ids[2:3]))
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    torch.testing.assert_close(alone, logits[0][2:3])


def test_a_step_is_cross_entropy():
    """Losses against torchmetrics and PyTorch on the same logits."""
    task = micro_task(label_smoothing=0.1, augment="none")
    model = task.new_model().train()
    objective = task.objective(model)
    assert isinstance(objective, Classification)
    ids = torch.arange(8)
    points, _, labels, _, epoch = objective.batch(task.clouds, ids, 2)
    loss, accuracy = objective(*objective.batch(task.clouds, ids, 2)).values
    logits = model(normalize_unit_sphere(points), draw_classifier(2, 0, int(epoch), ids))
    torch.testing.assert_close(loss, nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels))
    expected = oracle.multiclass_accuracy(logits, labels, num_classes=13, average="micro")
    torch.testing.assert_close(accuracy, expected)


def test_every_parameter_is_trained():
    task = micro_task()
    step = Step(task.objective(task.new_model().train()), task.clouds)
    before = {name: value.clone() for name, value in step.model.named_parameters()}
    step.run(torch.arange(16), 0, 1e-3)
    assert [name for name, value in step.model.named_parameters() if torch.equal(value, before[name])] == []


def test_the_scores_are_those_of_torchmetrics():
    torch.manual_seed(0)
    labels, predicted = torch.randint(0, 7, (500,)), torch.randint(0, 7, (500,))
    ours = class_scores(labels, predicted)
    for name, average in (("accuracy", "micro"), ("class_accuracy", "macro")):
        assert ours[name] == pytest.approx(float(oracle.multiclass_accuracy(predicted, labels, 7, average=average)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a class that is predicted and does not occur is no reason for one
        assert class_scores(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])) == {
            "accuracy": pytest.approx(2 / 3),
            "class_accuracy": pytest.approx(0.75),
        }


def test_votes_are_the_mean_over_augmented_copies():
    task = micro_task(votes=3)
    model = task.new_model().train()
    probabilities = task._votes(model)
    assert model.training  # as it was
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(task.test)))
    assert torch.equal(probabilities, task._votes(model))
    one = micro_task(votes=1)
    assert not torch.allclose(one._votes(model), probabilities)


def test_summaries_are_means_and_standard_deviations():
    runs = [{"test": {"accuracy": value}} for value in (0.5, 0.7, 0.9)]
    assert summarize(runs)["accuracy"] == pytest.approx((0.7, 0.2, 3))
    assert str(summarize(runs)["accuracy"]) == "70.0 ± 20.0" and str(summarize(runs[:1])["accuracy"]) == "50.0"


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("random", "random-small"),
        ("/a/runs/tiny-furniture-0", "tiny-furniture-0"),
        ("/a/runs/x/model.safetensors", "x"),
        ("/a/ablation/modality=3d/seed-1", "modality=3d-seed-1"),
        ("/a/lr=0.5", "lr=0.5"),
    ],
)
def test_what_an_encoder_is_called(checkpoint, name):
    assert encoders.name_of(checkpoint, "small") == name


def test_tokens_do_not_decay():
    task = micro_task()
    model = task.new_model()
    decaying, others = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert "encoder.modality_3d" in {names[id(p)] for p in others["params"]}
    assert {names[id(p)].rpartition(".")[2] for p in decaying["params"]} == {"weight"}


def test_a_fine_tuned_model_is_no_encoder(whole, command, argv):
    assert fails(command(*argv, "--checkpoint", whole / "seed-0"), 4, "jointmae.model.Classifier or Segmenter loads it")


def test_a_user_classifies_clouds_of_any_size(whole):
    model = Classifier.from_pretrained(whole / "seed-1")
    clouds = 5 + 100 * torch.rand(3, 300, 3)
    probabilities = model.classify(clouds)
    assert model.classes == ("cube", "rod", "plate") and probabilities.shape == (3, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    torch.testing.assert_close(model.classify(clouds / 7 - 1), probabilities, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"points must have shape \[B, N, 3\], got \[3, 300\]"):
        model.classify(clouds[..., 0])
