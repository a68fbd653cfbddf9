"""The rivals, each behind its import: one adapter a rival and op, which calls it as its users would.

All adapters of an op take and give the same, so conversions of layout and type are in their time:

    farthest_point_sample  points [B, N, 3], M              -> indices [B, M], the first one 0
    knn                    queries [B, M, 3], points, k     -> (squared distances or None, indices) [B, M, k]
    sample_and_group       points [B, N, 3], M, k           -> (centres [B, M], neighbours [B, M, k]), indices
    group                  features [B, N, C], indices      -> [B, G, k, C]
    knn_interpolate        queries, points, features        -> [B, M, C]
    chamfer_distance       x [B, N, 3], y [B, M, 3]         -> both ways' mean squared distances, added; differentiable
    project_points         points, intrinsics [3, 3], size  -> depth [B, 1, size, size], 0 where empty

How they are installed: `pip install -e ".[peers]"` has those with wheels. torch-cluster, chamferdist, pytorch3d and
pointnet2_ops are built against the torch at hand, `pip install --no-build-isolation --no-deps`, the latter two from a
checkout of their repositories (pointnet2_ops after its frozen list of architectures is taken out of setup.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from jointmae.ops import reference

CPU, CUDA, BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")
why_missing: dict[str, str] = {}


@cache
def peer(module: str) -> ModuleType | None:
    """A rival's module, None where it cannot be imported, for whatever reason: see `why_missing`."""
    try:
        return import_module(module)
    except Exception as error:  # one that cannot be loaded here raises what it likes
        why_missing[module] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        return None


@dataclass(frozen=True)
class Peer:
    name: str
    module: str
    call: Callable[..., Any]
    devices: tuple[str, ...]
    largest: float  # pairs of points above which it takes minutes
    differs: str  # in what it does not do the same
    check: Callable[[Any, Any], str | None] | None  # instead of the op's own, for one that does something else


_peers: dict[str, list[Peer]] = {}


def adapter(
    op: str,
    name: str,
    module: str,
    devices: tuple[str, ...] = CPU,
    *,
    largest: float = 1e12,
    differs: str = "",
    check: Callable[[Any, Any], str | None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes the function an adapter of `op`."""

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        _peers.setdefault(op, []).append(Peer(name, module, call, devices, largest, differs, check))
        return call

    return register


def peers_of(op: str, device: torch.device, num_pairs: float = 0) -> list[Peer]:
    """Those that are here, run on the device, and finish within seconds."""
    return [
        p
        for p in _peers.get(op, [])
        if device.type in p.devices and num_pairs <= p.largest and peer(p.module) is not None
    ]


def _arrays(*tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Cloud by cloud, as NumPy arrays of the same memory."""
    return zip(*(tensor.detach().numpy() for tensor in tensors), strict=True)


def _stack(arrays: Any) -> Tensor:
    return torch.stack([torch.from_numpy(array.astype("int64", copy=False)) for array in arrays])


def _flat(points: Tensor) -> tuple[Tensor, Tensor]:
    """The points of all clouds in one row, and the cloud of each: PyG's layout."""
    B, N, _ = points.shape
    return points.reshape(-1, 3), torch.arange(B, device=points.device).repeat_interleave(N)


def _gather(points: Tensor, indices: Tensor) -> Tensor:
    return points.gather(1, indices[..., None].expand(-1, -1, 3))


def _tree_height(N: int) -> int:
    """What QuickFPS's authors advise."""
    return 3 if N <= 2048 else 5 if N <= 8192 else 7 if N <= 100_000 else 9


# ---- farthest_point_sample


@adapter("farthest_point_sample", "fpsample kdline", "fpsample")
def _(points: Tensor, num_samples: int) -> Tensor:
    sample, h = peer("fpsample").bucket_fps_kdline_sampling, _tree_height(points.shape[1])
    return _stack(sample(cloud, num_samples, h=h, start_idx=0) for (cloud,) in _arrays(points))


@adapter("farthest_point_sample", "torch-quickfps bucket", "torch_quickfps", BOTH)
def _quickfps(points: Tensor, num_samples: int) -> Tensor:
    return peer("torch_quickfps").sample_idx(points, num_samples, h=_tree_height(points.shape[1]), start_idx=0)


@adapter("farthest_point_sample", "torch-quickfps baseline", "torch_quickfps", BOTH, largest=1e9)
def _(points: Tensor, num_samples: int) -> Tensor:
    return peer("torch_quickfps").sample_idx_baseline(points, num_samples, start_idx=0)


@adapter("farthest_point_sample", "torch-fps", "torch_fps", BOTH)
def _(points: Tensor, num_samples: int) -> Tensor:
    valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    return peer("torch_fps").farthest_point_sampling(points, valid, num_samples, random_start=False, validate=False)


@adapter("farthest_point_sample", "torch-cluster", "torch_cluster", BOTH, largest=1e9)
def _(points: Tensor, num_samples: int) -> Tensor:
    B, N, _ = points.shape
    begin = torch.arange(0, B * N + 1, N, device=points.device)
    indices = peer("torch_cluster").fps(points.reshape(-1, 3), ratio=num_samples / N, random_start=False, ptr=begin)
    return indices.view(B, -1)[:, :num_samples] - begin[:-1, None]


@adapter("farthest_point_sample", "pytorch3d", "pytorch3d.ops", BOTH, largest=1e9)
def _(points: Tensor, num_samples: int) -> Tensor:
    return peer("pytorch3d.ops").sample_farthest_points(points, K=num_samples)[1]


@adapter("farthest_point_sample", "pointnet2_ops", "pointnet2_ops.pointnet2_utils", CUDA, differs="skips the origin")
def _(points: Tensor, num_samples: int) -> Tensor:
    return peer("pointnet2_ops.pointnet2_utils").furthest_point_sample(points, num_samples).long()


@adapter("farthest_point_sample", "open3d", "open3d", largest=1e9, differs="gives points, in the cloud's order")
def _(points: Tensor, num_samples: int) -> Tensor:
    o3d = peer("open3d")
    clouds = [
        o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud.astype("float64"))) for (cloud,) in _arrays(points)
    ]
    samples = [peer("numpy").asarray(cloud.farthest_point_down_sample(num_samples).points) for cloud in clouds]
    return torch.stack([torch.from_numpy(s).float() for s in samples])


