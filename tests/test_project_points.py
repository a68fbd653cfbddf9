from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jointmae.ops import Projection, project_points, reference
from tests.op_cases import check_concurrent, check_fork, check_same_bits, equal, isa_levels, outputs_of

MODES = ("zbuffer", "soft", "harmonic")
IDENTITY = torch.eye(4)[:3].view(1, 1, 3, 4)
SOFT = {"sigma": 1.0, "temperature": 0.05, "background": 0.1}


def cameras(B: int, V: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cameras that look at the origin from 1.4 away, [B, V, 3, 4]."""
    rotation = torch.linalg.qr(torch.randn(B, V, 3, 3, dtype=torch.float64)).Q
    shift = torch.tensor([0.0, 0.0, 1.4], dtype=torch.float64).expand(B, V, 3)[..., None]
    return torch.cat([rotation, shift], dim=-1).to(device, dtype)


def pinhole(focal: float, H: int, W: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([[focal, 0, W / 2], [0, 1.1 * focal, H / 2], [0, 0, 1]], device=device, dtype=dtype)


def scene(B: int, N: int, V: int, H: int, W: int, device: torch.device, dtype: torch.dtype = torch.float32):
    torch.manual_seed(N)
    points = torch.randn(B, N, 3, device=device, dtype=dtype) * 0.6  # some are behind a camera, some beside the frame
    return points, cameras(B, V, device, dtype), pinhole(0.6 * W, H, W, device, dtype), (H, W)


def expected(points, world_to_cam, intrinsics, image_size, radius=2, mode="zbuffer", **soft) -> Projection:
    B, V = world_to_cam.shape[:2]
    soft = SOFT | soft
    depth, index, coverage, pixels, dropped, _ = reference.project_points(
        points, world_to_cam, intrinsics.expand(B, V, 3, 3), *image_size, radius, mode, *soft.values()
    )
    return Projection(depth, index, pixels, dropped, coverage if mode == "soft" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("radius", [0, 1, 2, 4, 20])
@pytest.mark.parametrize(("B", "N", "V", "H", "W"), [(2, 300, 4, 37, 21), (1, 1, 1, 1, 1), (3, 17, 1, 16, 64)])
def test_equals_reference(device, mode, radius, dtype, B, N, V, H, W):
    args = (*scene(B, N, V, H, W, device, dtype), min(radius, max(H, W)), mode)
    sigma = max(1.0, radius / 3)  # no weight underflows
    result, wanted = project_points(*args, sigma=sigma), expected(*args, sigma=sigma)
    for name in ("index", "pixels", "dropped"):
        assert torch.equal(getattr(result, name), getattr(wanted, name)), name
    if mode == "zbuffer":
        assert equal(outputs_of(result), outputs_of(wanted))  # to the bit
    torch.testing.assert_close(result.depth, wanted.depth)
    torch.testing.assert_close(result.coverage, wanted.coverage)


def test_integer_coordinates(device):
    """Points on a grid at three depths: many ties in z, and u, v exactly on pixel borders."""
    torch.manual_seed(0)
    points = torch.randint(-4, 5, (2, 400, 3), device=device).float()
    points[..., 2] = points[..., 2].abs() % 3  # z = 0 is behind
    args = (points, IDENTITY.expand(2, 1, 3, 4).to(device), pinhole(4, 32, 32, device), (32, 32), 1)
    assert equal(outputs_of(project_points(*args)), outputs_of(expected(*args)))


# Few and many footprints on several bands of rows; views that threads share; footprints wider than a band, or than all.
LARGE = [(1, 500, 2, 300, 230), (1, 30_000, 2, 300, 230), (2, 90_000, 0, 40, 50), (1, 90_000, 1, 40, 50)]
LARGE += [(1, 60, 30, 300, 230), (3, 5, 260, 257, 260)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("V", "N", "radius", "H", "W"), LARGE)
def test_large_views_and_clouds(num_threads, mode, V, N, radius, H, W):
    """All ways of the CPU kernels, which choose by size: the reference's results, and the same bits for any threads."""
    points, *args = scene(1, N, V, H, W, torch.device("cpu"))
    points = torch.cat([points[:, : N // 2], (points[:, N // 2 :] * 8).round() / 8], dim=1)  # many ties

    def call(points: Tensor) -> tuple[Tensor, ...]:
        leaf = points.clone().requires_grad_()
        result = project_points(leaf, *args, radius, mode, sigma=max(1.0, radius / 3))
        (result.depth.square().sum() + result.coverage.sum()).backward()
        return (*(output.detach() for output in outputs_of(result)), leaf.grad)

    wanted = expected(points, *args, radius, mode, sigma=max(1.0, radius / 3))
    depth, index, coverage, pixels, dropped, _ = call(points)
    assert equal((index, pixels, dropped), (wanted.index, wanted.pixels, wanted.dropped))
    if mode == "zbuffer":
        assert torch.equal(depth, wanted.depth)
    else:  # float32 sums of up to 800 terms
        torch.testing.assert_close(depth, wanted.depth, rtol=2e-5, atol=1e-5)
        torch.testing.assert_close(coverage, wanted.coverage, rtol=2e-5, atol=1e-5)
    check_same_bits(lambda: call(points), num_threads)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("N", "radius", "H", "W"), [(400, 2, 300, 230), (70_000, 1, 30, 40), (60, 30, 300, 230)])
def test_gradient_of_large_views_and_clouds(mode, N, radius, H, W):
    points, *args = scene(1, N, 2, H, W, torch.device("cpu"), torch.float64)
    ours, theirs = points.clone().requires_grad_(), points.clone().requires_grad_()
    for draw, leaf in ((project_points, ours), (expected, theirs)):
        result = draw(leaf, *args, radius, mode, sigma=max(1.0, radius / 3))
        (result.depth.square().sum() + result.coverage.square().sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("radius", [0, 2])
def test_all_points_dropped(device, mode, radius):
    points = torch.tensor([[[0.0, 0, -1], [9e9, 0, 1]]], device=device, requires_grad=True)
    result = project_points(points, IDENTITY.to(device), pinhole(4, 8, 8, device), (8, 8), radius, mode)
    result.depth.sum().backward()
    assert result.dropped.tolist() == [[2]]
    assert result.index.eq(-1).all() and result.depth.eq(0).all() and result.coverage.eq(0).all()
    assert points.grad is not None and points.grad.eq(0).all()


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("zbuffer", [[1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]]),
        ("harmonic", [[1.0, 4 / 3, 4 / 3, 2.0], [1.0, 4 / 3, 4 / 3, 2.0], [1.0, 4 / 3, 4 / 3, 2.0], [0.0] * 4]),
    ],
)
def test_by_hand(device, mode, wanted):
    """Two points of 3x3 pixels: z = 1 around pixel (1, 1), z = 2 around pixel (2, 1)."""
    points = torch.tensor([[[1.5, 1.5, 1.0], [5.0, 3.0, 2.0]]], device=device)
    eye = torch.eye(3, device=device)
    result = project_points(points, IDENTITY.to(device), eye, (4, 4), 1, mode)
    torch.testing.assert_close(result.depth[0, 0], torch.tensor(wanted, device=device))
    winner = torch.tensor([[0, 0, 0, 1]] * 3 + [[-1] * 4], dtype=torch.int32, device=device)
    assert torch.equal(result.index[0, 0], winner)
    assert torch.equal(result.coverage[0, 0], (winner >= 0).float())
    assert result.pixels.tolist() == [[[[1, 1], [2, 1]]]]
    assert result.dropped.tolist() == [[0]]


def test_soft_by_hand(device):
    """One pixel under two points: 0.25 pixels to the right at z = 1, and at the centre at z = 1.1."""
    points = torch.tensor([[[0.75, 0.5, 1.0], [0.55, 0.55, 1.1]]], device=device)
    args = (points, IDENTITY.to(device), torch.eye(3, device=device), (1, 1), 0, "soft")
    result = project_points(*args, sigma=0.5, temperature=0.2, background=0.3)
    near, far = math.exp(-(0.25**2) / (2 * 0.5**2)), math.exp(-0.1 / 0.2)
    assert result.depth.item() == pytest.approx((near * 1.0 + far * 1.1) / (near + far), rel=1e-6)
    assert result.coverage.item() == pytest.approx((near + far) / (near + far + 0.3), rel=1e-6)
    assert result.index.item() == 0


def test_ties_go_to_the_lowest_index(device):
    points = torch.tensor([0.0, 0.0, 2.0], device=device).expand(1, 9, 3)
    result = project_points(points, IDENTITY.to(device), pinhole(4, 8, 8, device), (8, 8))
    assert set(result.index.unique().tolist()) == {-1, 0}


def test_dropped_points(device):
    """In front, behind, on the camera's plane, on the frame's first and last pixel, just outside, far outside."""
    row = [[0, 0, 1], [0, 0, -1], [0, 0, 0], [-2, -2, 1], [1.9, 1.9, 1], [2, 0, 1], [0, -2.1, 1], [3e38, 0, 1e-5]]
    points = torch.tensor([row], dtype=torch.float32, device=device)
    intrinsics = torch.tensor([[1.0, 0, 2], [0, 1, 2], [0, 0, 1]], device=device)
    for mode in MODES:
        result = project_points(points, IDENTITY.to(device), intrinsics, (4, 4), 0, mode)
        assert result.dropped.tolist() == [[5]]
        assert result.pixels[0, 0].tolist() == [[2, 2], [-1, -1], [-1, -1], [0, 0], [3, 3]] + [[-1, -1]] * 3
        assert int((result.index >= 0).sum()) == 3
        assert torch.isfinite(result.depth).all()


def test_views_are_independent(device):
    points, world_to_cam, _, size = scene(2, 100, 4, 24, 30, device)
    intrinsics = torch.stack([pinhole(10 + i, 24, 30, device) for i in range(8)]).view(2, 4, 3, 3)
    together = project_points(points, world_to_cam, intrinsics, size, 2, "soft")
    for v in range(4):
        alone = project_points(points, world_to_cam[:, v : v + 1], intrinsics[:, v : v + 1], size, 2, "soft")
        assert equal(outputs_of(alone), tuple(output[:, v : v + 1] for output in outputs_of(together)))


def test_weights_that_underflow(device):
    points = torch.tensor([[[0.1, 0.1, 1.0]]], device=device)
    args = (points, IDENTITY.to(device), torch.eye(3, device=device), (1, 1), 0, "soft")
    result = project_points(*args, sigma=0.01)
    assert result.depth.item() == result.coverage.item() == 0
    assert result.index.item() == 0


def test_temperature_far_below_the_range(device):
    """A depth range of 1,000 temperatures: the nearest point alone counts, and nothing overflows."""
    points = torch.tensor([[[0.5, 0.5, 1.0], [5.0, 5.0, 10.0], [25.0, 25.0, 50.0]]], device=device)
    args = (points, IDENTITY.to(device), torch.eye(3, device=device), (1, 1), 0, "soft")
    result = project_points(*args, temperature=0.05)
    assert result.depth.item() == 1


def test_gradients_of_weights_that_underflow(device):
    points = torch.tensor([[[0.0, 0.0, 1.0]]], device=device, requires_grad=True)
    intrinsics = torch.tensor([[1.0, 0, 2.95], [0, 1, 2.95], [0, 0, 1]], device=device)
    result = project_points(points, IDENTITY.to(device), intrinsics, (5, 5), 2, "soft", sigma=0.25)
    (result.depth.sum() + result.coverage.sum()).backward()
    assert result.coverage[0, 0, 0, 0] < 1e-30 and torch.isfinite(points.grad).all() and points.grad[0, 0, 2] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-38, 1e-9, 1e-6, 1e-3, 0.05, 10.0, 1e9])
