"""report.html: one page that holds everything it shows, for a reader without a network, on a phone, in the dark."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any

from jointmae.config import TrainConfig, to_dict
from jointmae.data import PointClouds
from jointmae.evaluate import Evaluation, ProbePair
from jointmae.files import write_atomically
from jointmae.model import JointMAE
from jointmae.report import html, words
from jointmae.report.charts import Line, chart
from jointmae.report.figures import Picture, Shape, shapes
from jointmae.report.render import SIDE
from jointmae.run_folder import RunFolder

Metrics = list[dict[str, Any]]

_FILES = [  # in the order in which a reader wants them
    ("model.safetensors", "the weights"),
    ("README.md", "the model card, to go with the weights"),
    ("evaluation.json", "every number of this page's first section"),
    ("config.json", "what was trained"),
    ("env.json", "where"),
    ("metrics.jsonl", "losses by step"),
    ("timings.jsonl", "speed and memory by step"),
    ("tensorboard", "the same and pictures, for TensorBoard"),
    ("checkpoints", "what the run resumes from"),
]


def write_report(
    folder: RunFolder, config: TrainConfig, model: JointMAE, clouds: PointClouds, evaluation: Evaluation
) -> None:
    """Writes `report.html` into the run's folder; `clouds` are those to show, a test split where there is one."""
    metrics = folder.read_metrics()
    env = words.read_json(folder.path / "env.json")
    accuracy = "".join(_accuracy(pair) for pair in evaluation.probes) + _accuracy_note(config, evaluation)
    page = html.page(
        "training",
        f"{config.preset} on {', '.join(words.data_names(config))}",
        words.to_html(words.result_line(evaluation)),
        _facts(folder, config, model, metrics, env),
        [
            ("accuracy", "What it is worth", accuracy + _losses(model, evaluation)),
            ("curves", "How it learned", _curves(metrics, evaluation)),
            ("shapes", "What it sees and what it predicts", _shapes(config, model, clouds, evaluation)),
            ("details", "Details", _details(folder, config, env)),
        ],
    )
    write_atomically(folder.path / "report.html", page)


# ---- the head ----


def _facts(
    folder: RunFolder, config: TrainConfig, model: JointMAE, metrics: Metrics, env: dict[str, Any]
) -> list[tuple[str, str]]:
    parameters = sum(p.numel() for p in model.parameters())
    steps = metrics[-1]["step"] if metrics else 0
    epochs = f"{config.epochs:,} epochs planned" if config.max_steps else f"{config.epochs:,} epochs"
    return [
        ("Preset, recipe", f"{config.preset}, {config.recipe}"),
        ("Trained on", ", ".join(words.data_names(config)) + f" ({', '.join(config.splits)})"),
        ("Parameters", f"{parameters / 1e6:.2f} million, decoders included"),
        ("Seed", str(config.seed)),
        ("Steps", f"{steps:,} ({epochs})"),
        ("Batch", f"at most {config.batch_size:,} clouds of {config.model.num_points:,} points"),
        ("Last started", words.date(str(env.get("started", "unknown")))),
        ("Training time", _training_time(folder)),
        ("Machine", f"{env.get('cpus', '?')} CPUs, {env.get('platform', 'unknown')}"),
        ("Software", words.software(env)),
    ]


def _training_time(folder: RunFolder) -> str:
    """The sum over the lines of timings.jsonl, so that pauses between resumed parts do not count."""
    file = folder.path / "timings.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    seconds = sum(line.get("seconds", 0.0) for line in lines)
    if seconds == 0:
        return "unknown"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{hours} h {minutes} min" if hours else f"{minutes} min"


# ---- what it is worth ----


