"""The base text-to-video model: autoencoder, text, training in two phases, export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modules.base.config import BaseConfig, BaseNetworkConfig
from modules.base.module import BaseModule
from modules.base.network import SUMS_FILE, BaseNetwork, check_sums, network_config
from modules.checkpoint import WEIGHTS_FILE, load_frozen
from modules.controlnet.config import ClockConfig
from modules.controlnet.data import Encode, collate
from modules.controlnet.diffusion import draw_timesteps, drop_captions, fixed_noise
from modules.errors import UserError
from modules.optim import OptimConfig
from modules.pose.scene import Clip, Scene
from modules.pose.video import encode_video
from tests.unit.test_unet import TINY, tiny_base


def numbered_video(frames: int, size: int = 16) -> bytes:
    """Frame i has the grey level 3 * i."""
    grey = np.arange(frames, dtype=np.uint8) * 3
    return encode_video(np.broadcast_to(grey[:, None, None, None], (frames, size, size, 3)), 30, True, crf=0)


@pytest.fixture
def clip(make_scene: Any) -> Clip:
    scene: Scene = make_scene(frames=60, width=16, height=16)
    return Clip("clip", scene, "Two people wave.", video=numbered_video(80), start=20)


def make_encode(frames: int = 4, **clock: int) -> Encode:
    return Encode(
        width=16, height=16, num_frames=frames, clock=ClockConfig(**clock), with_hint=True, with_mask="always"
    )


def numbers(item: dict[str, Any]) -> list[int]:
    return (item["frames"].mean((1, 2, 3)) / 3).round().astype(int).tolist()


def test_frames_are_those_of_the_crop(clip: Clip) -> None:
    (item,) = make_encode(val_stride=5)(clip, np.random.default_rng(0), False)
    assert numbers(item) == [20, 25, 30, 35]
    assert item["fps"] == 6.0
    assert item["hint"].shape == (4, 16, 16, 3)
    assert item["figure"].shape == (4, 16, 16)


def test_training_windows_vary_within_the_crop(clip: Clip) -> None:
    encode, rng = make_encode(), np.random.default_rng(0)
    seen = [numbers(encode(clip, rng, True)[0]) for _ in range(40)]
    strides = {b - a for window in seen for a, b in zip(window, window[1:], strict=False)}
    assert strides == set(range(2, 9))
    assert all(20 <= number < 80 for window in seen for number in window)
    kept = make_encode(windows=2)
    assert len({tuple(numbers(kept(clip, rng, True)[0])) for _ in range(20)}) == 2


def test_a_short_clip_holds_its_last_frame(clip: Clip) -> None:
    short = dataclasses.replace(clip, scene=clip.scene.crop(0, 3))
    (item,) = make_encode(frames=6)(short, np.random.default_rng(0), False)
    assert numbers(item) == [20, 21, 22, 22, 22, 22]


def test_a_clip_without_video_says_what_to_do(clip: Clip) -> None:
    with pytest.raises(UserError, match="clip clip has no video"):
        make_encode()(dataclasses.replace(clip, video=None), np.random.default_rng(0), False)


def test_collate_gives_the_contract(clip: Clip) -> None:
    batch = collate([make_encode()(clip, np.random.default_rng(0), False)[0]] * 2)
    assert batch["frames"].shape == batch["hint"].shape == (2, 4, 3, 16, 16)
    assert batch["frames"].min() >= -1
    assert 0 <= batch["hint"].min() <= batch["hint"].max() <= 1
    assert batch["captions"] == ["Two people wave."] * 2
    assert batch["fps"].tolist() == [7.5, 7.5]


def test_text_states_do_not_depend_on_the_batch() -> None:
    base = tiny_base()
    with torch.no_grad():
        alone = base.encode_text(["two people"])
        together = base.encode_text(["a person walks to the left", "two people"])
    assert alone.shape == (1, 12, 16)
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)


def test_latents_are_normalised_and_back() -> None:
    base = tiny_base()
    base.latent_shift.normal_()
    base.latent_scale.uniform_(0.5, 2)
    raw = torch.randn(3, 5, 4, 2, 2)
    torch.testing.assert_close(base.normalise(base.normalise(raw), inverse=True), raw)
    frames = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    latents = base.encode_frames(frames)
    assert latents.shape == (2, 4, 3, 4, 4)
    torch.testing.assert_close(latents[1, :, 2], base.encode_frames(frames[1:, 2:])[0, :, 0], atol=1e-5, rtol=1e-5)
    assert base.decode_latents(latents).shape == frames.shape


def test_timesteps_noise_and_dropped_captions() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([draw_timesteps(8, 1000, 1.0) for _ in range(50)])
    assert ((drawn.sort(1).values // 125) == torch.arange(8)).all()  # one in each eighth
    assert drawn.float().mean() < torch.stack([draw_timesteps(8, 1000, 2.0) for _ in range(50)]).float().mean() - 100
    first, second = (
        fixed_noise((4, 1, 2), 1000, 7, torch.device("cpu")),
        fixed_noise((4, 1, 2), 1000, 7, torch.device("cpu")),
    )
    assert torch.equal(first[1], second[1])
    assert first[0].tolist() == [125, 375, 625, 875]
    assert drop_captions(["a"] * 4, 1.0) == [""] * 4
    assert drop_captions(["a"] * 4, 0.0) == ["a"] * 4


def tiny_config(**changes: Any) -> dict[str, Any]:
    config = BaseConfig(network=network_config(TINY), vae_steps=3, vae_frames=4, sampling_steps=2)  # pyright: ignore
    return dataclasses.asdict(dataclasses.replace(config, **changes))


@pytest.fixture
def batches(clip: Clip) -> DataLoader[Any]:
    items = [item for seed in range(4) for item in make_encode()(clip, np.random.default_rng(seed), True)]
    return DataLoader(items, batch_size=2, collate_fn=collate)  # pyright: ignore[reportArgumentType]


def fit(module: BaseModule, batches: DataLoader[Any], steps: int) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, batches, batches)
    return trainer


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_each_phase_trains_its_own_part(batches: DataLoader[Any], clip: Clip) -> None:
    module = BaseModule(tiny_config(), max_steps=6)
    module.setup_data(lambda: [clip])
    before = snapshot(module.network)
    fit(module, batches, 3)
    middle = snapshot(module.network)
    moved = {name for name in before if not torch.equal(before[name], middle[name])}
    assert {name.split(".")[0] for name in moved} == {"vae", "latent_shift", "latent_scale"}
    latents = module.network.encode_frames(next(iter(batches))["frames"])
    assert latents.std() < 3

    module = BaseModule(tiny_config(vae_steps=0, short_share=0.5, short_frames=2, long_clips=1), max_steps=4)
    module.setup_data(lambda: [clip])
    before = snapshot(module.network)
    trainer = fit(module, batches, 4)
    after = snapshot(module.network)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"unet", "text"}
    assert "val/loss" in trainer.callback_metrics
    shown = module.sample_videos(next(iter(batches)))["truth_reconstruction_generated"]
    assert shown.dtype == np.uint8
    assert shown.shape[:2] == (4, 48)


def test_hints_help_the_training_and_are_no_part_of_the_export(
    batches: DataLoader[Any], clip: Clip, tmp_path: Path
) -> None:
    config = tiny_config(vae_steps=0, hint_share=0.5, figure_weight=2.0, short_share=1.0, short_frames=2)
    module = BaseModule(config, max_steps=3)
    module.setup_data(lambda: [clip])
    batch, plain = next(iter(batches)), tiny_config(vae_steps=0)
    torch.manual_seed(0)
    found = [module._hints(batch) for _ in range(8)]
    shown = torch.stack([hints["extra"].flatten(1).any(1).unflatten(0, (2, -1)) for hints in found])  # (8, B, F)
    assert shown.any()
    assert not shown.all()
    assert (shown == shown[..., :1]).all()  # all frames of a clip or none
    weighted = torch.stack([hints["weight"].flatten(1).std(1) > 0 for hints in found])  # (8, B)
    assert torch.equal(weighted, shown[..., 0])
    assert BaseModule(plain, max_steps=1)._hints(batch) == {}
    before = snapshot(module.scaffold)
    fit(module, batches, 3)
    assert not torch.equal(before["weight"], module.scaffold.weight)  # pyright: ignore[reportArgumentType]
    module.export(tmp_path / "base", {"step": 3})
    assert set(load_frozen(tmp_path / "base", "base").state_dict()) == set(module.network.state_dict())


def test_export_is_small_checked_and_the_same_network(tmp_path: Path) -> None:
    module = BaseModule(tiny_config(), max_steps=6)
    module.network.text.fit_vocabulary(["two people wave"])
    module.export(tmp_path / "base", {"step": 6})
    stored = json.loads((tmp_path / "base/export.json").read_text())
    assert stored["stage"] == "base"
    loaded = load_frozen(tmp_path / "base", "base")
    assert isinstance(loaded, BaseNetwork)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in module.network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=2e-3, rtol=2e-3)

    weights = tmp_path / "base" / WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="differs from its checksum"):
        load_frozen(tmp_path / "base", "base")
    weights.unlink()
    with pytest.raises(UserError, match="no model.safetensors.*make train-base"):
        load_frozen(tmp_path / "base", "base")
    with pytest.raises(UserError, match="make train-base"):
        load_frozen(tmp_path / "absent", "base")


def test_missing_file_of_the_checksums(tmp_path: Path) -> None:
    (tmp_path / SUMS_FILE).write_text("0  model.safetensors\n")
    with pytest.raises(UserError, match="is missing"):
        check_sums(tmp_path)


def test_bad_values() -> None:
    with pytest.raises(UserError, match="multiples of the autoencoder's factor 8"):
        BaseNetworkConfig(width=100)
    with pytest.raises(UserError, match="caption_dropout is 2"):
        BaseConfig(caption_dropout=2)
    with pytest.raises(UserError, match="set hint_share above 0"):
        BaseConfig(figure_weight=1)


def test_shipped_base() -> None:
    """What is in the repository: at most 12 MB, checked, and loadable."""
    folder = Path(__file__).parents[2] / "assets/demo_base"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12e6
    assert (folder / SUMS_FILE).is_file()
    base = load_frozen(folder, "base")
    assert isinstance(base, BaseNetwork)
    assert base.config.num_frames == 8


def test_videocrafter2_shape_is_that_of_the_paper_config() -> None:
    folder = Path(__file__).parents[2] / "assets/videocrafter2"
    with torch.device("meta"):
        base = load_frozen(folder, "base")
    assert isinstance(base, BaseNetwork)
    assert len(base.unet.state_dict()) == 1484
    assert (base.config.num_frames, base.config.height, base.config.width) == (16, 320, 512)


def test_each_phase_has_its_learning_rate() -> None:
    vae, rest = OptimConfig(lr=2e-3, warmup_steps=5), OptimConfig(lr=1e-3, warmup_steps=4)
    module = BaseModule(tiny_config(vae_steps=20, vae_optim=vae, optim=rest), max_steps=60)
    built = module.configure_optimizers()
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(60):
        rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]))
        optimizer.step()
        scheduler.step()
    first, second = (list(rate) for rate in zip(*rates, strict=True))
    assert max(first) == first[5] == 2e-3
    assert max(second) == second[24] == 1e-3
    assert set(first[20:]) == set(second[:20]) == {0.0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.network.parameters()))
