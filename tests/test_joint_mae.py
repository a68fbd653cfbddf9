"""The model against the paper: its equations on small numbers, its size, what it may and may not see."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jointmae import ops
from jointmae.config import ModelConfig
from jointmae.errors import CheckpointError
from jointmae.evaluate import without_encoder
from jointmae.model import JointMAE
from jointmae.model import losses as model_losses
from jointmae.model.embed import hide_points, image_of, patches_of
from jointmae.model.masking import draw, take, visible_flags
from jointmae.model.projection import intrinsics, project
from jointmae.recipes import PRESETS, train_config
from tests.models import batch, furniture, micro_config, micro_model

BATCH_SIZES = pytest.mark.parametrize("size", [1, 3], ids=["batch of one", "batch"])


# ---- size ----


def linear(n_in: int, n_out: int, bias: bool = True) -> int:
    return n_in * n_out + (n_out if bias else 0)


def norm(width: int) -> int:
    return 2 * width


def block(C: int) -> int:
    return norm(C) + linear(C, 3 * C, bias=False) + linear(C, C) + norm(C) + linear(C, 4 * C) + linear(4 * C, C)


def mini_pointnet(n_in: int, n_out: int) -> int:
    first = linear(n_in + 3, n_in) + norm(n_in) + linear(n_in, n_in)
    return first + linear(2 * n_in, n_out) + norm(n_out) + linear(n_out, n_out)


def count_by_hand() -> tuple[int, int]:
    """Parameters of the paper's model, and of the part that downstream tasks keep, from its description alone."""
    C = 384
    position = linear(3, 128) + linear(128, C)
    point_embed = linear(3, 96) + mini_pointnet(96, 192) + mini_pointnet(192, 384)
    encoder_3d = point_embed + position + C + 12 * block(C) + norm(C)
    conv = linear(9 * 96, 192) + norm(192) + linear(9 * 192, 384) + norm(384)
    depth_embed = linear(16, 96) + conv + C
    cross_block = 3 * norm(C) + linear(C, C, bias=False) + linear(C, 2 * C, bias=False) + linear(C, C)
    cross_block += linear(C, 4 * C) + linear(4 * C, C) + norm(C)
    decoder = 2 * C + position + 2 * block(C) + norm(C) + 2 * cross_block + linear(C, 32 * 3) + linear(C, 256)
    return encoder_3d + depth_embed + decoder, encoder_3d


def test_paper_preset_has_the_papers_size():
    model = JointMAE(train_config("paper").model)
    everything, encoder_3d = count_by_hand()
    assert sum(p.numel() for p in model.parameters()) == everything
    kept = ("encoder.", "point_embed.", "point_position.", "modality_3d")
    assert sum(p.numel() for name, p in model.named_parameters() if name.startswith(kept)) == encoder_3d
    assert 21.5e6 < encoder_3d < 22e6  # "21.8 M", the family's size


