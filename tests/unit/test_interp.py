"""The interpolator: windows, splines, noise, locality of edits, loss masks, training, export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from modules.checkpoint import load_frozen
from modules.errors import UserError
from modules.interp.config import InterpConfig, NetworkConfig, SamplingConfig
from modules.interp.data import collate, person_item
from modules.interp.losses import spread_loss, velocity
from modules.interp.module import InterpModule
from modules.interp.network import InterpNetwork, preconditioning
from modules.interp.noise import draw_noise, draw_window_noise, noise_schedule
from modules.interp.sampler import make_solver, sample
from modules.interp.splines import clip_spline, fill_keys, window_spline
from modules.interp.windows import Windows, blend_windows, cut_windows, gather_frames
from modules.pose.scene import Clip, Scene, make_person
from modules.text import TextConfig

FPS, J = 30.0, 18


def motion(length: int, seed: int = 0, people: int = 1, hidden: float = 0.1) -> Clip:
    """Smooth motion of 18 joints on a canvas of 64 x 64 px."""
    rng = np.random.default_rng(seed)
    times = np.arange(length) / FPS
    persons = []
    for _ in range(people):
        phase, speed = rng.uniform(0, 6, (J, 2)), rng.uniform(0.5, 6, (J, 2))
        joints = rng.uniform(20, 44, (J, 2)) + 8 * np.sin(times[:, None, None] * speed + phase)
        visible = np.repeat(rng.random((-(-length // 15), J)) > hidden, 15, axis=0)[:length]
        visible[0] = True
        persons.append(make_person(joints.astype(np.float32), visible, 64, 64))
    scene = Scene(64, 64, FPS, times, persons, "A person waves.")
    return Clip(f"clip{seed}", scene, "A person waves.")


def batch_of(lengths: list[int], stride: int = 10) -> dict[str, Any]:
    clips = [motion(length, seed) for seed, length in enumerate(lengths)]
    return collate([person_item(clip.scene.persons[0], stride, FPS, clip.caption) for clip in clips])


def keys_of(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return batch["keys"], batch["key_visibility"], batch["key_mask"], batch["key_times"]


def windows_of(batch: dict[str, Any]) -> Windows:
    return cut_windows(*keys_of(batch), batch["poses"].shape[1], FPS)


def tiny(**changes: Any) -> NetworkConfig:
    return NetworkConfig(width=16, layers=2, heads=2, text=TextConfig(width=8, layers=1, heads=1), **changes)


def network_of(seed: int = 0, **changes: Any) -> InterpNetwork:
    """A network with random weights in every layer, so that everything it sees matters."""
    torch.manual_seed(seed)
    network = InterpNetwork.from_config(tiny(**changes)).eval()
    network.text.fit_vocabulary(["A person waves.", "A man jumps."])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def run(
    network: InterpNetwork, batch: dict[str, Any], frames: int | None = None, seed: int = 0, **settings: Any
) -> Tensor:
    settings = {"steps": 3} | settings
    return sample(
        network, *keys_of(batch), frames or batch["poses"].shape[1], batch["captions"],
        sampling=SamplingConfig(**settings), generator=torch.Generator().manual_seed(seed),
    ).joints  # fmt: skip


@pytest.mark.parametrize("stride", [5, 10, 15, 30])
def test_windows_put_a_clip_together_again(stride: int) -> None:
    batch = batch_of([61, 93, 8], stride)
    windows = windows_of(batch)
    again = blend_windows(windows, gather_frames(windows, batch["poses"]), 3, 93)
    for i, length in enumerate([61, 93, 8]):
        # A clip with one key reaches a third of a second beyond it, others one segment.
        torch.testing.assert_close(again[i, :length], batch["poses"][i, :length], atol=1e-5, rtol=0)
    weights = blend_windows(windows, torch.ones_like(windows.times), 3, 93)
    torch.testing.assert_close(weights, torch.ones(3, 93))


def test_irregular_key_times_off_the_frame_grid() -> None:
    times = torch.tensor([[0.05, 0.31, 0.92, 1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    windows = cut_windows(torch.zeros(1, 5, J, 2), mask[..., None].expand(-1, -1, J), mask, times, 40, FPS)
    assert len(windows.clip) == 4
    torch.testing.assert_close(blend_windows(windows, torch.ones_like(windows.times), 1, 40), torch.ones(1, 40))
    middle = windows.select(torch.tensor([1])).trim()
    shown = middle.frames[middle.frame_mask] / FPS
    assert shown.min() >= 0.05
    assert shown.max() <= 0.92
    assert (middle.gap[0, :6] == 0.31 - 0.05).all()


def test_groups_of_similar_length_hold_every_window_once() -> None:
    windows = windows_of(batch_of([61, 93, 8]))
    groups = windows.by_length()
    assert sum(len(group.clip) for group in groups) == len(windows.clip)
    assert sum(int(group.frame_mask.sum()) for group in groups) == int(windows.frame_mask.sum())


def test_window_spline_against_scipy() -> None:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(50, 3, J, 2)).astype(np.float32)
    key_times = np.array([-0.2, 0.0, 0.5], np.float32)
    times = np.linspace(-0.2, 0.5, 20).astype(np.float32)
    spread = torch.tensor(key_times).expand(50, 3)
    filled = fill_keys(torch.from_numpy(keys), torch.ones(50, 3, J, dtype=torch.bool), spread)
    ours = window_spline(filled, spread, torch.tensor(times).expand(50, 20), "pchip")
    theirs = PchipInterpolator(key_times, keys, axis=1)(times)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-6)


def test_unseen_joints_are_filled_in_from_the_keys_that_show_them() -> None:
    keys = torch.tensor([[0.0, 9.0, 4.0]])[..., None, None].expand(1, 3, 4, 2)
    visible = torch.tensor([[[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]]], dtype=torch.bool)
    filled = fill_keys(keys, visible, torch.tensor([[-1.0, 0.0, 3.0]]))
    assert filled.joints[0, :, :, 0].T.tolist() == [[0, 1, 4], [9, 9, 9], [0, 9, 9], [0, 0, 0]]
    assert filled.anchored[0].tolist() == [True, True, True, False]
    assert filled.left_known[0].tolist() == [False, False, True, False]


def test_clip_spline_skips_keys_that_do_not_show_a_joint() -> None:
    keys = np.array([0.0, 100.0, 4.0, 6.0])[:, None, None].repeat(2, 2)
    seen = np.array([True, False, True, True])[:, None]
    found = clip_spline(keys, seen, np.array([0.0, 1, 2, 3]), np.array([1.0, 2.5, 9]), "linear")
    assert found[:, 0, 0].tolist() == [2, 5, 6]


def test_residual_coding_has_an_inverse_and_unit_variance_after_the_fit() -> None:
    batch = batch_of([120] * 6)
    network, windows = network_of(), windows_of(batch)
    poses, visible = gather_frames(windows, batch["poses"]), gather_frames(windows, batch["visibility"])
    network.fit_scale(windows, poses, visible)
    base = network.base(windows)
    code = base.encode(poses)
    torch.testing.assert_close(base.decode(code), poses, atol=1e-5, rtol=1e-4)
    for where in (base.between, ~base.between):
        counted = where & visible & windows.frame_mask[..., None] & base.anchored[:, None]
        assert 0.7 < code[counted].std() < 1.4


def test_edit_of_a_key_stays_between_its_second_neighbours() -> None:
    batch = batch_of([200, 200])
    network = network_of()
    before = run(network, batch)
    edited = batch | {"keys": batch["keys"].clone(), "key_visibility": batch["key_visibility"].clone()}
    edited["keys"][0, 7] += 0.3
    edited["key_visibility"][0, 7, :3] ^= True
    after = run(network, edited)
    changed = (before != after).any(-1).any(-1)
    assert not changed[1].any()
    assert not changed[0, : 5 * 10 + 1].any()
    assert not changed[0, 9 * 10 :].any()
    assert changed[0, 61:80].all()


def test_same_seed_same_motion_and_windows_at_a_time_do_not_matter() -> None:
    batch, network = batch_of([90, 61]), network_of()
    first, again, other = (run(network, batch, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    few = sample(
        network, *keys_of(batch), 90, batch["captions"], sampling=SamplingConfig(steps=3),
        generator=torch.Generator().manual_seed(1), max_windows=3,
    ).joints  # fmt: skip
    torch.testing.assert_close(few, first, atol=1e-4, rtol=1e-4)


def test_keys_are_met_without_a_jump_beside_them() -> None:
    batch, network = batch_of([101]), network_of()
    seen = batch["key_visibility"][0]
    free, kept = (run(network, batch, keep_keys=value)[0] for value in (0.0, 1.0))
    torch.testing.assert_close(kept[::10][seen], batch["keys"][0][seen], atol=1e-5, rtol=0)
    assert (free[::10][seen] - batch["keys"][0][seen]).abs().max() > 1e-3
    shift = (kept - free)[:, seen.all(0)]
    smooth = (shift[2:] - 2 * shift[1:-1] + shift[:-2]).abs().max()
    assert smooth < 0.2 * shift.abs().max()


def test_the_error_of_the_keys_is_heard() -> None:
    batch, network = batch_of([60]), network_of()
    settings: dict[str, Any] = {"temperature": 0.0, "keep_keys": 0.0}
    assert not torch.equal(run(network, batch, key_error=0.05, **settings), run(network, batch, **settings))


def test_beyond_the_last_key_the_spline_goes_on_whatever_is_drawn() -> None:
    batch, network = batch_of([48]), network_of()  # the last key is frame 40
    first, second = (run(network, batch, seed=seed) for seed in (0, 1))
    differs = (first != second).flatten(2).any(2)[0]
    assert differs[31:40].all()
    assert not differs[40:].any()


def test_frames_beyond_the_last_key_are_finite_and_then_held() -> None:
    batch, network = batch_of([31]), network_of()
    dense = run(network, batch, frames=80)
    assert dense.isfinite().all()
    assert (dense[0, 41:] == dense[0, 40]).all()
    assert not torch.equal(dense[0, 39], dense[0, 40])


@pytest.mark.parametrize("length", [1, 7, 11])
def test_shortest_clips(length: int) -> None:
    assert run(network_of(), batch_of([length])).isfinite().all()


def test_noise_has_unit_variance_is_smooth_and_does_not_see_the_poses() -> None:
    batch = batch_of([200] * 4)
    keys = batch["key_times"], batch["key_mask"]
    noise, again = (draw_noise((4, 200, 50), *keys, FPS, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(noise, again)
    assert 0.9 < noise.std() < 1.1
    assert 0.8 < noise[:, :2].std() < 1.2
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
    assert neighbours > 0.85


def test_jitter_scales_the_quick_part_of_the_noise_alone() -> None:
    batch = batch_of([200] * 4)
    keys = batch["key_times"], batch["key_mask"]
    none, usual, more = (
        draw_noise((4, 200, 50), *keys, FPS, torch.Generator().manual_seed(3), jitter) for jitter in (0.0, 1.0, 3.0)
    )
    jerks = [noise.diff(n=3, dim=1).std() for noise in (none, usual, more)]
    assert jerks[0] < 0.95 * jerks[1] < 0.7 * jerks[2]
    for noise in (none, more):
        assert 0.9 < noise.std() < 1.1
        assert torch.corrcoef(torch.stack([noise.flatten(), usual.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_solvers_end_at_the_clean_sample(name: str, steps: int) -> None:
    solver = make_solver(name, steps)
    assert len(solver.timesteps) == steps
    current, clean = torch.randn(5), torch.arange(5.0)
    for timestep in solver.timesteps:
        current = solver.step(clean, int(timestep), current, return_dict=False)[0]
    torch.testing.assert_close(current, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("architecture", ["attention", "linear"])
def test_conditions_are_dropped_one_by_one(architecture: str) -> None:
    batch, network = batch_of([60]), network_of(architecture=architecture)
    windows = windows_of(batch)
    edited = dataclasses.replace(windows, keys=windows.keys * 1.2, key_visibility=~windows.key_visibility)
    noisy = torch.randn(*windows.times.shape, J, 2)
    count = len(windows.clip)
    steps, yes = torch.full((count,), 500), torch.ones(count, dtype=torch.bool)
    text, other = (network.embed_text([caption]).expand(count, -1) for caption in ("A person waves.", "A man jumps."))

    def predict(windows: Windows, text: Tensor, keys: bool, words: bool) -> Tensor:
        base = network.base(windows)
        conditions = network.condition(windows, base, text, yes & keys, yes & words)
        return network(noisy, steps, windows, conditions).residual

    full = predict(windows, text, True, True)
    assert not torch.equal(full, predict(windows, other, True, True))
    assert not torch.equal(full, predict(edited, text, True, True))
    assert torch.equal(predict(windows, text, True, False), predict(windows, other, True, False))
    assert not torch.equal(predict(windows, text, True, False), predict(edited, text, True, False))
    assert torch.equal(predict(windows, text, False, True), predict(edited, text, False, True))
    assert not torch.equal(predict(windows, text, False, True), predict(windows, other, False, True))


def test_untrained_network_is_the_best_denoiser_of_its_outline() -> None:
    clean, noise = torch.randn(2, 200_000)
    for step in (50, 500, 950):
        noisy = noise_schedule().add_noise(clean, noise, torch.tensor([step]))  # pyright: ignore
        gains = preconditioning(torch.tensor([step]))
        left = (clean - gains.skip.flatten() * noisy) / gains.outward.flatten()
        torch.testing.assert_close(left.std(), torch.tensor(1.0), atol=0.03, rtol=0)
        assert (left * noisy).mean().abs() < 0.03


def test_spread_is_the_unit_and_is_fitted_to_what_is_left() -> None:
    batch, network = batch_of([120] * 4), network_of()
    windows = windows_of(batch)
    poses, spread = gather_frames(windows, batch["poses"]), torch.full((len(windows.clip), J), 2.0)
    plain, wide = network.base(windows), network.base(windows, None, spread)
    torch.testing.assert_close(wide.encode(poses), plain.encode(poses) / 2)
    torch.testing.assert_close(wide.decode(wide.encode(poses)), poses, atol=1e-4, rtol=1e-3)
    # The best spread is the residuals' standard deviation, in whatever unit they are given.
    found = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    residual = 3 * torch.randn(1, 20_000, 1, 2)
    optimizer = torch.optim.Adam([found], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = spread_loss(residual / found.detach(), found, torch.ones(1, 20_000, 1, 1)).value
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(found.detach().flatten(), residual.std()[None], atol=0.3, rtol=0)


def test_both_kinds_of_noise_are_the_same_noise() -> None:
    times, mask = torch.arange(0, 6.0, 1 / 3)[None], torch.ones(1, 18, dtype=torch.bool)
    whole = draw_noise((1, 180, 3000), times, mask, FPS, torch.Generator().manual_seed(0))[0]
    windows = draw_window_noise((300, 21, 50), torch.full((300,), 1 / 3), FPS, torch.Generator().manual_seed(0))
    for lag in (0, 1, 3, 8):
        one = (whole[lag:] * whole[: 180 - lag]).mean()
        torch.testing.assert_close(one, (windows[:, lag:] * windows[:, : 21 - lag]).mean(), atol=0.03, rtol=0)


def test_guidance_changes_the_result_and_scale_one_is_plain_sampling() -> None:
    batch, network = batch_of([60]), network_of()
    assert torch.equal(run(network, batch, guidance_scale=1.0), run(network, batch))
    assert not torch.equal(run(network, batch, guidance_scale=2.0), run(network, batch))


def test_velocity_of_a_still_residual_is_zero() -> None:
    windows = windows_of(batch_of([60]))
    still = torch.randn(len(windows.clip), 1, J, 2).expand(-1, windows.times.shape[1], -1, -1)
    assert (velocity(still, windows) == 0).all()
    swing = torch.sin(torch.pi * windows.phase)[..., None, None]
    full = windows.frame_mask.all(1)
    moved = velocity(swing, windows)[full]
    torch.testing.assert_close(moved.square().mean(), swing[full].square().mean(), rtol=0.15, atol=0)


def module_of(**changes: Any) -> InterpModule:
    torch.manual_seed(0)
    module = InterpModule(InterpConfig(network=tiny(), sampling=SamplingConfig(steps=2), **changes), max_steps=10)
    module.setup_data(lambda: [motion(80, seed, people=2) for seed in range(6)])
    return module


def test_unseen_joints_and_padding_enter_no_loss() -> None:
    module = module_of()
    batch = batch_of([80, 57])
    losses = [module.model_step(b, torch.Generator().manual_seed(0)) for b in (batch, _spoilt(batch))]
    assert losses[0]["loss"] > 0
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], rtol=0, atol=0)


def _spoilt(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with nonsense wherever nothing may be read."""
    poses, keys = batch["poses"].clone(), batch["keys"].clone()
    poses[~batch["visibility"]] = 1e3
    keys[~batch["key_visibility"]] = 1e3
    return batch | {"poses": poses, "keys": keys}


