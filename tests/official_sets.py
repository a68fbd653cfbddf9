"""Small sets in the exact layouts of the official ones: names, dtypes, groups, lists and label orders as their own
loaders read them. The functions return the folder as its authors call it."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jointmae.data import official

MODELNET40 = official.table("modelnet_hdf5")["variants"][""]["classes"]
SCANOBJECTNN = official.table("scanobjectnn")["variants"]["obj_bg"]["classes"]
SYNSETS55 = official.table("shapenet55")["synsets"]
PART_SYNSETS = official.table("shapenet_part")["synsets"]
PART_CLASSES = official.table("shapenet_part")["variants"]["txt"]["classes"]
PART_STARTS = [0, 4, 6, 8, 12, 16, 19, 22, 24, 28, 30, 36, 38, 41, 44, 47]  # as antao97/PointCloudDatasets has them


def random_clouds(S: int, N: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """[S, N, 3] float32 on a grid of 1/4096, which six decimals after the point do not keep exactly but nearly."""
    return (np.random.default_rng(seed).integers(-4096, 4097, (S, N, 3)) / 4096).astype(np.float32)


def write_h5(path: Path, **datasets: Any) -> None:
    """Datasets compressed as charlesq34/pointnet's data_prep_util.py does."""
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=4)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def modelnet_hdf5(folder: Path, S: int = 5, N: int = 16) -> Path:
    """Two train files and a test file of S clouds each; labels count up from 0, 10 and 20."""
    root = folder / "modelnet40_ply_hdf5_2048"
    root.mkdir(parents=True)
    for i, name in enumerate(("train0", "train1", "test0")):
        labels = (10 * i + np.arange(S, dtype=np.uint8)).reshape(S, 1)
        normals = random_clouds(S, N, seed=100 + i)
        data = {"data": random_clouds(S, N, seed=i), "normal": normals, "faceId": np.zeros((S, N), np.int32)}
        write_h5(root / f"ply_data_{name}.h5", label=labels, **data)
    prefix = "data/modelnet40_ply_hdf5_2048/ply_data_"
    write_lines(root / "train_files.txt", [f"{prefix}train{i}.h5" for i in (1, 0)])
    write_lines(root / "test_files.txt", [f"{prefix}test0.h5"])
    write_lines(root / "shape_names.txt", MODELNET40)
    return root


def modelnet_resampled(folder: Path, N: int = 12) -> Path:
    """Two train clouds and a test cloud of three classes, two of which are ModelNet10's."""
    root = folder / "modelnet40_normal_resampled"
    names10 = official.table("modelnet_resampled")["variants"]["modelnet10"]["classes"]
    for prefix, names in (("modelnet40", MODELNET40), ("modelnet10", names10)):
        classes = [name for name in ("airplane", "bed", "night_stand") if name in names]
        write_lines(root / f"{prefix}_shape_names.txt", names)
        write_lines(root / f"{prefix}_train.txt", [f"{name}_000{i}" for name in classes for i in (1, 2)])
        write_lines(root / f"{prefix}_test.txt", [f"{name}_0003" for name in classes])
    for label, name in enumerate(("airplane", "bed", "night_stand")):
        (root / name).mkdir()
        for i, points in enumerate(random_clouds(3, N, seed=label)):
            rows = np.concatenate([points, random_clouds(1, N, seed=9)[0]], axis=1)  # [N, 6]
            np.savetxt(root / name / f"{name}_000{i + 1}.txt", rows, fmt="%.6f", delimiter=",")
    return root


def scanobjectnn(folder: Path, S: int = 4, N: int = 16) -> Path:
    """obj_bg, pb_t50_rs and obj_only; their labels end with 14, 13 and 12."""
    root = folder / "h5_files"
    for i, (split, ending) in enumerate(
        [
            ("main_split", "objectdataset.h5"),
            ("main_split", "objectdataset_augmentedrot_scale75.h5"),
            ("main_split_nobg", "objectdataset.h5"),
        ]
    ):
        (root / split).mkdir(parents=True, exist_ok=True)
        for j, prefix in enumerate(("training", "test")):
            labels = np.arange(15 - S - i, 15 - i, dtype=np.int32)
            mask = np.where(np.arange(N) % 3 == 0, -1, 7).astype(np.int32)
            data = random_clouds(S, N, seed=2 * i + j)
            write_h5(root / split / f"{prefix}_{ending}", data=data, label=labels, mask=np.tile(mask, (S, 1)))
    return root


def shapenet55(folder: Path, N: int = 20) -> Path:
    """A train cloud of each of the first three synsets and a test cloud; ShapeNet-34 and the unseen have one each."""
    root = folder / "ShapeNet55-34"
    names = [f"{synset}-{i:032x}.npy" for i, synset in enumerate(SYNSETS55[:6])]
    write_lines(root / "ShapeNet-55/train.txt", names[2::-1])
    write_lines(root / "ShapeNet-55/test.txt", names[3:4])
    write_lines(root / "ShapeNet-34/train.txt", names[4:5])
    write_lines(root / "ShapeNet-34/test.txt", names[:1])
    write_lines(root / "ShapeNet-Unseen21/test.txt", names[5:])
    (root / "shapenet_pc").mkdir()
    for i, (name, points) in enumerate(zip(names, random_clouds(6, N), strict=True)):
        np.save(root / "shapenet_pc" / name, points.astype(np.float64) if i == 5 else points)
    return root


def shapenet_part_txt(folder: Path, N: int = 12) -> Path:
    """Three clouds of each split, of the classes Airplane, Cap and Table."""
    root = folder / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    pairs = zip(PART_CLASSES, PART_SYNSETS, strict=True)
    write_lines(root / "synsetoffset2category.txt", [f"{name}\t{synset}" for name, synset in pairs])
    for i, split in enumerate(("train", "val", "test")):
        names = [f"{PART_SYNSETS[label]}/{i}{label:031x}" for label in (15, 0, 2)]
        lists = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        lists.parent.mkdir(exist_ok=True)
        lists.write_text(json.dumps([f"shape_data/{name}" for name in names]))
        for j, name in enumerate(names):
            (root / name).parent.mkdir(exist_ok=True)
            start = PART_STARTS[(15, 0, 2)[j]]
            parts = start + np.arange(N) % 2
            rows = np.concatenate([random_clouds(1, N, seed=10 * i + j)[0]] * 2 + [parts[:, None]], axis=1)  # [N, 7]
            np.savetxt(root / f"{name}.txt", rows, fmt="%.6f")
    return root


def shapenet_part_hdf5(folder: Path, S: int = 3, N: int = 16) -> Path:
    """A file of S clouds for each split; labels count up from 0, 5 and 10."""
    root = folder / "hdf5_data"
    pairs = zip(PART_CLASSES, PART_SYNSETS, strict=True)
    write_lines(root / "all_object_categories.txt", [f"{name}\t{synset}" for name, synset in pairs])
    for i, split in enumerate(("train", "val", "test")):
        write_lines(root / f"{split}_hdf5_file_list.txt", [f"ply_data_{split}0.h5"])
        labels = 5 * i + np.arange(S, dtype=np.uint8)
        parts = np.array(PART_STARTS, np.uint8)[labels][:, None] + np.arange(N, dtype=np.uint8) % 2  # [S, N]
        data = random_clouds(S, N, seed=20 + i)
        write_h5(root / f"ply_data_{split}0.h5", data=data, label=labels[:, None], pid=parts)
    return root
