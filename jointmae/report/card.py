"""The model card: what the weights are, what they were learned from, what they are worth, how they are loaded."""

from __future__ import annotations

import re

from jointmae import __version__
from jointmae.config import TrainConfig
from jointmae.data import PointClouds
from jointmae.evaluate import Evaluation
from jointmae.files import write_atomically
from jointmae.report import words
from jointmae.run_folder import RunFolder

_CARD = """---
library_name: jointmae
tags: [point-cloud, self-supervised-learning, masked-autoencoder, joint-mae]
license: other
license_name: see-training-data
---

# Joint-MAE, preset {preset}, trained on {data}

{result}

A point-cloud encoder pre-trained without labels by 2D-3D joint masked autoencoding: parts of a cloud and of a depth map
projected from it are hidden, and one transformer learns to predict both. The method is that of Guo et al., *Joint-MAE:
2D-3D Joint Masked Autoencoders for 3D Point Cloud Pre-training*, IJCAI 2023. These weights come from the independent
implementation `jointmae` {version}; they are not the authors'.

## Use

```python
import torch
from jointmae.model import JointMAE

model = JointMAE.from_pretrained("path/of/this/folder")
features = model.encode(torch.rand(8, {num_points}, 3))  # any clouds [B, N, 3]; centred and scaled inside
features.pooled   # [8, {pooled}], one vector a cloud
features.tokens   # [8, {num_tokens}, {width}], one vector for each of features.centers [8, {num_tokens}, 3]
```

## Training data and its licence

| | |
| --- | --- |
| data | {described} |
| splits | {splits} |
| source | {source} |
| licence | {licence} |
| SHA-256 | `{sha256}` |

{attribution}

The code of jointmae is under the MIT licence. The weights were learned from the data above: whoever passes them on has
to look at what its licence asks for, such as naming the authors.

## Training

Recipe {recipe}, {epochs} epochs{early} in batches of {batch_size}, AdamW with a peak learning rate of {lr:g} and weight
decay of {weight_decay:g}, seed {seed}. Everything else is in `config.json`; the curves are in `report.html`.

## Results

{accuracy}

{losses}

## Limits

- {limits_probe}
- Trained on clouds of {num_points:,} points in the unit sphere; other densities give other features, and a warning.
- Features depend on the orientation of a cloud: turned clouds were not part of the training.
- Only clouds like those above were seen; scans with noise, holes or background are something else.
"""


def write_model_card(folder: RunFolder, config: TrainConfig, evaluation: Evaluation, clouds: PointClouds) -> None:
    """Writes `README.md` into the run's folder; `clouds` are the ones trained on."""
    write_atomically(folder.path / "README.md", model_card(config, evaluation, clouds))


def model_card(config: TrainConfig, evaluation: Evaluation, clouds: PointClouds) -> str:
    """The card as Markdown."""
    model = config.model
    names = words.data_names(config)
    return _CARD.format(
        data=plain(", ".join(names)),
        preset=plain(config.preset),
        recipe=plain(config.recipe),
        result=plain(words.result_line(evaluation)),
        version=__version__,
        num_points=model.num_points,
        num_tokens=model.num_centers[1],
        width=model.embed_dim,
        pooled=2 * model.embed_dim,
        described=plain(clouds.describe()),
        splits=plain(", ".join(config.splits)),
        source=plain(clouds.source) or "not stated in the file",
        licence=plain(clouds.licence) or "**not stated in the file**: find out before you pass these weights on",
        sha256=clouds.sha256,
        attribution=plain(words.attribution(config)),
        epochs=config.epochs,
        early=f" (stopped after {config.max_steps:,} steps)" if config.max_steps else "",
        batch_size=min(config.batch_size, len(clouds)),
        lr=config.lr,
        weight_decay=config.weight_decay,
        seed=config.seed,
        accuracy="\n\n".join(_accuracy(config, evaluation)),
        losses=plain(words.loss_line(evaluation.losses)),
        limits_probe=_limits_of_probe(evaluation),
    )  # fmt: skip


def _accuracy(config: TrainConfig, evaluation: Evaluation) -> list[str]:
    """A table for each set that was probed."""
    if not evaluation.probes:
        return ["No accuracy: none of the sets has labelled train and test splits."]
    found = []
    for pair in evaluation.probes:
        first = pair.trained[0]
        sizes = f"{first.num_train:,} train and {first.num_test:,} test clouds"
        lines = [
            "| pooling | trained | untrained | trained, C = 0.01 | untrained, C = 0.01 |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in words.rows(pair):
            t, u = row.trained, row.untrained
            numbers = (t.accuracy, u.accuracy, t.accuracy_c001, u.accuracy_c001)
            lines.append(f"| {' | '.join([row.pooling, *map(words.percent, numbers)])} |")
        note = "The encoder saw the test clouds, without their labels, in training." if "test" in config.splits else ""
        found += [
            f"Linear SVM on frozen features, {plain(pair.data)}, {sizes}.",
            "\n".join(lines),
            f"C is chosen by cross-validation on the train split. {words.verdict(pair)} {note}".strip(),
        ]
    return found


def _limits_of_probe(evaluation: Evaluation) -> str:
    if not evaluation.probes:
        return "No test of the features on labels was made."
    num_test = min(pair.trained[0].num_test for pair in evaluation.probes)
    return (
        f"One seed, and as few as {num_test:,} test clouds: read the accuracies as that, and beside those of the "
        "untrained encoder."
    )


def plain(text: str) -> str:
    """`text` on one line of Markdown, with nothing in it that Markdown or HTML would take as markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()).replace("&", "&amp;"))