def test_scores_leave_out_keys_padding_and_what_follows_the_last_key() -> None:
    module = module_of()
    batch = batch_of([80, 57])
    found = module.sample(batch, torch.Generator().manual_seed(0))
    scores = module._score(batch, found)
    moved = dataclasses.replace(found, joints=found.joints.clone())
    moved.joints[:, ::10] += 5
    moved.joints[0, 71:] += 5
    moved.joints[1, 51:] += 5
    assert torch.equal(module._score(batch, moved)["mpjpe"].total, scores["mpjpe"].total)
    expected = batch["visibility"][0, :70].sum() - batch["visibility"][0, :70:10].sum()
    expected += batch["visibility"][1, :50].sum() - batch["visibility"][1, :50:10].sum()
    assert scores["mpjpe"].count == expected


def test_noisy_keys_differ_and_clean_ones_do_not() -> None:
    batch = batch_of([80, 57])
    assert torch.equal(module_of()._degrade_keys(batch)["keys"], batch["keys"])
    noisy = module_of(key_noise=0.1, noise_share=1.0)._degrade_keys(batch, torch.Generator().manual_seed(0))
    offset = (noisy["keys"] - batch["keys"]).abs()
    assert 0 < offset[batch["key_visibility"]].mean() < 0.1
    seen = batch["key_visibility"][0]
    error = (noisy["keys"] - batch["keys"])[0][seen].square().sum(-1).mean().sqrt()
    torch.testing.assert_close(noisy["key_error"][0], error)
    assert (offset[~batch["key_visibility"]] == 0).all()


