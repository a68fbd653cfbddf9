"""The example that makes sets of Debian's models, on small packages in their form."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from examples import convert_debian_models as example
from jointmae.data import load
from jointmae.data.convert_work import Options
from tests.runs import fails, run
from tests.shape_files import EXAMPLES

CATALOGUE = r"""# a catalogue
id=Shop
license=CC-BY 3.0 \u00a9 Shop
name#1=Chair
category#1=Living \
    room
model#1=/shop/chair/chair.obj
creator#1=Ann
name#2=Lamp
category#2=Lights
model#2=/shop/lamp/lamp.obj
creator#2=Bob
category#3=Lights
model#3=/shop/turned/turned.obj
modelRotation#3=1 0 0 0 0 1 0 -1 0
"""


def test_the_example_converts_catalogues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("One", "Two"):
        with zipfile.ZipFile(tmp_path / f"{name}.sh3f", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("PluginFurnitureCatalog.properties", CATALOGUE.encode("latin-1"))
            for model in ("chair", "lamp", "turned", "unlisted"):
                file.writestr(f"shop/{model}/{model}.obj", EXAMPLES["pyramid.obj"])
                file.writestr(f"shop/{model}/{model}.mtl", "newmtl x")
            file.writestr("LICENSE.TXT", "words")
    done = run(example.main, ["furniture", str(tmp_path), str(tmp_path / "set.h5")], monkeypatch, capfd)
    assert done.code == 0 and "One.sh3f: 2 models, 1 that the catalogue turns left out" in done.out, done
    clouds = load(tmp_path / "set.h5", ("train",))
    assert clouds.classes == ("Lights", "Living room") and "One: CC-BY 3.0 © Shop; by Ann, Bob" in clouds.licence
    plan = example.furniture(tmp_path, Options())
    assert [entry.name for entry in plan.entries][:1] == ["One/shop/chair/chair.obj"] and len(plan.entries) == 4
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fails(run(example.main, ["furniture", str(empty), "a.h5"], monkeypatch, capfd), 3, "got no .sh3f file")
    assert fails(run(example.main, ["cars"], monkeypatch, capfd), 2, "wanted: convert_debian_models.py")


def test_the_example_converts_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(8):
        file = tmp_path / "parts" / ("LED_THT.3dshapes" if i % 2 else "Diode_SMD.3dshapes") / f"{i}.wrl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(EXAMPLES["nested.wrl"])
        file.with_suffix(".step").touch()
    done = run(example.main, ["parts", str(tmp_path / "parts"), str(tmp_path / "set.h5")], monkeypatch, capfd)
    assert done.code == 0 and "Diode_SMD 4, LED_THT 4" in done.out, done
    clouds = load(tmp_path / "set.h5", ("train",))
    assert clouds.classes == ("Diode_SMD", "LED_THT") and clouds.up[0].tolist() == [0, 0, 1]
    assert "CC-BY-SA 4.0" in clouds.licence
