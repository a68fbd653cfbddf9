"""The example that converts Debian's packages, on small packages in their form."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from jointmae.data import load
from tests.shape_files import EXAMPLES

EXAMPLE = Path(__file__).parent.parent / "examples" / "convert_debian_models.py"
CATALOGUE = """id=x
name#1=Chair
category#1=Living room
model#1=/all/chair/chair.obj
name#2=Bath
category#2=Bathroom
model#2=/all/bath/bath.obj
"""
VRML = """#VRML V2.0 utf8
Shape { geometry IndexedFaceSet { coord Coordinate { point [0 0 0, 1 0 0, 0 1 0] } coordIndex [0, 1, 2, -1] } }
"""


def test_debian_models_are_converted(tmp_path: Path) -> None:
    furniture, models = tmp_path / "share" / "sweethome3d" / "furniture", tmp_path / "share" / "kicad" / "3dmodels"
    furniture.mkdir(parents=True)
    with zipfile.ZipFile(furniture / "All.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOGUE)
        for name in ("chair", "bath", "not in the catalogue"):
            archive.writestr(f"all/{name}/{name}.obj", EXAMPLES["pyramid.obj"])
    for name in ("A.3dshapes/a.wrl", "B.3dshapes/b.wrl"):
        (models / name).parent.mkdir(parents=True)
        (models / name).write_text(VRML)
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "share"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    rooms, parts = load(tmp_path / "sweethome3d.h5"), load(tmp_path / "kicad.h5")
    assert rooms.classes == ("Bathroom", "Living room") and rooms.labels.tolist() == [0, 1] and len(rooms) == 2
    assert parts.classes == ("A.3dshapes", "B.3dshapes") and parts.up[0].tolist() == [0, 0, 1]
