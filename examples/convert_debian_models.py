"""Two data sets of free models in Debian's archive: furniture as OBJ in zipped catalogues, circuit parts as VRML.

apt-get download sweethome3d-furniture kicad-packages3d     # 0.1 GB and 0.4 GB, 5.4 GB unpacked
for package in *.deb; do dpkg-deb -x $package models; done
python examples/convert_debian_models.py furniture models/usr/share/sweethome3d/furniture furniture.h5
python examples/convert_debian_models.py parts models/usr/share/kicad/3dmodels parts.h5
python -m jointmae.train --data furniture.h5

The second kind is what `python -m jointmae.data convert` does by itself; the first shows how to give classes of one's
own. Nothing is extracted from the catalogues.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jointmae import cli
from jointmae.data.archive import Archive
from jointmae.data.conversion import convert
from jointmae.data.convert_work import Options, Plan
from jointmae.data.resample import is_test
from jointmae.data.tree import Entry, classes_of, find_shapes, natural_key
from jointmae.errors import DataError, UsageError
from jointmae.signals import Stopped

CATALOGUE = "PluginFurnitureCatalog.properties"
PARTS_LICENCE = "CC-BY-SA 4.0 with the KiCad libraries' exception (https://www.kicad.org/libraries/license/)"


def read_properties(text: str) -> dict[str, str]:
    r"""A Java properties file: `key=value` lines, a last `\` goes on in the next one, \uXXXX is a character."""
    text = re.sub(r"\\\r?\n[ \t]*", "", text)
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#!"]
    return {key.strip(): re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), v.strip()) for key, _, v in pairs}


def read_catalogue(path: Path) -> tuple[list[Entry], str]:
    """The models of one catalogue under its categories, and who made them under which licence.

    Models that the catalogue turns to stand upright are left out: converting turns nothing.
    """
    with Archive(path) as archive:
        properties = read_properties(archive.read(CATALOGUE).decode("latin-1"))
    numbers = [key.removeprefix("model#") for key in properties if key.startswith("model#")]
    turned = [number for number in numbers if f"modelRotation#{number}" in properties]
    labels = {
        properties[f"model#{number}"].lstrip("/"): properties.get(f"category#{number}", "")
        for number in numbers
        if number not in turned
    }
    found = {entry.member: entry for entry in find_shapes(path).entries}
    if missing := sorted(labels.keys() - found.keys()):
        raise DataError(path, missing[0], "is in the catalogue's list and not in its files: get the package again")
    entries = [
        replace(found[member], name=f"{path.stem}/{member}", label=label, split="") for member, label in labels.items()
    ]
    creators = sorted({value for key, value in properties.items() if key.startswith("creator#")}, key=natural_key)
    print(f"{path.name}: {len(entries)} models, {len(turned)} that the catalogue turns left out")
    return entries, f"{path.stem}: {properties.get('license', 'no licence given')}; by {', '.join(creators)}"


def furniture(folder: Path, options: Options) -> Plan:
    """The plan of all catalogues in a folder."""
    catalogues = [read_catalogue(path) for path in sorted(folder.glob("*.sh3f"))]
    if not catalogues:
        raise DataError(folder, "", "got no .sh3f file, wanted those of sweethome3d-furniture: unpack it first")
    licence = "\n".join(licence for _, licence in catalogues)
    source = "Debian package sweethome3d-furniture (https://www.sweethome3d.com/importModels.jsp)"
    entries = [entry for found, _ in catalogues for entry in found]
    return make_plan(entries, replace(options, up_axis="+y", source=source, licence=licence))


def parts(folder: Path, options: Options) -> Plan:
    """The plan of KiCad's folders, CLASS.3dshapes/MODEL.wrl."""
    found = find_shapes(folder).entries
    entries = [replace(entry, label=entry.label.removesuffix(".3dshapes")) for entry in found]
    source = "Debian package kicad-packages3d (https://gitlab.com/kicad/libraries/kicad-packages3D)"
    return make_plan(entries, replace(options, up_axis="+z", source=source, licence=PARTS_LICENCE))


def make_plan(entries: Sequence[Entry], options: Options) -> Plan:
    """A fifth of the models, by their names, for testing."""
    split = [replace(entry, split="test" if is_test(entry.name, 0.2) else "train") for entry in entries]
    split.sort(key=lambda entry: (entry.split != "train", natural_key(entry.name)))
    return Plan(tuple(split), classes_of(split), options)


def main(argv: Sequence[str]) -> int:
    kinds = {"furniture": furniture, "parts": parts}
    if len(argv) != 3 or argv[0] not in kinds:
        raise UsageError("wanted: convert_debian_models.py furniture|parts FOLDER OUT.h5")
    plan = kinds[argv[0]](Path(argv[1]), Options())
    try:
        converted = convert(Path(argv[2]), plan, skip_bad=True)
    except Stopped as stop:
        print("stopped: the same command goes on from here")
        return stop.exit_code
    for bad in converted.bad_files:
        print(f"bad: {bad.name}: {bad.what}")
    count = Counter(entry.label for entry in plan.entries)
    print(", ".join(f"{label or 'no class'} {number}" for label, number in sorted(count.items())))
    print(f"{argv[2]}: {converted.num_clouds}, {len(converted.bad_files)} bad files")
    return 0


if __name__ == "__main__":
    cli.run(main)
