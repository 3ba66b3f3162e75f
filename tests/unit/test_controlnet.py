"""The pose ControlNet: starts at nothing, learns alone, and leaves the base as it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from modules.base.config import BaseConfig
from modules.base.module import BaseModule
from modules.base.network import BaseNetwork, network_config
from modules.checkpoint import load_frozen
from modules.controlnet.config import ControlNetConfig, ControlNetworkConfig, RenderConfig
from modules.controlnet.controlnet import PoseControlNet, control_parameters, skip_channels
from modules.controlnet.module import ControlNetModule
from modules.controlnet.network import PoseRenderer
from modules.controlnet.sampler import Control, Guidance, Predictions, sample, sample_latents, windows
from modules.errors import UserError
from modules.optim import OptimConfig
from modules.pose.scene import Scene
from modules.rendering.pipeline import PoseVideoPipeline
from tests.unit.test_unet import TINY, tiny_base, wake

CONTROL = ControlNetworkConfig(hint_channels=[4, 8, 8])


def tiny_renderer(**changes: Any) -> PoseRenderer:
    base = tiny_base()
    wake(base.unet)
    return PoseRenderer(base, dataclasses.replace(CONTROL, **changes))


def inputs(batch: int = 2, frames: int = 3) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "noisy": torch.randn(batch, 4, frames, 4, 4),
        "timestep": torch.full((batch,), 700),
        "text": torch.randn(batch, 5, 16),
        "fps": torch.full((batch,), 8.0),
        "hint": torch.rand(batch, frames, 3, 16, 16),
    }


@pytest.mark.parametrize("temporal", [True, False])
def test_it_starts_by_changing_nothing(temporal: bool) -> None:
    renderer, values = tiny_renderer(temporal=temporal), inputs()
    with torch.no_grad():
        controlled = renderer.predict(**values)
        assert torch.equal(controlled, renderer.predict(**{**values, "hint": None}))


def test_the_copy_has_the_bases_weights_and_is_its_own() -> None:
    renderer = tiny_renderer()
    copied, source = renderer.control.state_dict(), renderer.base.unet.state_dict()
    shared = [name for name in copied if name in source]
    assert any(name.startswith("mid_block.temp_attentions") for name in shared)
    assert all(torch.equal(copied[name], source[name]) for name in shared)
    assert not {value.data_ptr() for value in copied.values()} & {value.data_ptr() for value in source.values()}
    groups = control_parameters(renderer.control)
    assert {name for name, _ in groups["copied"]} <= set(source)
    assert len(groups["copied"]) + len(groups["fresh"]) == len(list(renderer.control.parameters()))


def test_gradients_arrive_part_by_part() -> None:
    """Zero convolutions at step 0, the copy and the hint's own zero convolution at step 1, the hint at step 2."""
    renderer, values = tiny_renderer(), inputs()
    parts = {
        "zero convs": [*renderer.control.down_zero_convs.parameters(), *renderer.control.mid_zero_conv.parameters()],
        "copy": [renderer.control.down_blocks[0].resnets[0].conv1.weight],  # pyright: ignore
        "hint out": list(renderer.control.hint_encoder.out.parameters()),
        "hint body": [renderer.control.hint_encoder.body[0].weight],
    }
    optimizer = torch.optim.SGD(renderer.control.parameters(), lr=0.5)
    reached: list[set[Any]] = []
    for _ in range(3):
        optimizer.zero_grad()
        (renderer.predict(**values) - 1).square().mean().backward()
        touched = {p for p in renderer.parameters() if p.grad is not None and p.grad.any()}
        reached.append({name for name, params in parts.items() if touched.issuperset(params)})
        optimizer.step()
    assert reached == [{"zero convs"}, {"zero convs", "copy", "hint out"}, set(parts)]


def moving(renderer: PoseRenderer) -> PoseRenderer:
    """With values in all zero convolutions, so that poses count."""
    wake(renderer.control)
    return renderer