@pytest.mark.parametrize("z", [2e-6, 1e-3, 1.0, 3.7e2, 5.3e4, 2.9e7, 1.1e12])
def test_depths_and_temperatures_of_any_size(device, z, temperature, dtype):
    """Points a few temperatures or a few floats apart, whose weights alone would under- or overflow."""
    torch.manual_seed(0)
    steps = torch.tensor([0.0, 0.3, 1.0, 2.5, 7.0, 90.0, 4000.0], dtype=torch.float64)
    depths = (z + steps * max(temperature, z * 2**-23)).to(dtype)
    for order in (torch.arange(7), torch.randperm(7)):
        points = torch.stack([depths[order] * 0.25, depths[order] * -0.25, depths[order]], dim=-1)[None].to(device)
        intrinsics = torch.tensor([[2.0, 0, 1.3], [0, 2.0, 1.6], [0, 0, 1]], device=device, dtype=dtype)
        args = (IDENTITY.to(device, dtype), intrinsics, (3, 3), 1, "soft")
        result = project_points(points, *args, temperature=temperature)
        exact = expected(points.double(), args[0].double(), intrinsics.double(), *args[2:], temperature=temperature)
        assert torch.equal(result.index, exact.index)
        torch.testing.assert_close(result.depth.double(), exact.depth, rtol=1e-6, atol=0)
        torch.testing.assert_close(result.coverage.double(), exact.coverage, rtol=1e-6, atol=0)