# ---- knn, and the search of one neighbour in Chamfer's distance


def _pykdtree(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
    return peer("pykdtree.kdtree").KDTree(points).query(queries, k=k)


def _scipy(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
    tree = peer("scipy.spatial").cKDTree(points, balanced_tree=False, compact_nodes=False)
    return tree.query(queries, k, workers=torch.get_num_threads())


def _point_cloud_utils(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
    threads = torch.get_num_threads() if torch.get_num_threads() > 1 else 0
    arrays = (queries.copy(), points.copy())  # it crashes on those that do not begin at a multiple of 16 bytes
    return peer("point_cloud_utils").k_nearest_neighbors(*arrays, k, num_threads=threads)


def _pynanoflann(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
    tree = peer("pynanoflann").KDTree(n_neighbors=k, metric="L2", leaf_size=20)
    tree.fit(points)
    return tree.kneighbors(queries, n_jobs=torch.get_num_threads())


def _small_gicp(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
    threads = torch.get_num_threads()
    tree = peer("small_gicp").KdTree(points.astype("float64"), num_threads=threads)
    indices, distances = tree.batch_knn_search(queries.astype("float64"), k, num_threads=threads)
    return distances, indices


def _faiss(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
    peer("faiss").omp_set_num_threads(torch.get_num_threads())
    return peer("faiss").knn(queries, points, k)


def _open3d(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
    core = peer("open3d.core")
    search = core.nns.NearestNeighborSearch(core.Tensor.from_numpy(points))
    search.knn_index()
    indices, distances = search.knn_search(core.Tensor.from_numpy(queries), k)
    return distances.numpy(), indices.numpy()


SEARCHES = {  # name: module, search in one cloud, pairs it can take
    "pykdtree": ("pykdtree.kdtree", _pykdtree, 1e12),
    "scipy cKDTree": ("scipy.spatial", _scipy, 1e12),
    "point-cloud-utils": ("point_cloud_utils", _point_cloud_utils, 1e12),
    "pynanoflann": ("pynanoflann", _pynanoflann, 1e12),
    "small_gicp": ("small_gicp", _small_gicp, 1e12),
    "faiss flat": ("faiss", _faiss, 1e9),
    "open3d": ("open3d.core", _open3d, 1e12),
}


def _add_searches() -> None:
    def knn_by(search: Callable[..., Any]) -> Callable[..., tuple[None, Tensor]]:
        return lambda queries, points, k: (None, _stack(search(q, p, k)[1] for q, p in _arrays(queries, points)))

    def chamfer_by(search: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
        def one_way(x: Tensor, y: Tensor) -> Tensor:
            nearest = _stack(search(p, q, 1)[1].reshape(-1) for p, q in _arrays(x, y))
            return (x - _gather(y, nearest)).square().sum(-1).mean()

        return lambda x, y: one_way(x, y) + one_way(y, x)

    for name, (module, search, largest) in SEARCHES.items():
        adapter("knn", name, module, largest=largest)(knn_by(search))
        adapter("chamfer_distance", f"{name} both ways", module, largest=largest)(chamfer_by(search))


_add_searches()


@adapter("knn", "torch-cluster", "torch_cluster", BOTH, largest=3e10)
def _(queries: Tensor, points: Tensor, k: int) -> tuple[None, Tensor]:
    (B, M, _), N = queries.shape, points.shape[1]
    (x, of_x), (y, of_y) = _flat(points), _flat(queries)
    indices = peer("torch_cluster").knn(x, y, k, of_x, of_y, num_workers=torch.get_num_threads())[1].view(B, M, k)
    return None, indices - N * torch.arange(B, device=x.device)[:, None, None]


@adapter("knn", "pytorch3d", "pytorch3d.ops", BOTH, largest=3e9)
def _(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = peer("pytorch3d.ops").knn_points(queries, points, K=k)
    return found.dists, found.idx


# ---- sample_and_group


@adapter("sample_and_group", "torch-fps fused", "torch_fps", BOTH)
def _(points: Tensor, num_samples: int, k: int) -> tuple[Tensor, Tensor]:
    valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    sample = peer("torch_fps").farthest_point_sampling_with_knn
    return sample(points, valid, num_samples, k, random_start=False, validate=False)


@adapter("sample_and_group", "torch-quickfps + pykdtree", "pykdtree.kdtree")
def _(points: Tensor, num_samples: int, k: int) -> tuple[Tensor, Tensor]:
    centers = _quickfps(points, num_samples)
    return centers, _stack(_pykdtree(q, p, k)[1] for q, p in _arrays(_gather(points, centers), points))


@adapter("sample_and_group", "pytorch3d", "pytorch3d.ops", BOTH)
def _(points: Tensor, num_samples: int, k: int) -> tuple[Tensor, Tensor]:
    centers, indices = peer("pytorch3d.ops").sample_farthest_points(points, K=num_samples)
    return indices, peer("pytorch3d.ops").knn_points(centers, points, K=k).idx


# ---- group and knn_interpolate; pointnet2_ops keeps channels first, and its users transpose


@adapter("group", "pytorch3d", "pytorch3d.ops", BOTH)
def _(features: Tensor, indices: Tensor) -> Tensor:
    return peer("pytorch3d.ops").knn_gather(features, indices)


@adapter("group", "pointnet2_ops", "pointnet2_ops.pointnet2_utils", CUDA, differs="channels first, int32")
def _(features: Tensor, indices: Tensor) -> Tensor:
    group = peer("pointnet2_ops.pointnet2_utils").grouping_operation
    return group(features.transpose(1, 2).contiguous(), indices.int()).permute(0, 2, 3, 1)


@adapter("knn_interpolate", "pytorch3d", "pytorch3d.ops", BOTH)
def _(queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
    found = peer("pytorch3d.ops").knn_points(queries, points, K=3)
    neighbors = peer("pytorch3d.ops").knn_gather(features, found.idx)
    return (reference.interpolation_weights(found.dists)[..., None] * neighbors).sum(2)


@adapter("knn_interpolate", "pointnet2_ops", "pointnet2_ops.pointnet2_utils", CUDA, differs="channels first, 1/(d+eps)")
def _(queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
    utils = peer("pointnet2_ops.pointnet2_utils")
    distances, indices = utils.three_nn(queries, points)
    weights = reference.interpolation_weights(distances.square())
    return utils.three_interpolate(features.transpose(1, 2).contiguous(), indices, weights).transpose(1, 2)


# ---- chamfer_distance


@adapter("chamfer_distance", "pytorch3d", "pytorch3d.loss", BOTH, largest=3e9)
def _(x: Tensor, y: Tensor) -> Tensor:
    return peer("pytorch3d.loss").chamfer_distance(x, y)[0]


@adapter("chamfer_distance", "chamferdist", "chamferdist.chamfer", BOTH, largest=3e9)
def _(x: Tensor, y: Tensor) -> Tensor:
    knn_points = peer("chamferdist.chamfer").knn_points
    return knn_points(x, y, K=1).dists.mean() + knn_points(y, x, K=1).dists.mean()


# ---- project_points


def _pixels(points: Tensor, intrinsics: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Row-major pixels [B, N], size^2 for a point outside the frame, and z [B, N]."""
    x, y, z = points.unbind(-1)
    u = (intrinsics[0, 0] * x / z + intrinsics[0, 2]).floor().long()
    v = (intrinsics[1, 1] * y / z + intrinsics[1, 2]).floor().long()
    inside = (z > 1e-6) & (u >= 0) & (u < size) & (v >= 0) & (v < size)
    return torch.where(inside, v * size + u, size * size), z


@adapter("project_points", "torch scatter_reduce", "torch", BOTH, differs="depth alone")
def _(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    pixels, z = _pixels(points, intrinsics, size)
    depth = torch.full((len(points), size * size + 1), torch.inf, device=points.device)
    depth.scatter_reduce_(1, pixels, z, "amin")
    return depth.where(depth < torch.inf, 0)[:, :-1].view(-1, 1, size, size)


@adapter("project_points", "torch packed int64", "torch", BOTH, differs="depth and index")
def _(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    pixels, z = _pixels(points, intrinsics, size)
    key = (z.contiguous().view(torch.int32).long() << 32) | torch.arange(z.shape[1], device=z.device)
    nearest = torch.full((len(points), size * size + 1), 2**63 - 1, device=z.device)
    nearest.scatter_reduce_(1, pixels, key, "amin")
    depth = (nearest >> 32).int().view(torch.float32)
    return depth.where(nearest < 2**63 - 1, 0)[:, :-1].reshape(-1, 1, size, size)


@cache
def _numba_loop() -> Any:
    numba, np = peer("numba"), peer("numpy")

    @numba.njit(parallel=True)
    def draw(points, fx, fy, cx, cy, size):
        depth = np.empty((points.shape[0], 1, size, size), np.float32)
        for b in numba.prange(points.shape[0]):
            depth[b] = 0
            for n in range(points.shape[1]):
                z = points[b, n, 2]
                if z > np.float32(1e-6):
                    u = np.floor(fx * points[b, n, 0] / z + cx)
                    v = np.floor(fy * points[b, n, 1] / z + cy)
                    if u >= 0 and u < size and v >= 0 and v < size:
                        row, column = int(v), int(u)
                        if depth[b, 0, row, column] == 0 or z < depth[b, 0, row, column]:
                            depth[b, 0, row, column] = z
        return depth

    return draw


@adapter("project_points", "numba loop", "numba", differs="depth alone")
def _(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    peer("numba").set_num_threads(min(torch.get_num_threads(), peer("numba").config.NUMBA_NUM_THREADS))
    fx, fy, cx, cy = (intrinsics.numpy()[i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return torch.from_numpy(_numba_loop()(points.numpy(), fx, fy, cx, cy, size))


def _share_of_pixels(depth: Tensor, ours: Tensor) -> str:
    """Agreement of those that draw something else than one pixel a point."""
    other = ((depth - ours).abs() > 1e-5).sum() / (ours > 0).sum()
    return f"{other.item():.0%} of the pixels differ"


@adapter("project_points", "open3d", "open3d", differs="depth alone")
def _(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    o3d = peer("open3d")
    k = intrinsics.double().numpy() - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]  # it rounds where we cut off
    clouds = [o3d.t.geometry.PointCloud(o3d.core.Tensor.from_numpy(cloud)) for (cloud,) in _arrays(points)]
    depth = [
        cloud.project_to_depth_image(size, size, o3d.core.Tensor(k), depth_scale=1.0, depth_max=100.0)
        for cloud in clouds
    ]
    return torch.stack([torch.from_dlpack(image.as_tensor().to_dlpack()) for image in depth]).view(-1, 1, size, size)


@adapter(
    "project_points",
    "pytorch3d rasterize_points",
    "pytorch3d.renderer.points.rasterize_points",
    BOTH,
    largest=64 * 1024,
    differs="discs of one pixel across",
    check=_share_of_pixels,
)
def _(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    x, y, z = points.unbind(-1)
    u, v = intrinsics[0, 0] * x / z + intrinsics[0, 2], intrinsics[1, 1] * y / z + intrinsics[1, 2]
    cloud = peer("pytorch3d.structures").Pointclouds(torch.stack([1 - 2 * u / size, 1 - 2 * v / size, z], dim=-1))
    rasterize = peer("pytorch3d.renderer.points.rasterize_points").rasterize_points
    depth = rasterize(cloud, image_size=size, radius=1 / size, points_per_pixel=1)[1]
    return depth.clamp(min=0).view(-1, 1, size, size)