def _accuracy(pair: ProbePair) -> str:
    """The table of one set."""
    body = []
    for row in words.rows(pair):
        t, u = row.trained, row.untrained
        ahead = [' class="ahead"' if side else "" for side in (row.points > 0, row.points < 0)]
        body.append(
            f'<tr><th scope="row">{escape(row.pooling)}</th>'
            f"<td{ahead[0]}>{words.percent(t.accuracy)}</td><td{ahead[1]}>{words.percent(u.accuracy)}</td>"
            f"<td>{escape(words.winner(row))}</td>"
            f"<td>{words.percent(t.accuracy_c001)}</td><td>{words.percent(u.accuracy_c001)}</td>"
            f"<td>{t.C:g}</td><td>{u.C:g}</td></tr>"
        )
    first = pair.trained[0]
    return (
        f"<h3>Linear SVM on frozen features: {escape(pair.data)}, "
        f"{first.num_train:,} train and {first.num_test:,} test clouds</h3>"
        '<div class="scroll"><table>'
        '<thead><tr><th scope="col">pooling</th><th scope="col">trained</th><th scope="col">untrained</th>'
        '<th scope="col">ahead</th><th scope="col">trained,<br>C = 0.01</th><th scope="col">untrained,<br>C = 0.01</th>'
        '<th scope="col">C,<br>trained</th><th scope="col">C,<br>untrained</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div><p>{escape(words.verdict(pair))}</p>"
    )


def _accuracy_note(config: TrainConfig, evaluation: Evaluation) -> str:
    if not evaluation.probes:
        return "<p>No linear SVM: none of the sets has labelled train and test splits.</p>"
    seen = "The encoder saw the test clouds, without their labels, in training. " if "test" in config.splits else ""
    return (
        '<p class="note">The first columns are at the C that cross-validation on the train split chose. '
        f"{seen}The untrained encoder has the same architecture and the weights of the same seed before the first "
        "step: a high floor, and only what lies above it was learned.</p>"
    )


def _losses(model: JointMAE, evaluation: Evaluation) -> str:
    """The table of reconstruction losses."""
    losses = evaluation.losses
    joint = model.config.modality == "joint"
    trivial = f"{losses.trivial_loss_3d:.4f}"
    blind_3d, blind_2d = f"{losses.blind_loss_3d:.4f}", f"{losses.blind_loss_2d:.4f}"
    against = losses.against_trivial
    rows = [("L<sub>3D</sub>, Chamfer distance of hidden groups", losses.loss_3d, trivial, against, blind_3d)]
    if joint:
        rows.append(("L<sub>2D</sub>, squared error of hidden depth patches", losses.loss_2d, "", "", blind_2d))
    if joint and model.config.cross_views > 0:
        rows.append(("L<sub>3D-2D</sub>, squared error of the prediction's depth maps", losses.loss_cross, "", "", ""))
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{loss:.4f}</td>{_cells(beside)}</tr>' for name, loss, *beside in rows
    )
    where = "not trained on" if losses.held_out else "which were trained on: there is no other test split"
    return (
        f"<h3>Reconstruction of {losses.num_clouds:,} clouds of {escape(losses.data)}, {where}</h3>"
        '<div class="scroll"><table><thead><tr><th scope="col">loss</th><th scope="col">this model</th>'
        '<th scope="col">best constant group</th>'
        '<th scope="col">model against it</th><th scope="col">encoder switched off</th>'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="note">The best constant group is one group of points, the same for every cloud: what a model '
        "reaches that knows where the groups are and nothing of their shape. With the encoder switched off, decoders "
        "get the mean token in place of each visible one, and so know positions alone.</p>"
    )


def _cells(texts: list[str]) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)


# ---- how it learned ----


