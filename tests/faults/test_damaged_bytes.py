"""Any byte of a checkpoint changed, any file of it cut short: always noticed, and the one before is taken."""

from __future__ import annotations

import random

from jointmae import checkpoint
from tests.test_checkpoint import FILES, example, same


def test_every_damage_is_noticed(tmp_path, release):
    """2,000 times, 1,000,000 with --release."""
    generator = random.Random(0)
    checkpoint.save(tmp_path, example(1))
    damaged = checkpoint.save(tmp_path, example(2))
    whole = {name: (damaged / name).read_bytes() for name in FILES}
    count = 1_000_000 if release else 2000
    for _ in range(count):
        name = generator.choice(FILES)
        data, at = bytearray(whole[name]), generator.randrange(len(whole[name]))
        if generator.random() < 0.25:
            del data[at:]
        else:
            data[at] ^= generator.randrange(1, 256)
        (damaged / name).write_bytes(data)
        found, (complaint,) = checkpoint.load_newest(tmp_path)
        assert same(found, example(1)), (name, at)
        # a changed sum in the manifest accuses the file that it is of
        accused = damaged if name == "manifest.json" else damaged / name
        assert complaint.startswith(str(accused)) and ": damaged" in complaint, (name, at, complaint)
        (damaged / name).write_bytes(whole[name])
    assert same(checkpoint.load_newest(tmp_path)[0], example(2))
    print(f"{count:,} damaged files, all noticed")