def test_empty_batch(device):
    points = torch.empty(0, 5, 3, device=device, requires_grad=True)
    for mode in MODES:
        result = project_points(
            points, torch.empty(0, 3, 3, 4, device=device), torch.eye(3, device=device), (4, 6), 1, mode
        )
        assert [tuple(output.shape) for output in outputs_of(result)] == [(0, 3, 4, 6)] * 3 + [(0, 3, 5, 2), (0, 3)]
        result.depth.sum().backward()
        assert points.grad is not None and points.grad.shape == (0, 5, 3)


def test_dtypes(device):
    points, world_to_cam, intrinsics, size = scene(2, 100, 2, 20, 20, device)
    for dtype in (torch.float16, torch.bfloat16):
        half = points.to(dtype)
        result = project_points(half, world_to_cam, intrinsics, size, 2, "soft")
        wanted = project_points(half.float(), world_to_cam, intrinsics, size, 2, "soft")
        assert equal(outputs_of(result), outputs_of(wanted))
    result = project_points(points.double(), world_to_cam, intrinsics, size, 2, "soft")
    assert result.depth.dtype == result.coverage.dtype == torch.float64
    assert [output.dtype for output in (result.index, result.pixels)] == [torch.int32] * 2
    assert result.dropped.dtype == torch.int64