def _curves(metrics: Metrics, evaluation: Evaluation) -> str:
    def line(key: str, label: str = "") -> Line:
        found = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
        return Line(label, [step for step, _ in found], [value for _, value in found])

    trivial = ("best constant group", evaluation.losses.trivial_loss_3d)
    norms = [line("grad_norm_3d", "L_3D"), line("grad_norm_2d", "L_2D"), line("grad_norm_cross", "L_3D-2D")]
    last = metrics[-1]["step"] if metrics else 0
    charts = [
        chart("L_3D", [line("loss_3d")], last, trivial),
        chart("L_2D", [line("loss_2d")], last),
        chart("L_3D-2D", [line("loss_cross")], last),
        chart("Gradient norm of each loss", norms, last),
        chart("Gradient norm", [line("grad_norm")], last),
        chart("Spread of pooled features", [line("feature_std")], last, log=False),
        chart("2D-3D pairs that share a cell, a cloud", [line("valid_pairs")], last, log=False),
        chart("Learning rate", [line("lr")], last, log=False),
    ]
    if not any(charts):
        return "<p>The run has no metrics.</p>"
    return (
        f'<div class="charts">{"".join(charts)}</div>'
        '<p class="note">Losses of training batches, with the views and masks of their steps. Loss axes are '
        "logarithmic and cut off the steep first tenth. A spread of features that falls to 0 means that all clouds "
        "look the same to the encoder.</p>"
    )


# ---- what it sees and predicts ----


def _shapes(config: TrainConfig, model: JointMAE, clouds: PointClouds, evaluation: Evaluation) -> str:
    found = shapes(model, clouds)
    seen = "not trained on" if evaluation.losses.held_out else "which were trained on"
    depth = (
        "Below, the depth map, the patches that are visible, and those patches with the predicted ones. "
        if model.config.modality == "joint"
        else "This model has no 2D branch, so there are no depth maps. "
    )
    origin = "".join(
        f" {what}: {escape(text)}." for what, text in (("Source", clouds.source), ("Licence", clouds.licence)) if text
    )
    return (
        f"<p>Figure 5 of the paper for {len(found)} clouds, {seen}, chosen by class and position, not by result. "
        'Above, the cloud, its token centres (<span class="swatch visible"></span>visible, '
        '<span class="swatch hidden"></span>hidden), the groups that the encoder sees, and those together with the '
        f'groups that the model predicts (<span class="swatch predicted"></span>). {depth}'
        "Groups overlap, so points of hidden groups may be seen.</p>"
        f'<div class="shapes">{"".join(_shape(shape, evaluation) for shape in found)}</div>'
        f'<p class="note">The pictures show clouds of {escape(clouds.title)}.{origin} '
        f"{escape(words.attribution(config))}</p>"
    )


def _shape(shape: Shape, evaluation: Evaluation) -> str:
    pictures = "".join(_picture(picture) for picture in (*shape.clouds, *shape.depth_maps))
    name = f"{escape(shape.class_name)} <span>{escape(shape.name)}</span>" if shape.class_name else escape(shape.name)
    losses = evaluation.losses
    return (
        f'<article class="shape"><h3>{name}</h3><div class="pictures">{pictures}'
        f'<p class="cost"><b>{shape.loss_3d:.4f}</b>L<sub>3D</sub> of this cloud<br>'
        f"(mean of {losses.num_clouds:,} clouds: {losses.loss_3d:.4f})</p></div></article>"
    )


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img width="{SIDE}" height="{SIDE}" alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


# ---- details ----


def _details(folder: RunFolder, config: TrainConfig, env: dict[str, Any]) -> str:
    path = folder.path
    load = f'from jointmae import JointMAE\n\nmodel = JointMAE.from_pretrained("{path}")'
    resume = words.train_command(env)
    commands = [
        ("Probe the encoder again, or on other data", words.probe_command(path, config)),
        ("Load it in Python", load),
    ]
    if resume:
        commands.insert(0, ("Resume, if it was stopped; with a larger --epochs, train on", resume))
    there = "\n".join(f"{name:20s}{what}" for name, what in _FILES if (path / name).exists())
    shown_env = {key: value for key, value in env.items() if key != "command"}
    return (
        "".join(f"<h3>{escape(what)}</h3><pre>{escape(command)}</pre>" for what, command in commands)
        + html.fold("Configuration", json.dumps(to_dict(config), indent=2))
        + html.fold("Environment", json.dumps(shown_env, indent=2))
        + html.fold(f"Files of {path.name}", there)
    )