def test_what_is_diffused_starts_from_the_true_keys_however_noisy_those_given(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = module_of(key_noise=0.3, noise_share=1.0), batch_of([81, 61])
    courses, given, losses = list[Tensor](), list[Tensor](), module._losses

    def watch(windows: Windows, seen: dict[str, Any], *more: Any) -> Any:
        courses.append(seen["course"])
        given.append(seen["keys"])
        return losses(windows, seen, *more)

    monkeypatch.setattr(module, "_losses", watch)
    module.model_step(batch, torch.Generator().manual_seed(0))
    clips, keys = batch["key_mask"].nonzero(as_tuple=True)
    visible = batch["key_visibility"][clips, keys]
    at_keys = courses[0][clips, 10 * keys]
    torch.testing.assert_close(at_keys[visible], batch["keys"][clips, keys][visible], rtol=0, atol=1e-5)
    assert (at_keys - given[0][clips, keys])[visible].abs().mean() > 0.01


def test_training_learns_and_exports_the_same_network(tmp_path: Path) -> None:
    module = module_of(strides=[10, 5], windows_per_clip=4)
    optimizer = torch.optim.Adam(module.network.parameters(), lr=3e-3)
    clips = [motion(80, seed) for seed in range(8)]
    rng = np.random.default_rng(0)
    batch = collate([item for clip in clips for item in module.encode(clip, rng, True)])

    def score() -> float:
        with torch.no_grad():
            return float(module.model_step(batch, torch.Generator().manual_seed(5))["loss"])

    start = score()
    for _ in range(40):
        loss = module.model_step(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert score() < 0.9 * start
    assert all(p.grad is not None for p in module.network.parameters())
    module.export(tmp_path / "export", {"step": 40})
    loaded = load_frozen(tmp_path / "export", "interp")
    assert isinstance(loaded, InterpNetwork)
    assert torch.equal(run(loaded, batch_of([50])), run(module.network.eval(), batch_of([50])))


def test_pictures() -> None:
    module = module_of()
    batch = batch_of([25, 30])
    picture, video = module.sample_images(batch)["poses"], module.sample_videos(batch)["poses"]
    assert picture.dtype == video.dtype == np.uint8
    assert video.shape[0] == 25
    assert picture.max() > 0


@pytest.mark.parametrize(("make", "message"), [
    (lambda: NetworkConfig(width=10, heads=4), "multiple of network.heads"),
    (lambda: NetworkConfig(architecture="mixer"), "allowed: attention, linear"),
    (lambda: NetworkConfig(base="cubic"), "allowed: pchip, linear, none"),
    (lambda: SamplingConfig(solver="euler"), "allowed: dpmsolver"),
    (lambda: SamplingConfig(keep_keys=2), "from 0 to 1"),
    (lambda: InterpConfig(strides=[]), "at least one stride"),
    (lambda: InterpConfig(text_drop=-1), "a share from 0 to 1"),
])  # fmt: skip
def test_config_errors(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
