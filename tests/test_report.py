"""report.html and the model card of real, tiny runs, and the pieces they are made of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from jointmae.config import TrainConfig
from jointmae.evaluate import Evaluation, ProbePair, ReconstructionLosses, summary
from jointmae.model import JointMAE
from jointmae.pretraining import train
from jointmae.probe import ProbeResult
from jointmae.report import words, write_report
from jointmae.report.card import model_card, plain
from jointmae.report.charts import Axis, Line, chart, ticks
from jointmae.report.figures import choose, shapes
from jointmae.report.render import SIDE, depth_png, spheres_png
from jointmae.run_folder import RunFolder
from tests.models import furniture, micro_config, micro_model

VOID = {"meta", "link", "img", "br", "wbr"}
NASTY = '<script>alert("x")</script> & | `co`'


class Page(HTMLParser):
    """Collects what a page loads and shows, and complains of tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def tiny_run(out: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(model=micro_config(), preset="micro", out=str(out), device="cpu", compile="off")
    config = replace(config, **{"max_steps": 3, "batch_size": 8, "epochs": 1, **changes})
    assert train(config) == 0
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the embedded set, evaluated."""
    out = tmp_path_factory.mktemp("run") / "micro"
    tiny_run(out)
    return out


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text("utf-8"))


def write_h5(path: Path, test: bool, classes: list[str] | None = None) -> Path:
    """Spheres, 12 to train on and perhaps 8 to test with, labelled where there are classes."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split, count in (("train", 12), ("test", 8)) if test else (("train", 12),):
            points = random.normal(size=(count, 300, 3))
            group = file.create_group(split)
            group["points"] = (points / np.linalg.norm(points, axis=-1, keepdims=True)).astype(np.float32)
            group["name"] = [NASTY] * count
            if classes:
                group["label"] = (np.arange(count) % len(classes)).astype(np.int16)
        if classes:
            file.attrs["classes"] = classes
            file.attrs["licence"], file.attrs["source"] = NASTY, NASTY
    return path


def an_evaluation(trained: float = 0.7, untrained: float = 0.6, held_out: bool = True) -> Evaluation:
    def results(accuracy: float) -> list[ProbeResult]:
        return [ProbeResult(pooling, accuracy, 0.5, 0.6, 10.0, 100, 100) for pooling in ("mean", "max", "mean+max")]

    losses = ReconstructionLosses("toys", 20, held_out, 0.02, 0.03, 0.04, 0.025, 0.05, 0.06)
    return Evaluation([ProbePair("toys", results(trained), results(untrained))], losses)


# ---- the page ----


def test_page_loads_nothing(run: Path, page: Page) -> None:
    assert all(load.startswith("data:") for load in page.loads)
    assert {"script", "iframe", "object", "base"} & set(page.tags) == set()
    html = (run / "report.html").read_text("utf-8")
    assert re.findall(r"https?://|@import|url\(", html) == []
    assert "default-src 'none'" in html
    assert len(html) < 3e6


def test_page_shows_six_shapes_of_seven_pictures(page: Page) -> None:
    assert page.tags.count("article") == 6
    assert len(page.images) == 6 * 7
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert all(image["alt"] for image in page.images)
    assert len({image["src"] for image in page.images}) > 36  # not one picture many times


def test_page_and_card_hold_the_numbers_of_the_evaluation(run: Path, page: Page) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    card = (run / "README.md").read_text("utf-8")
    for side in ("trained", "untrained"):
        for result in evaluation["probes"][0][side]:
            for text in (page.text, card):
                assert f"{result['accuracy']:.1%}" in text
                assert f"{result['accuracy_c001']:.1%}" in text
    for name in ("loss_3d", "loss_2d", "loss_cross", "trivial_loss_3d", "blind_loss_3d", "blind_loss_2d"):
        assert f"{evaluation['losses'][name]:.4f}" in page.text
    assert f"{evaluation['losses']['loss_3d']:.4f}" in card


def test_page_names_the_run(page: Page) -> None:
    for text in ("micro on furniture", "84 test clouds", "not trained on", "jointmae.linear_svm", '"seed": 0', "CC-BY"):
        assert text in page.text, text
    assert page.tags.count("svg") == 8


def test_card_states_licence_and_loading_that_works(run: Path) -> None:
    card = (run / "README.md").read_text("utf-8")
    assert furniture().licence in card and "Debian package sweethome3d-furniture" in card
    assert "FURNITURE\\_LICENSE.md" in card
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0].replace("path/of/this/folder", str(run))
    names: dict[str, object] = {}
    exec(code, names)
    config = micro_config()
    assert names["features"].pooled.shape == (8, 2 * config.embed_dim)
    assert f"[8, {config.num_centers[1]}, {config.embed_dim}]" in card