def test_not_contiguous(device):
    points, world_to_cam, intrinsics, size = scene(2, 64, 3, 20, 20, device)
    strided = points.repeat_interleave(2, dim=1)[:, ::2], world_to_cam.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided[0].is_contiguous() and not strided[1].is_contiguous()
    for mode in MODES:
        a = strided[0].detach().requires_grad_()
        b = points.clone().requires_grad_()
        first = project_points(a, strided[1], intrinsics, size, 2, mode)
        second = project_points(b, world_to_cam, intrinsics, size, 2, mode)
        assert equal(outputs_of(first), outputs_of(second))
        weight = torch.randn_like(first.depth).transpose(2, 3)  # a gradient that is not contiguous
        (first.depth.transpose(2, 3) * weight).sum().backward()
        (second.depth.transpose(2, 3) * weight).sum().backward()
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("radius", [0, 2, 5])
def test_gradient_equals_the_references(device, mode, radius):
    points, *args = scene(2, 200, 3, 30, 40, device, torch.float64)
    ours, theirs = points.clone().requires_grad_(), points.clone().requires_grad_()
    result, wanted = project_points(ours, *args, radius, mode), expected(theirs, *args, radius, mode)
    grad_depth, grad_coverage = torch.randn_like(result.depth), torch.randn_like(result.depth)
    for output in (result, wanted):
        ((output.depth * grad_depth).sum() + (output.coverage * grad_coverage).sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    B, V = args[0].shape[:2]
    intrinsics = args[1].expand(B, V, 3, 3)
    outputs = reference.project_points(points, args[0], intrinsics, *args[2], radius, mode, *SOFT.values())
    saved = (points, args[0], intrinsics, outputs[0], outputs[1], outputs[5])
    analytic = reference.project_points_backward(grad_depth, grad_coverage, *saved, radius, mode, *SOFT.values())
    torch.testing.assert_close(analytic, theirs.grad)


@pytest.mark.parametrize("output", ["depth", "coverage"])
def test_gradient_of_one_output(device, output):
    """The other output's gradient is missing, not zero, and costs nothing."""
    points, *args = scene(1, 50, 2, 16, 16, device)
    ours, theirs = points.clone().requires_grad_(), points.clone().requires_grad_()
    getattr(project_points(ours, *args, 2, "soft"), output).square().sum().backward()
    getattr(expected(theirs, *args, 2, "soft"), output).square().sum().backward()
    # float32 sums of up to 25 pixels whose terms cancel
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_zbuffer_gradient_goes_to_the_winner_along_the_axis(device):
    points = torch.tensor([[[0.0, 0, 1], [0, 0, 2], [0, 0, -1]]], device=device, requires_grad=True)
    result = project_points(points, IDENTITY.to(device), pinhole(4, 8, 8, device), (8, 8), 1)
    result.depth.sum().backward()
    assert points.grad.tolist() == [[[0, 0, 9], [0, 0, 0], [0, 0, 0]]]


def centred_points(device: torch.device) -> Tensor:
    """Six points, each within 0.2 of the middle of a pixel of a 6 x 6 frame with focal length 6, [1, 6, 3]."""
    pixel = torch.tensor([[1, 1], [2, 1], [2, 3], [3, 3], [4, 2], [2, 2]], device=device, dtype=torch.float64)
    z = torch.tensor([1.0, 1.04, 1.3, 1.27, 1.1, 1.02], device=device, dtype=torch.float64)
    torch.manual_seed(0)
    uv = pixel + 0.5 + 0.4 * (torch.rand(6, 2, dtype=torch.float64).to(device) - 0.5)
    return torch.cat([(uv - 3) / 6 * z[:, None], z[:, None]], dim=-1)[None]


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(device, mode):
    """Away from pixel borders. The soft mode holds z_min constant: gradcheck cannot, so its nearest point stays fixed
    below, out of the inputs, and covers every pixel."""
    points = centred_points(device)
    world_to_cam = IDENTITY.to(device, torch.float64)
    intrinsics = torch.tensor([[6.0, 0, 3], [0, 6, 3], [0, 0, 1]], device=device, dtype=torch.float64)
    nearest = torch.tensor([[[0.0, 0.0, 0.9]]], device=device, dtype=torch.float64)

    def draw(free: Tensor) -> tuple[Tensor, Tensor]:
        result = project_points(
            torch.cat([nearest, free], 1), world_to_cam, intrinsics, (6, 6), 4, mode, temperature=0.3
        )
        return (result.depth, result.coverage) if mode == "soft" else (result.depth,)

    assert torch.autograd.gradcheck(draw, points.requires_grad_())


def test_soft_gradient_reaches_x_y_and_z(device):
    points = centred_points(device).float().requires_grad_()
    intrinsics = torch.tensor([[6.0, 0, 3], [0, 6, 3], [0, 0, 1]], device=device)
    result = project_points(points, IDENTITY.to(device), intrinsics, (6, 6), 1, "soft")
    (result.depth.square().sum() + result.coverage[..., :3].sum()).backward()
    assert (points.grad.abs() > 1e-4).all()


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(device, mode):
    points, world_to_cam, intrinsics, (H, W) = scene(2, 40, 2, 12, 10, device)
    points.requires_grad_()
    args = (points, world_to_cam, intrinsics.expand(2, 2, 3, 3), H, W, 1, mode, *SOFT.values())
    torch.library.opcheck(torch.ops.jointmae.project_points, args)
    depth, index, coverage, _, _, weight_sum = (output.detach() for output in torch.ops.jointmae.project_points(*args))
    saved = (points.detach(), *args[1:3], depth, index, weight_sum)
    for grads in ((depth, coverage), (depth, None), (None, coverage)):
        torch.library.opcheck(torch.ops.jointmae.project_points_backward, (*grads, *saved, 1, mode, *SOFT.values()))


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_has_the_strides_of_the_kernels(device, mode):
    """It stands in for them, float64 on a GPU for one, and tracing is told but one layout."""
    points, world_to_cam, intrinsics, (H, W) = scene(2, 9, 2, 12, 10, device)
    args = (points, world_to_cam, intrinsics.expand(2, 2, 3, 3), H, W, 1, mode, *SOFT.values())
    assert all(output.is_contiguous() for output in reference.project_points(*args))


@pytest.mark.parametrize("mode", MODES)
def test_compile(device, mode):
    points, *args = scene(2, 60, 2, 20, 20, device)

    def loss(points: Tensor) -> Tensor:
        result = project_points(points, *args, 2, mode)
        return (result.depth * (result.index >= 0)).square().sum() + result.coverage.square().sum()

    eager, compiled = points.clone().requires_grad_(), points.clone().requires_grad_()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    assert torch.equal(eager.grad, compiled.grad)


@pytest.mark.parametrize("mode", MODES)
def test_same_bits(device, num_threads, mode):
    points, *args = scene(3, 300, 4, 40, 50, device)

    def call() -> tuple[Tensor, ...]:
        leaf = points.clone().requires_grad_()
        result = project_points(leaf, *args, 2, mode)
        (result.depth.square().sum() + result.coverage.sum()).backward()
        return (*(output.detach() for output in outputs_of(result)), leaf.grad)

    check_same_bits(call, num_threads)


def test_concurrent_and_forked():
    points, *args = scene(4, 200, 2, 30, 30, torch.device("cpu"))
    check_concurrent(lambda: outputs_of(project_points(points, *args, 2, "soft")))
    check_fork(lambda: outputs_of(project_points(points, *args, 2, "soft")))


BITS = """
import hashlib, torch
from jointmae.ops import project_points
torch.manual_seed(0)
points = (torch.randn(3, 500, 3) * 0.5).requires_grad_()
world_to_cam = torch.cat([torch.eye(3), torch.tensor([[0.], [0.], [1.4]])], 1).expand(3, 2, 3, 4)
intrinsics = torch.tensor([[30., 0, 20], [0, 33., 18], [0, 0, 1]])
for mode in ("zbuffer", "soft", "harmonic"):
    points.grad = None
    result = project_points(points, world_to_cam, intrinsics, (36, 41), 2, mode)
    torch.autograd.backward([result.depth], [torch.randn_like(result.depth)])
    for tensor in (result.depth, result.index, result.coverage, result.pixels, points.grad):
        print(hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest())
"""


def test_same_bits_at_every_instruction_set(run_python):
    """All outputs and the gradient: nothing is contracted, and no sum depends on the width of vectors."""
    levels = isa_levels()
    if len(levels) < 2:
        pytest.skip("needs a processor with AVX2")
    outputs = {level: run_python(BITS, JOINTMAE_ISA=level) for level in levels}
    for level, output in outputs.items():
        assert output.returncode == 0, output.stderr
        assert output.stdout == outputs["scalar"].stdout, level


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(value):
    points, world_to_cam, intrinsics, size = scene(2, 9, 2, 8, 8, torch.device("cpu"))
    for name, tensor in (("points", points), ("world_to_cam", world_to_cam), ("intrinsics", intrinsics)):
        bad = tensor.clone()
        bad.view(-1)[4] = value
        inputs = {"points": points, "world_to_cam": world_to_cam, "intrinsics": intrinsics, name: bad}
        with pytest.raises(ValueError, match=f"project_points: {name} must be finite, got {value}"):
            project_points(**inputs, image_size=size)


def test_skewed_camera():
    points, world_to_cam, intrinsics, size = scene(2, 9, 2, 8, 8, torch.device("cpu"))
    intrinsics = intrinsics.clone()
    intrinsics[..., 0, 1] = 0.5
    with pytest.raises(ValueError, match="intrinsics must have no skew"):
        project_points(points, world_to_cam, intrinsics, image_size=size)


def test_coordinates_that_overflow_in_the_camera():
    """The points are finite: no error, but such a point is dropped."""
    points, world_to_cam, intrinsics, size = scene(2, 9, 2, 8, 8, torch.device("cpu"))
    points = points.clone()
    points[1, 3] = 3e38
    world_to_cam = world_to_cam * 10
    drawn = project_points(points, world_to_cam, intrinsics, image_size=size)
    assert (drawn.pixels[1, :, 3] == -1).all() and torch.isfinite(drawn.depth).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": torch.zeros(2, 5, 3, dtype=torch.int64)}, TypeError, r"points must be floating point"),
        ({"points": torch.zeros(5, 3)}, ValueError, r"points must have shape \[B, N, 3\], got \[5, 3\]"),
        ({"points": torch.zeros(2, 0, 3)}, ValueError, r"points must have at least one point"),
        ({"world_to_cam": torch.zeros(2, 3, 4)}, ValueError, r"world_to_cam must have shape \[B, V, 3, 4\]"),
        ({"world_to_cam": torch.zeros(2, 0, 3, 4)}, ValueError, r"with V >= 1, got \[2, 0, 3, 4\]"),
        ({"world_to_cam": torch.zeros(3, 1, 3, 4)}, ValueError, r"must have the same B, got 2 and 3"),
        ({"world_to_cam": torch.zeros(2, 1, 3, 4, dtype=torch.int32)}, TypeError, r"world_to_cam must be floating"),
        ({"intrinsics": torch.zeros(2, 3, 3)}, ValueError, r"\[3, 3\] or \[B=2, V=1, 3, 3\], got \[2, 3, 3\]"),
        ({"intrinsics": torch.ones(3, 3)}, ValueError, r"intrinsics must have no skew"),
        ({"image_size": 64}, TypeError, r"image_size must be a pair \(H, W\), got 64"),
        ({"image_size": (0, 8)}, ValueError, r"image_size must be at least \(1, 1\), got \(0, 8\)"),
        ({"radius": -1}, ValueError, r"radius must be in \[0, max\(H, W\)=8\], got -1"),
        ({"radius": 9}, ValueError, r"radius must be in \[0, max\(H, W\)=8\], got 9"),
        ({"mode": "hard"}, ValueError, r"mode must be one of zbuffer, soft, harmonic, got 'hard'"),
        ({"sigma": 0.0}, ValueError, r"sigma must be positive, got 0.0"),
        ({"temperature": math.nan}, ValueError, r"temperature must be positive, got nan"),
        ({"background": -1.0}, ValueError, r"background must be positive, got -1.0"),
    ],
)
def test_errors(change, error, message):
    inputs = {
        "points": torch.rand(2, 5, 3),
        "world_to_cam": IDENTITY.expand(2, 1, 3, 4),
        "intrinsics": torch.eye(3),
        "image_size": (8, 6),
    }
    with pytest.raises(error, match=f"project_points: .*{message}"):
        project_points(**(inputs | change))