def test_scale_and_hint_matter() -> None:
    renderer, values = moving(tiny_renderer()), inputs()
    with torch.no_grad():
        off = renderer.predict(**{**values, "hint": None})
        full, half, none = (renderer.predict(**values, scale=scale) for scale in (1.0, 0.5, 0.0))
        other = renderer.predict(**{**values, "hint": values["hint"].flip(1)})
    assert torch.equal(none, off)
    assert (full - off).abs().max() > (half - off).abs().max() > 0
    assert not torch.allclose(other, full)


def test_without_temporal_layers_a_frame_has_its_own_control() -> None:
    renderer, values = moving(tiny_renderer(temporal=False)), inputs()
    changed = {**values, "hint": values["hint"].clone()}
    changed["hint"][:, 0] = 0

    def residuals(given: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            found = renderer.control(given["noisy"], 700, given["text"], hint=given["hint"], fps=8.0)
        return found.mid.unflatten(0, (2, 3))  # (B, F, C, h, w)

    difference = (residuals(changed) - residuals(values)).abs().amax((2, 3, 4))
    assert (difference[:, 0] > 0).all()
    assert not difference[:, 1:].any()


def test_sizes_must_fit() -> None:
    with pytest.raises(
        UserError, match="1 halvings; the autoencoder of the base makes pictures 4 times smaller: give 3"
    ):
        PoseRenderer(tiny_base(), ControlNetworkConfig(hint_channels=[4, 8]))
    renderer, values = tiny_renderer(), inputs()
    with pytest.raises(ValueError, match=r"the hint of \(8, 8\) px becomes \(2, 2\)"):
        renderer.control(values["noisy"], 1, values["text"], hint=torch.zeros(2, 3, 3, 8, 8))


def test_videocrafter2_control_has_its_size() -> None:
    with torch.device("meta"):
        base = load_frozen(Path(__file__).parents[2] / "assets/videocrafter2", "base")
        assert isinstance(base, BaseNetwork)
        whole = PoseControlNet.from_unet(base.unet, ControlNetworkConfig())
        spatial = PoseControlNet.from_unet(base.unet, ControlNetworkConfig(temporal=False))
    assert len(whole.down_zero_convs) == len(skip_channels(base.unet)) == 12
    sizes = [sum(parameter.numel() for parameter in net.parameters()) / 1e6 for net in (whole, spatial)]
    assert sizes == pytest.approx([633.0, 366.3], abs=1.5)


def make_batch(scene: Scene, renderer: PoseRenderer, count: int = 2) -> dict[str, Any]:
    hint = renderer.hints([scene] * count, [[0, 4, 8]] * count)
    return {
        "frames": torch.rand(count, 3, 3, 16, 16) * 2 - 1,
        "hint": hint,
        "figure": (hint.sum(2) > 0).float(),
        "fps": torch.full((count,), 7.5),
        "captions": ["two people"] * count,
    }


def exported_base(folder: Path) -> Path:
    module = BaseModule(dataclasses.asdict(BaseConfig(network=network_config(TINY))), max_steps=1)  # pyright: ignore
    module.network.text.fit_vocabulary(["two people wave"])
    module.export(folder, {"step": 1})
    return folder


def tiny_config(base: Path, **changes: Any) -> dict[str, Any]:
    config = ControlNetConfig(base=str(base), network=CONTROL, sampling_steps=2, sampled_clips=3, figure_weight=1.0)
    return dataclasses.asdict(dataclasses.replace(config, **changes))


def fit(
    module: ControlNetModule, batch: dict[str, Any], steps: int, limit_val_batches: int = 2, ckpt_path: Any = None
) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=limit_val_batches, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader([batch] * 4, batch_size=None)  # pyright: ignore[reportArgumentType]
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trainer


def test_training_leaves_the_base_bitwise_unchanged(tmp_path: Path, make_scene: Callable[..., Scene]) -> None:
    module = ControlNetModule(tiny_config(exported_base(tmp_path / "base")), max_steps=6)
    base = module.renderer.base
    before = {name: value.clone() for name, value in base.state_dict().items()}
    control = {name: value.clone() for name, value in module.state_dict().items()}
    assert not any(name.startswith("renderer.base") for name in control)
    batch = make_batch(make_scene(width=16, height=16), module.renderer)
    trainer = fit(module, batch, 6)
    assert set(trainer.callback_metrics) >= {"val/loss", "val/iou"}
    assert module._sampled == 3
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module.train()
    assert not any(part.training for part in base.modules())
    assert module.renderer.control.training
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    moved = sum(not torch.equal(value, control[name]) for name, value in module.state_dict().items())
    assert moved > len(control) / 2  # all that a gradient has reached

    resumed = ControlNetModule(tiny_config(tmp_path / "base"), max_steps=100)
    fit(resumed, batch, 100, limit_val_batches=0, ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in resumed.renderer.base.state_dict().items())


def test_checkpointed_gradients_of_the_control_are_the_same() -> None:
    renderer, values, found = moving(tiny_renderer()).train(), inputs(), []
    calls: list[str] = []
    renderer.base.unet.up_blocks[0].register_forward_pre_hook(lambda *_: calls.append("frozen decoder"))
    for checkpointing in (False, True):
        calls.clear()
        renderer.zero_grad()
        renderer.control.checkpoint_blocks = renderer.base.unet.checkpoint_blocks = checkpointing
        torch.manual_seed(0)  # dropout of the temporal convolutions
        renderer.predict(**values).square().mean().backward()
        found.append({name: p.grad for name, p in renderer.control.named_parameters()})
        assert len(calls) == 1 + checkpointing  # computed again for the gradient, although it is in eval mode
    assert all(grad is not None and torch.equal(grad, found[1][name]) for name, grad in found[0].items())


def test_a_frozen_base_at_half_precision_trains_a_control_in_single(
    tmp_path: Path, make_scene: Callable[..., Scene]
) -> None:
    config = tiny_config(exported_base(tmp_path / "base"), base_precision="bfloat16")
    module = ControlNetModule(config, max_steps=2)
    base, control = module.renderer.base, module.renderer.control
    assert {p.dtype for part in (base.unet, base.vae, base.text) for p in part.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in control.parameters()} == {torch.float32}
    before = {name: value.clone() for name, value in base.state_dict().items()}
    fit(module, make_batch(make_scene(width=16, height=16), module.renderer), 2)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert any(p.any() for p in control.mid_zero_conv.parameters())  # it has learned


def test_shown_with_the_trained_module(tmp_path: Path, make_scene: Callable[..., Scene]) -> None:
    module = ControlNetModule(tiny_config(exported_base(tmp_path / "base")), max_steps=1)
    batch = make_batch(make_scene(width=16, height=16), module.renderer)
    shown = module.sample_videos(batch)["truth_poses_rendered"]
    assert shown.shape[:2] == (3, 48)


def test_control_learns_what_the_hint_says() -> None:
    """Latents that only the hint tells: the loss with control falls well below the best without."""
    torch.manual_seed(0)
    renderer = tiny_renderer()
    optimizer = torch.optim.AdamW(renderer.control.parameters(), lr=5e-3)
    text, fps = torch.zeros(4, 2, 16), torch.full((4,), 8.0)
    schedule, losses = renderer.base.schedule, []
    for _ in range(40):
        sign = torch.randint(2, (4, 1, 1, 1, 1)).float()
        clean = (sign * 2 - 1).expand(4, 4, 2, 4, 4)
        hint = sign.expand(4, 2, 3, 16, 16)
        timestep, noise = torch.full((4,), 999), torch.randn(4, 4, 2, 4, 4)
        noisy = schedule.add_noise(clean, noise, timestep)
        prediction = renderer.predict(noisy, timestep, text, fps, hint)
        loss = (prediction - schedule.target(clean, noise, timestep)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9  # without the hint, the mean of the two signs costs 1


def test_fresh_layers_may_learn_faster() -> None:
    config = ControlNetConfig(network=CONTROL, optim=OptimConfig(lr=1e-3, warmup_steps=2), fresh_lr_scale=3.0)
    built = ControlNetModule(config, max_steps=10, base=tiny_base()).configure_optimizers()
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    optimizer.step()
    scheduler.step()
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {1e-3, 3e-3}


def test_export_names_its_base(tmp_path: Path, make_scene: Callable[..., Scene]) -> None:
    base = exported_base(tmp_path / "base")
    module = ControlNetModule(tiny_config(base), max_steps=1)
    wake(module.renderer.control)
    module.export(tmp_path / "control", {"step": 1})
    stored = json.loads((tmp_path / "control/export.json").read_text())["config"]
    assert stored["base"] == str(base)
    renderer = load_frozen(tmp_path / "control", "controlnet")
    assert isinstance(renderer, PoseRenderer)
    scene = make_scene(width=16, height=16, frames=30)
    settings = RenderConfig(steps=2, guidance_scale=2.0, frame_stride=5, device="cpu")
    pipe = PoseVideoPipeline.from_pretrained(tmp_path / "control")
    video = pipe.render([scene, scene], ["two people", "two people"], [1, 2], settings)
    assert video.shape == (2, 6, 16, 16, 3)
    assert video.dtype == np.uint8
    alone = pipe.render([scene], ["two people"], [2], settings)
    assert np.abs(alone[0].astype(int) - video[1]).max() <= 1
    direct = sample(
        module.renderer.base, ["two people"], [2], num_frames=6, fps=6.0, steps=2, guidance=Guidance(2.0),
        control=Control(module.renderer.control, renderer.hints([scene], [range(0, 30, 5)])),
    )  # fmt: skip
    assert np.abs(direct[0].astype(int) - video[1]).max() <= 8  # the exported base is stored at half precision

    exported_base(base)  # trained again: other weights
    with pytest.raises(UserError, match="is another base than .* was trained on"):
        load_frozen(tmp_path / "control", "controlnet")
    (base / "export.json").unlink()
    with pytest.raises(UserError, match="make train-base"):
        load_frozen(tmp_path / "control", "controlnet")


def test_what_an_edit_does_not_reach_is_not_predicted_again() -> None:
    base = tiny_base()
    network = PoseControlNet.from_unet(base.unet, CONTROL)
    wake(network)
    length = base.config.num_frames
    generator = torch.Generator().manual_seed(0)
    hint = torch.rand(1, 6 * length, 3, 16, 16, generator=generator)
    edited = hint.clone()
    edited[:, :2] = 1 - edited[:, :2]
    kept = Predictions()

    def video(hint: torch.Tensor, kept: Predictions | None = None, scale: float = 2.0) -> torch.Tensor:
        control = Control(network, hint)
        return sample_latents(
            base, ["a man"], [3], num_frames=hint.shape[1], fps=6.0, steps=3, guidance=Guidance(scale), control=control,
            kept=kept,
        )  # fmt: skip

    first = video(hint, kept)
    spans = len(windows(6 * length, length))
    assert (kept.made, kept.used) == (3 * spans, 0)
    assert torch.equal(video(hint, kept), first)
    assert (kept.made, kept.used) == (0, 3 * spans)
    second = video(edited, kept)
    assert kept.made == 1 + 2 + 3  # the first window, and one neighbour more at each step
    assert torch.equal(second, video(edited))
    assert not torch.equal(second, first)
    assert torch.equal(second[:, :, 3 * length :], first[:, :, 3 * length :])
    assert torch.equal(video(hint, kept), first)  # undo
    video(hint, kept, scale=1.0)
    assert kept.used == 0


def test_config_errors() -> None:
    with pytest.raises(UserError, match="timestep_bias is 0"):
        ControlNetConfig(timestep_bias=0)
    with pytest.raises(UserError, match="caption_dropout is -1"):
        ControlNetConfig(caption_dropout=-1)