def test_writing_twice_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    model = JointMAE.from_pretrained(run)
    config = replace(TrainConfig(model=model.config, preset="micro"), out=str(tmp_path / "copy"))
    folder = RunFolder(tmp_path / "copy", config, {"data_sha256": ""})
    folder.path.mkdir()
    clouds = furniture().select(torch.arange(20))
    pages = []
    for _ in range(2):
        write_report(folder, config, model, clouds, an_evaluation())
        pages.append((folder.path / "report.html").read_bytes())
    assert pages[0] == pages[1]
    text = Page(pages[0].decode()).text
    assert "The run has no metrics" in text and "unknown" in text  # nothing but the model is needed
    assert sorted(file.name for file in folder.path.iterdir()) == ["report.html"]


def test_set_without_labels_and_test_split(tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "run", data=(str(write_h5(tmp_path / "plain.h5", test=False)),), max_steps=1)
    page = Page((Path(config.out) / "report.html").read_text("utf-8"))
    assert "No linear SVM" in page.text and "which were trained on" in page.text
    assert "Training-set L3D" in page.text and "Held-out" not in page.text
    assert len(page.images) == 42
    card = (Path(config.out) / "README.md").read_text("utf-8")
    assert "No accuracy" in card and "**not stated in the file**" in card


def test_names_are_escaped_and_3d_only_models_have_no_depth_maps(tmp_path: Path) -> None:
    data = write_h5(tmp_path / "a<b>&c.h5", test=True, classes=[NASTY, "<i>"])
    model = micro_config(modality="3d")
    config = tiny_run(tmp_path / "run", data=(str(data),), model=model, recipe="3d-only", max_steps=1)
    html = (Path(config.out) / "report.html").read_text("utf-8")
    page = Page(html)
    assert "<script" not in html and "<i>" not in html and "<b>&" not in html
    assert NASTY in page.text and "a<b>&c.h5" in page.text
    assert len(page.images) == 6 * 4 and "no 2D branch" in page.text
    assert page.text.count("squared error") == 0
    card = (Path(config.out) / "README.md").read_text("utf-8")
    assert "<script" not in re.sub(r"\\<", "", card)
    assert plain(NASTY) in card


def test_metrics_without_optional_keys_still_give_curves(tmp_path: Path) -> None:
    config = TrainConfig(model=micro_config(), preset="micro", out=str(tmp_path / "run"))
    folder = RunFolder(tmp_path / "run", config, {"data_sha256": ""})
    folder.path.mkdir()
    for step in (10, 20, 30):
        folder.append("metrics", {"step": step, "epoch": 0, "loss_3d": 1 / step, "lr": 0.0})
    write_report(folder, config, micro_model(), furniture().select(torch.arange(2)), an_evaluation())
    folder.close()
    page = Page((folder.path / "report.html").read_text("utf-8"))
    assert page.tags.count("svg") == 1  # a learning rate of 0 throughout is no curve
    assert page.tags.count("article") == 2  # as many as there are


# ---- the words ----


def test_verdict_is_honest() -> None:
    def said(trained: float, untrained: float) -> str:
        return words.verdict(an_evaluation(trained, untrained).probes[0])

    assert "gained 2.0 points" in said(0.62, 0.6) and "does not settle" in said(0.62, 0.6)
    assert "gained 40.0 points" in said(0.9, 0.5) and "does not settle" not in said(0.9, 0.5)
    assert "untrained encoder is 10.0 points better" in said(0.5, 0.6)
    assert "neither gained nor lost" in said(0.5, 0.5)


def test_verdict_names_poolings_that_disagree() -> None:
    pair = an_evaluation(0.7, 0.6).probes[0]
    worse = replace(pair.trained[1], accuracy=0.5)
    said = words.verdict(ProbePair("toys", [pair.trained[0], worse, pair.trained[2]], pair.untrained))
    assert "Max pooling says otherwise (untrained +10.0)" in said and "Mean pooling" not in said


def test_losses_above_the_trivial_one_are_said() -> None:
    evaluation = an_evaluation()
    bad = replace(evaluation, losses=replace(evaluation.losses, loss_3d=0.03))
    assert "20% above" in words.result_line(bad) and "20% ABOVE" in summary(bad)
    assert "2.0 times the best" in summary(replace(bad, losses=replace(bad.losses, loss_3d=0.05)))
    assert "20% below" in words.result_line(evaluation)
    assert "nan" not in words.loss_line(replace(evaluation.losses, loss_3d=0.0, trivial_loss_3d=0.0))


def test_card_says_when_test_clouds_were_trained_on() -> None:
    config = TrainConfig(model=micro_config(), splits=("train", "test"))
    assert "saw the test clouds" in model_card(config, an_evaluation(held_out=False), furniture())
    assert "saw the test clouds" not in model_card(replace(config, splits=("train",)), an_evaluation(), furniture())