def test_token_counts_are_the_papers():
    config = ModelConfig()
    draws = draw(config, 0, 0, torch.arange(2))
    model = micro_model()
    assert (config.num_centers, config.num_2d_tokens) == ((2048 // 8, 2048 // 32), 224 * 224 // 256)
    assert (draws.mask_3d.shape[1], draws.mask_2d.shape[1]) == (64, 196)
    inputs = model.prepare(*batch(model.config))
    visible = inputs.mask_3d.ids_keep.shape[1], inputs.mask_2d.ids_keep.shape[1]
    assert visible == (4, 4)  # a quarter of 16


# ---- equations, recomputed with plain matrix products ----


def plain_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, num_heads: int) -> Tensor:
    heads = []
    for qh, kh, vh in zip(*(t.chunk(num_heads, dim=-1) for t in (q, k, v)), strict=True):
        scores = qh @ kh.transpose(1, 2) / math.sqrt(qh.shape[-1])
        if valid is not None:
            scores = scores.masked_fill(~valid, -torch.inf)
        heads.append(scores.softmax(-1) @ vh)
    return torch.cat(heads, dim=-1)


def plain_block(block: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    y = block.norm1(x)
    q, k, v = (y @ w.T for w in block.attention.qkv.weight.chunk(3))
    x = x + block.attention.proj(plain_attention(q, k, v, valid, block.attention.num_heads))
    return x + block.mlp(block.norm2(x))


def plain_transformer(transformer: nn.Module, x: Tensor, position: Tensor, valid: Tensor | None) -> Tensor:
    for layer in transformer.blocks:
        x = plain_block(layer, x + position, valid)
    return transformer.norm(x)


def plain_cross_block(block: nn.Module, x: Tensor, memory: Tensor) -> Tensor:
    y, m = block.norm1(x), block.norm_memory(memory)
    k, v = (m @ w.T for w in block.attention.kv.weight.chunk(2))
    q = y @ block.attention.q.weight.T
    x = x + block.attention.proj(plain_attention(q, k, v, None, block.attention.num_heads))
    return block.norm(x + block.mlp(block.norm2(x)))


@BATCH_SIZES
def test_joint_encoder_is_local_aligned_attention_over_both_modalities(size):
    """Section 3.2 and 3.3, figure 3: own modality always, the other one only in the same 16x16 pixels."""
    model = micro_model().eval()
    inputs = model.prepare(*batch(model.config, size))
    ids_3d, ids_2d = inputs.mask_3d.ids_keep, inputs.mask_2d.ids_keep
    tokens_3d = take(model.point_embed(inputs.points, inputs.geometry) + model.modality_3d, ids_3d)
    tokens_2d = take(model.depth_embed(inputs.images) + model.modality_2d, ids_2d)
    position_3d = model.point_position(take(inputs.geometry.centers, ids_3d))
    position_2d = model.depth_position[0][ids_2d]
    valid = torch.zeros(size, 8, 8, dtype=torch.bool)
    for b in range(size):
        cells = inputs.center_cells[b, ids_3d[b]].tolist() + ids_2d[b].tolist()
        for i in range(8):
            for j in range(8):
                valid[b, i, j] = (i < 4) == (j < 4) or (cells[i] == cells[j] != -1)
    x = torch.cat([tokens_3d, tokens_2d], dim=1)
    expected = plain_transformer(model.encoder, x, torch.cat([position_3d, position_2d], dim=1), valid)
    latent = model.encode_visible(inputs)
    torch.testing.assert_close(torch.cat(latent, dim=1), expected)


@BATCH_SIZES
def test_equations_3_and_4_shared_and_specific_decoders(size):
    model = micro_model().eval()
    inputs = model.prepare(*batch(model.config, size))
    latent = model.encode_visible(inputs)
    e_3d, e_2d = latent
    # equation 3, in the order of the paper: visible 3D, visible 2D, mask tokens 3D, mask tokens 2D
    hidden_3d, hidden_2d = inputs.mask_3d.ids_hidden, inputs.mask_2d.ids_hidden
    t_3d = model.mask_token_3d.expand(size, 12, -1)
    t_2d = model.mask_token_2d.expand(size, 12, -1)
    centers = inputs.geometry.centers
    p_3d = model.decoder_point_position(centers)
    p_2d = model.decoder_depth_position.expand(size, -1, -1)
    position = torch.cat(
        [
            take(p_3d, inputs.mask_3d.ids_keep),
            take(p_2d, inputs.mask_2d.ids_keep),
            take(p_3d, hidden_3d),
            take(p_2d, hidden_2d),
        ],
        dim=1,
    )
    d = plain_transformer(model.shared_decoder, torch.cat([e_3d, e_2d, t_3d, t_2d], dim=1), position, None) + position
    # equation 4: queries are the decoded tokens, keys and values the encoder's visible tokens of the same modality
    expected_3d = plain_cross_block(model.point_decoder, d[:, 8:20], e_3d)
    expected_2d = plain_cross_block(model.depth_decoder, d[:, 20:], e_2d)
    decoded_3d, decoded_2d = model.decode(latent, inputs)
    torch.testing.assert_close(decoded_3d, expected_3d, rtol=1e-4, atol=1e-5)  # sums in another order of tokens
    torch.testing.assert_close(decoded_2d, expected_2d, rtol=1e-4, atol=1e-5)


@BATCH_SIZES
def test_equations_5_6_and_7_the_losses(size):
    model = micro_model(loss_weight_2d=0.5, loss_weight_cross=2.0).eval()
    points, up, draws = batch(model.config, size)
    out = model(points, up, draws)
    inputs = out.inputs
    # equation 5, 3D: Chamfer distance of each hidden group, by all pairs
    target = take(inputs.groups, inputs.mask_3d.ids_hidden)
    pairs = (out.pred_groups[:, :, :, None] - target[:, :, None]).square().sum(-1)  # [B, G", k, k]
    chamfer = pairs.amin(-1).mean() + pairs.amin(-2).mean()
    torch.testing.assert_close(out.loss_3d, chamfer)
    # equation 5, 2D: squared error of hidden patches cut from the image by hand
    squares = []
    for b in range(size):
        for m, token in enumerate(inputs.mask_2d.ids_hidden[b].tolist()):
            row, column = divmod(token, 4)
            pixels = inputs.images[b, 0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            squares.append((out.pred_patches[b, m].view(16, 16) - pixels).square().mean())
    torch.testing.assert_close(out.loss_2d, torch.stack(squares).mean())
    # equation 6: predicted and input cloud through the same cameras
    ids_keep, ids_hidden = inputs.mask_3d
    centers = inputs.geometry.centers

    def cloud(hidden_groups: Tensor) -> Tensor:
        hidden = hidden_groups + take(centers, ids_hidden)[:, :, None]
        visible = take(inputs.groups, ids_keep) + take(centers, ids_keep)[:, :, None]
        return torch.cat([hidden, visible], dim=1).flatten(1, 2)

    rendered = project(model.config, cloud(out.pred_groups), inputs.cameras, "soft").images
    wanted = project(model.config, cloud(target), inputs.cameras, "soft").images
    torch.testing.assert_close(out.loss_cross, (rendered - wanted).square().mean())
    # equation 7, with the config's weights
    torch.testing.assert_close(out.loss, out.loss_3d + 0.5 * out.loss_2d + 2.0 * out.loss_cross)


def test_a_perfect_prediction_costs_nothing():
    model = micro_model(group_scale=5.0).eval()
    inputs = model.prepare(*batch(model.config))
    latent = model.encode_visible(inputs)
    groups = take(inputs.groups, inputs.mask_3d.ids_hidden) * 5.0
    patches = take(patches_of(inputs.images), inputs.mask_2d.ids_hidden)
    out = model.reconstruction(groups, patches, latent, inputs)
    assert (out.loss_3d.item(), out.loss_2d.item()) == (0, 0)
    assert out.loss_cross.item() < 1e-9  # group_scale is multiplied and divided out again


def test_patches_and_images_are_inverse():
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(image_of(patches_of(images), 3), images)
    assert torch.equal(patches_of(images)[0, 5].view(3, 16, 16), images[0, :, 16:32, 16:32])


# ---- what the encoder may see ----


@BATCH_SIZES
def test_hidden_tokens_do_not_reach_the_encoder(size, monkeypatch):
    """Noise in the hidden tokens, after the embedding, changes no bit of the encoder's output."""
    model = micro_model().eval()
    inputs = model.prepare(*batch(model.config, size))
    before = model.encode_visible(inputs)

    def disturbed(embed: nn.Module, mask) -> Callable[..., Tensor]:
        original = embed.forward

        def forward(*args):
            tokens = original(*args)
            return torch.where(visible_flags(mask)[..., None], tokens, 1e3 * torch.randn_like(tokens))

        return forward

    monkeypatch.setattr(model.point_embed, "forward", disturbed(model.point_embed, inputs.mask_3d))
    monkeypatch.setattr(model.depth_embed, "forward", disturbed(model.depth_embed, inputs.mask_2d))
    after = model.encode_visible(inputs)
    assert torch.equal(before.tokens_3d, after.tokens_3d) and torch.equal(before.tokens_2d, after.tokens_2d)


def change_hidden(model: JointMAE, inputs, noise: float = 0.05):
    """The same centres and masks, with all hidden points that are no centre moved, and all hidden pixels changed."""
    visible = visible_flags(inputs.mask_3d)
    _, owner = ops.knn(inputs.points, inputs.geometry.centers, 1)
    movable = ~visible.gather(1, owner[..., 0])
    fine_ids = ops.farthest_point_sample(inputs.points, model.config.num_centers[0])
    movable = movable.scatter(1, fine_ids, False)
    generator = torch.Generator().manual_seed(0)
    moved = inputs.points + noise * torch.randn(inputs.points.shape, generator=generator)
    points = torch.where(movable[..., None], moved, inputs.points)
    # a moved point must stay nearest to a hidden centre, or it would be a visible one
    _, new_owner = ops.knn(points, inputs.geometry.centers, 1)
    stays = ~visible.gather(1, new_owner[..., 0])
    points = torch.where((movable & stays)[..., None], points, inputs.points)
    assert not torch.equal(points, inputs.points)
    patches = patches_of(inputs.images)
    hidden = ~visible_flags(inputs.mask_2d)
    patches = torch.where(hidden[..., None], torch.rand(patches.shape, generator=generator), patches)
    geometry = inputs.geometry
    _, fine_neighbors = ops.knn(geometry.fine_centers, points, geometry.fine_neighbors.shape[2])
    geometry = geometry._replace(fine_neighbors=fine_neighbors)
    return inputs._replace(points=points, images=image_of(patches, 1), geometry=geometry)


@BATCH_SIZES
@pytest.mark.parametrize("point_norm", ["layer", "batch"])
def test_without_leaks_hidden_points_and_pixels_do_not_reach_the_encoder(size, point_norm):
    model = micro_model(no_leak_3d=True, no_leak_2d=True, point_norm=point_norm).eval()
    inputs = model.prepare(*batch(model.config, size))
    before, after = model.encode_visible(inputs), model.encode_visible(change_hidden(model, inputs))
    assert torch.equal(before.tokens_3d, after.tokens_3d) and torch.equal(before.tokens_2d, after.tokens_2d)


def test_the_defaults_leak_is_there_and_measured(record_property):
    """The paper embeds before it masks: overlapping groups and 28-pixel receptive fields let hidden content through."""
    model = micro_model().eval()
    inputs = model.prepare(*batch(model.config))
    before, after = model.encode_visible(inputs), model.encode_visible(change_hidden(model, inputs))
    for name, b, a in zip(("3d", "2d"), before, after, strict=True):
        leak = ((b - a).norm() / b.norm()).item()
        record_property(f"relative change of visible {name} tokens when hidden input changes", leak)
        print(f"leak {name}: {leak:.3f}")
        assert leak > 1e-4


def test_with_the_encoder_off_decoders_know_positions_alone():
    """Clouds that differ, at the same centres and with the same masks, are then predicted alike."""
    points, up, draws = batch(micro_config())
    for off in (False, True):
        model = micro_model(encoder_off=off).eval()
        inputs = model.prepare(points, up, draws)
        latent = model.encode_visible(inputs)
        once, again = (
            model.reconstruct(latent, inputs),
            model.reconstruct(latent._replace(tokens_3d=-latent[0]), inputs),
        )
        assert torch.equal(once.pred_groups, again.pred_groups) == off
    moved = without_encoder(micro_model().eval(), micro_model().eval()(points, up, draws))
    assert torch.isfinite(moved.loss_3d) and moved.latent.tokens_3d.flatten(0, 1).unique(dim=0).shape[0] == 1


def test_no_leak_neighbourhoods_hold_only_visible_points():
    model = micro_model()
    inputs = model.prepare(*batch(model.config))
    visible = visible_flags(inputs.mask_3d)
    geometry = hide_points(inputs.points, inputs.geometry, visible)
    _, owner = ops.knn(inputs.points, geometry.centers, 1)
    point_visible = visible.gather(1, owner[..., 0])
    _, owner = ops.knn(geometry.fine_centers, geometry.centers, 1)
    fine_visible = visible.gather(1, owner[..., 0])
    for b in range(3):
        fine = geometry.fine_neighbors[b][fine_visible[b]]
        assert point_visible[b][fine].all()
        assert fine_visible[b][geometry.neighbors[b][visible[b]]].all()


# ---- training ----


@pytest.mark.parametrize("name", ["loss_3d", "loss_2d", "loss_cross"])
@BATCH_SIZES
def test_each_loss_alone_goes_down_on_one_batch(name, size):
    model = micro_model(drop_path=0.0)
    points, up, draws = batch(model.config, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(25):
        loss = getattr(model(points, up, draws), name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0], history


@BATCH_SIZES
def test_gradients_reach_x_y_and_z_of_predicted_points(size):
    """Equation 6 through the soft projection, against finite differences, where no point is near a pixel border."""
    # many points a pixel, so that most are not the nearest one anywhere
    model = micro_model(num_target_neighbors=64, image_size=32, footprint_radius=1).double().eval()
    points, up, draws = batch(model.config, size)
    inputs = model.prepare(points.double(), up.double(), draws)
    groups = take(inputs.groups, inputs.mask_3d.ids_hidden)
    generator = torch.Generator().manual_seed(1)
    pred = (groups + 0.02 * torch.randn(groups.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    loss = model._cross_loss(pred, inputs)
    (gradient,) = torch.autograd.grad(loss, pred)
    nearest = set(render(model, model.join_groups(pred.detach(), inputs), inputs).index[0].unique().tolist())
    step, checked = 1e-6, [0, 0, 0]
    with torch.no_grad():
        for index in range(0, pred[0].numel() // 3, 3):
            m, j = divmod(index, pred.shape[2])
            # the nearest point of a pixel also sets zmin, which the gradient holds constant
            if index in nearest or not far_from_borders(model, pred, inputs, m, j):
                continue
            for axis in range(3):
                shift = torch.zeros_like(pred)
                shift[0, m, j, axis] = step
                difference = model._cross_loss(pred + shift, inputs) - model._cross_loss(pred - shift, inputs)
                expected = gradient[0, m, j, axis].item()
                assert (difference / (2 * step)).item() == pytest.approx(expected, rel=2e-3, abs=1e-8)
                checked[axis] += abs(expected) > 1e-7
    assert min(checked) >= 2, checked


def render(model: JointMAE, points: Tensor, inputs) -> ops.Projection:
    config = model.config
    size = (config.image_size, config.image_size)
    matrix = intrinsics(config, points.device).to(points.dtype)
    return ops.project_points(points, inputs.cameras, matrix, size, radius=config.footprint_radius, mode="soft")


def far_from_borders(model: JointMAE, pred: Tensor, inputs, m: int, j: int) -> bool:
    """Whether the footprint of point j of hidden group m stays the same under tiny moves, in all views."""
    center = take(inputs.geometry.centers, inputs.mask_3d.ids_hidden)[0, m]
    world = pred[0, m, j].detach() + center
    camera = inputs.cameras[0, :, :, :3] @ world + inputs.cameras[0, :, :, 3]  # [V, 3]
    half = model.config.image_size / 2
    focal = half * math.sqrt(model.config.camera_distance**2 - 1)
    position = focal * camera[:, :2] / camera[:, 2:] + half
    return bool(((position - position.floor() - 0.5).abs() < 0.4).all())


def test_drop_path_acts_in_training_only_and_by_its_numbers():
    model = micro_model(drop_path=0.5)
    points, up, draws = batch(model.config)
    keep_all = draws._replace(drop_path=torch.ones_like(draws.drop_path))
    trained, again = model.train()(points, up, draws), model(points, up, draws)
    assert torch.equal(trained.loss, again.loss)
    assert not torch.equal(trained.loss, model(points, up, keep_all).loss)
    assert torch.equal(model.eval()(points, up, draws).loss, model(points, up, keep_all).loss)


def test_the_3d_baseline_has_no_trace_of_2d():
    model = micro_model(modality="3d")
    assert not [name for name, _ in model.named_parameters() if "depth" in name or "2d" in name or "pixel" in name]
    out = model(*batch(model.config))
    assert out.loss_2d.item() == out.loss_cross.item() == 0
    assert torch.equal(out.loss, out.loss_3d)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"hierarchy_3d": False},
        {"hierarchy_2d": False},
        {"shared_decoder": False},
        {"attention_2d_to_3d": "global", "attention_3d_to_2d": "global"},
        {"cross_views": 0},
        {"cross_views": 1},
        {"color_render": True},
        {"cross_mode": "zbuffer"},
        {"cross_mode": "harmonic", "depth_mode": "harmonic"},
        {"cross_points": "hidden", "cross_target": "points"},
        {"views": "fixed6"},
        {"views": "fixed10"},
        {"mask_coupling": "aligned"},
        {"mask_coupling": "complement"},
        {"no_leak_3d": True, "no_leak_2d": True},
        {"decoder_attention": "local"},
        {"modality_token_in_decoder": True},
        {"position_2d": "learned"},
        {"position_every_block": False},
        {"normalize_patches": True},
        {"smooth_depth": True},
        {"align_cells": 2},
        {"center_ratio": True, "num_points": 512},
        {"point_norm": "batch"},
        {"num_target_neighbors": 16},
        {"normalize_input": False},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
def test_every_open_choice_trains(changes):
    """Each option gives finite losses, other losses than the default, and a gradient to every parameter."""
    model, default = micro_model(**changes), micro_model()
    points, up, draws = batch(model.config)
    out = model(points, up, draws)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []
    acts_later = ({"normalize_input": False}, {"position_2d": "learned"})  # in the augmentation; once it has learned
    if changes not in acts_later:
        assert out.loss.item() != default(*batch(default.config)).loss.item()


# ---- downstream ----


@pytest.mark.filterwarnings("ignore:encode")
@pytest.mark.parametrize("num_points", [32, 100, 256, 300])
def test_encode_any_cloud(num_points):
    model = micro_model().eval()
    points = load_points(num_points)
    features = model.encode(points)
    assert features.tokens.shape == (2, 16, 24) and features.centers.shape == (2, 16, 3)
    assert torch.equal(features.pooled, torch.cat([features.tokens.mean(1), features.tokens.amax(1)], dim=1))
    moved = model.encode(5 * points + 3)
    torch.testing.assert_close(moved.pooled, features.pooled, rtol=1e-3, atol=1e-4)  # scale and place do not matter
    alone = model.encode(points[:1])
    torch.testing.assert_close(alone.pooled, features.pooled[:1])


def load_points(num_points: int) -> Tensor:
    return furniture().first(num_points).points[:2]


def test_encode_warns_far_from_its_density():
    with pytest.warns(UserWarning, match="trained on 256 points a cloud, these have 32"):
        micro_model().eval().encode(load_points(32))


@pytest.mark.filterwarnings("ignore:encode")
@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(2, 31, 3), r"at least 32 points, got 31"),
        (torch.zeros(64, 3), r"must have shape \[B, N, 3\], got \[64, 3\]"),
        (torch.full((1, 64, 3), torch.nan), "finite"),
    ],
)
def test_encode_refuses_what_is_no_cloud(points, message):
    with pytest.raises(ValueError, match=message):
        micro_model().eval().encode(points)


def test_save_and_load(tmp_path):
    model = micro_model(seed=3).eval()
    model.save_pretrained(tmp_path / "model")
    again = JointMAE.from_pretrained(tmp_path / "model")
    points = load_points(256)
    assert torch.equal(again.encode(points).pooled, model.encode(points).pooled)
    assert again.config == model.config


def test_the_file_that_is_named_is_the_one_loaded(tmp_path):
    step = tmp_path / "checkpoints" / "step-7"
    step.mkdir(parents=True)
    micro_model(seed=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(step / "model.safetensors")
    micro_model(seed=0).save_pretrained(tmp_path)
    for path, seed in ((tmp_path, 0), (tmp_path / "model.safetensors", 0), (step / "model.safetensors", 1), (step, 1)):
        loaded = JointMAE.from_pretrained(path)
        assert torch.equal(loaded.point_embed.lift.weight, micro_model(seed=seed).point_embed.lift.weight)
    with pytest.raises(CheckpointError, match="missing.safetensors"):
        JointMAE.from_pretrained(tmp_path / "missing.safetensors")


def test_a_config_that_no_model_can_have_is_refused(tmp_path):
    micro_model().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_heads": 2', '"num_heads": 5'))
    with pytest.raises(CheckpointError, match="--num-heads must be a divisor of the width 24, got 5"):
        JointMAE.from_pretrained(tmp_path)


def test_encode_wants_a_tensor():
    with pytest.raises(TypeError, match="points must be a tensor, got ndarray"):
        micro_model().encode(torch.zeros(1, 64, 3).numpy())


def test_presets_are_valid_and_distinct():
    from jointmae.limits import require_valid

    sizes = []
    for name in PRESETS:
        config = train_config(name)
        require_valid(config)
        sizes.append(sum(p.numel() for p in JointMAE(config.model).parameters()))
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_the_trivial_group_is_trivial_and_no_worse_than_the_mean():
    groups = 0.1 * torch.randn(64, 8, 3, generator=torch.Generator().manual_seed(0))
    patch, loss = model_losses.best_constant_patch(groups)
    assert patch.shape == (8, 3)
    collapsed = ops.chamfer_distance(torch.zeros_like(groups), groups).item()
    assert 0 < loss < collapsed


def test_a_step_takes_no_numbers_from_the_host():
    """On a GPU that would wait for all that it has been asked before."""
    model = micro_model()
    points, up, draws = batch(model.config)
    taken = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.lift_fresh.default:  # what torch.tensor and new_tensor end in
                taken.append("".join(traceback.format_stack(limit=8)))
            return func(*args, **(kwargs or {}))

    with Log():
        draw(model.config, 0, 0, torch.arange(3))
        model(points, up, draws).loss.backward()
    assert not taken, taken[0]


def test_defaults_are_the_papers():
    config = micro_config()
    assert (ModelConfig().mask_ratio, config.attention_2d_to_3d, config.attention_3d_to_2d) == (0.75, "local", "local")
