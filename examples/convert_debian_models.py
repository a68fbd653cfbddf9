"""Real models from two Debian packages, as data sets: household furniture (OBJ in zip archives) and electronics (VRML).

    apt-get download sweethome3d-furniture kicad-packages3d
    for package in *.deb; do dpkg-deb -x "$package" unpacked; done
    python examples/convert_debian_models.py unpacked/usr/share .

The second set needs nothing but the command: its folders are its classes,

    python -m jointmae.data convert unpacked/usr/share/kicad/3dmodels kicad.h5 --skip-bad --up-axis=+z

The first one's classes stand in a catalogue inside each archive, so here they are put in the place of folders' names.
"""

import dataclasses
import re
from pathlib import Path

from jointmae import cli
from jointmae.data.archive import Archive
from jointmae.data.commands import convert as command
from jointmae.data.conversion import convert
from jointmae.data.convert_work import Options, Plan
from jointmae.data.tree import Entry, classes_of, find_shapes, natural_key

CATALOGUE = "PluginFurnitureCatalog.properties"


def catalogue_classes(path: Path) -> dict[str, str]:
    """The category of every model in an archive, by the name of its file."""
    with Archive(path) as archive:
        text = archive.read(CATALOGUE, max_bytes=2**20).decode("latin-1")
    models = dict(re.findall(r"^model#(\d+)=/?(.+?)\s*$", text, re.MULTILINE))
    categories = dict(re.findall(r"^category#(\d+)=(.+?)\s*$", text, re.MULTILINE))
    return {name: categories[number].replace("/", " ") for number, name in models.items() if number in categories}


def furniture(archives: list[Path]) -> list[Entry]:
    """The models that the catalogues list, each with its category as its class."""
    found = []
    for path in archives:
        classes = catalogue_classes(path)
        for entry in find_shapes(path).entries:
            if entry.name in classes:
                label = classes[entry.name]
                found.append(dataclasses.replace(entry, name=f"{path.stem}/{entry.name}", split="train", label=label))
    return sorted(found, key=lambda entry: natural_key(entry.name))


def main(argv: list[str]) -> int:
    source, out = map(Path, argv)
    entries = furniture(sorted((source / "sweethome3d" / "furniture").glob("*.sh3f")))
    options = Options(
        source="Debian package sweethome3d-furniture", licence="CC-BY-3.0 and CC0, see its copyright file"
    )
    plan = Plan(tuple(entries), classes_of(entries), options)
    command.describe(out / "sweethome3d.h5", plan, convert(out / "sweethome3d.h5", plan, skip_bad=True), 0)
    kicad = str(source / "kicad" / "3dmodels"), str(out / "kicad.h5"), "--skip-bad", "--up-axis=+z"
    terms = "--source", "Debian package kicad-packages3d", "--licence", "CC-BY-SA 4.0 with KiCad's exception"
    return command.main([*kicad, *terms])


if __name__ == "__main__":
    cli.run(main)