def test_train_command() -> None:
    env = {"command": ["/somewhere/jointmae/train.py", "--out", "a b"]}
    assert words.train_command(env) == "python -m jointmae.train --out 'a b'"
    assert words.train_command({"command": ["my_script.py"]}) == "" and words.train_command({}) == ""


# ---- the pictures ----


def test_choose_spreads_over_classes_and_the_set() -> None:
    labels = [i // 10 for i in range(130)]
    chosen = choose(labels, 6)
    assert len({labels[i] for i in chosen}) == 6 and {0, 12} <= {labels[i] for i in chosen}
    assert choose(labels, 6) == chosen
    assert choose([-1] * 11, 6) == [0, 2, 4, 6, 8, 10]
    assert sorted(choose([0, 0, 1, 1], 6)) == [0, 1, 2, 3]
    assert len(set(choose([0, 0, 0, 0, 1, 1, 1, 1, -1], 6))) == 6


def test_spheres_near_ones_hide_far_ones() -> None:
    points = np.array([[0.0, 0.0, -0.5], [0.0, 0.0, 0.5], [0.8, 0.0, 0.0]])
    colors = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    image = np.asarray(Image.open(BytesIO(spheres_png(points, colors, 0.1))).convert("RGBA")).astype(int)
    assert image.shape == (SIDE, SIDE, 4)
    middle, right, corner = image[SIDE // 2, SIDE // 2], image[SIDE // 2, int(0.9 * SIDE)], image[0, 0]
    assert middle[3] == right[3] == 255 and corner[3] == 0
    assert middle[0] > 100 and middle[1] < 30
    assert right[2] > 100 and right[0] < 30


def test_spheres_outside_the_frame_are_cut_off() -> None:
    image = spheres_png(np.array([[3.0, 0.0, 0.0], [0.99, 0.99, 0.0]]), np.ones((2, 3)), 0.1)
    assert np.asarray(Image.open(BytesIO(image)).convert("RGBA"))[-2:, -2:, 3].min() == 255


def test_depth_maps_hide_patches_in_grey_and_keep_rgb() -> None:
    hidden = np.zeros((64, 64), dtype=bool)
    hidden[:16, :16] = True
    image = np.asarray(Image.open(BytesIO(depth_png(np.ones((1, 64, 64)), hidden))).convert("RGB")).astype(int)
    assert image.shape == (320, 320, 3)
    assert image[5, 5].tolist() == [128, 128, 128] and image[-5, -5].min() > 150
    rgb = np.zeros((3, 64, 64))
    rgb[1] = 1.0
    assert np.asarray(Image.open(BytesIO(depth_png(rgb))).convert("RGB"))[0, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("changes", [{"normalize_patches": True}, {"color_render": True}, {"cross_views": 0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_kind_of_model_has_pictures(changes: dict[str, object], dtype: torch.dtype) -> None:
    found = shapes(micro_model(**changes).to(dtype), furniture().select(torch.arange(2)))
    assert [len(shape.clouds) + len(shape.depth_maps) for shape in found] == [7, 7]
    assert all(shape.loss_3d > 0 for shape in found)


def test_clouds_stand_upright_whatever_axis_is_up() -> None:
    clouds = furniture().select(torch.arange(1))
    for axes in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        turned = replace(clouds, points=clouds.points[..., axes], up=clouds.up[:, axes])
        png = shapes(micro_model(), turned)[0].clouds[0].png
        image = np.asarray(Image.open(BytesIO(png)).convert("RGBA")).astype(float)
        top, bottom = (half[half[..., 3] > 250].mean(axis=0) for half in (image[: SIDE // 2], image[SIDE // 2 :]))
        assert top[0] - top[2] > bottom[0] - bottom[2]  # yellow is high, blue is low


# ---- the charts ----


def test_chart_thins_long_runs_and_leaves_out_what_cannot_be_drawn() -> None:
    line = Line("", list(range(1, 10_001)), [1 / step for step in range(1, 10_001)])
    svg = chart("L_3D", [line], 10_000, ("trivial", 0.5))
    points = re.findall(r'points="([^"]*)"', svg)[0].split()
    assert 100 < len(points) <= 300 and 'class="reference"' in svg
    assert chart("none", [Line("", [], [])], 5) == ""
    assert chart("zeros", [Line("", [1, 2], [0.0, 0.0])], 2, log=False) == ""
    assert "<circle" in chart("one", [Line("", [1], [3.0])], 1)
    for value in (0.0, -1.0):
        assert "polyline" in chart("some", [Line("", [1, 2, 3], [1.0, value, 2.0])], 3)
    assert "polyline" in chart("flat", [Line("", [1, 2], [2.0, 2.0])], 2) and "nan" not in svg


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0.0089, 0.0341), (1e-6, 1e-3), (0.9, 1.1), (3.0, 4000.0), (1.0, 1.02)])
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    found = ticks(Axis(low, high, 0, 1, log))
    assert 2 <= len(found) <= 9
    assert all(low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9) for value in found)
