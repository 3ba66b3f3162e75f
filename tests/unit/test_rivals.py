"""The rivals: exact inverses, padding, seeds, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modules.checkpoint import load_frozen
from modules.errors import UserError
from modules.pose.scene import Clip, Scene
from modules.rivals.autoregressive import AutoregressiveRival
from modules.rivals.config import RivalNetworkConfig, RivalsConfig
from modules.rivals.diffusion import DiffusionRival
from modules.rivals.module import RivalsModule
from modules.text import TextConfig

MakeScene = Callable[..., Scene]
CAPTIONS = ["one person stands", "two people dance a while"]


def config(kind: str) -> RivalsConfig:
    network = RivalNetworkConfig(width=32, layers=1, heads=2, text=TextConfig(width=16, layers=1, max_vocabulary=50))
    return RivalsConfig(kind, network, steps=3)


@pytest.fixture
def clips(make_scene: MakeScene) -> list[Clip]:
    return [
        Clip(str(people), make_scene(seed=people, persons=people, frames=15 + 20 * people), CAPTIONS[people - 1])
        for people in (1, 2)
    ]


def module_of(kind: str, clips: list[Clip]) -> RivalsModule:
    torch.manual_seed(0)
    module = RivalsModule(config(kind), max_steps=10)
    module.setup_data(lambda: clips)
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    return module


def batch_of(module: RivalsModule, clips: list[Clip]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return module.collate([item for clip in clips for item in module.encode(clip, rng, False)])


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_it_learns_its_captions_and_an_export_gives_the_same_scenes(
    kind: str, clips: list[Clip], tmp_path: Path
) -> None:
    module = module_of(kind, clips)
    batch = batch_of(module, clips)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        found = module.model_step(batch, generator)
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found["loss"].item())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    module.eval()
    scenes = module.network.generate(CAPTIONS, [1, 2])  # type: ignore[operator]
    assert [len(scene.persons) for scene in scenes] == [1, 2]
    seconds = [scene.num_frames * (scene.times[1] - scene.times[0]) for scene in scenes]
    assert seconds == pytest.approx([4 / 3, 2.0])  # 35 and 55 frames, in whole keys
    module.export(tmp_path / "export", {})
    again = load_frozen(tmp_path / "export", "rivals").generate(CAPTIONS[::-1], [2, 1])[::-1]  # type: ignore[operator]
    for scene, twin in zip(scenes, again, strict=True):
        np.testing.assert_allclose(scene.joints, twin.joints, atol=1e-3)  # whatever they are batched with
    other = module.network.generate(CAPTIONS, [3, 4])  # type: ignore[operator]
    assert any(not np.array_equal(a.joints, b.joints) for a, b in zip(scenes, other, strict=True))


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_padding_does_not_count(kind: str, clips: list[Clip]) -> None:
    """What stands beyond the end of a clip, or where nobody is, changes no loss."""
    module = module_of(kind, clips).eval()
    batch = batch_of(module, clips)
    spoiled = {**batch, "poses": batch["poses"].clone(), "seen": batch["seen"].clone()}
    spoiled["poses"][0, 40:] = 0.5
    spoiled["seen"][0, 40:, :1] = True
    first, second = (module.model_step(b, torch.Generator().manual_seed(0)) for b in (batch, spoiled))
    if kind == "diffusion":  # noise is drawn on what is spoiled, too, and the mask keeps it from the rest
        assert first["motion"].item() == pytest.approx(second["motion"].item(), rel=1e-4)
    else:
        assert first["motion"].item() == pytest.approx(second["motion"].item(), rel=1e-6)


def test_bins_and_coordinates() -> None:
    rival = AutoregressiveRival(config("autoregressive"))
    poses = torch.rand(3, 18, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = torch.rand(3, 18, generator=torch.Generator().manual_seed(1)) < 0.7
    back, shown = rival.from_bins(rival.to_bins(poses, seen))
    assert (shown == seen).all()
    assert (back - poses)[seen].abs().max() <= 2.4 / 256 / 2 + 1e-6
    assert back[~seen].abs().max() == 0


def test_written_token_by_token_is_what_was_trained(clips: list[Clip]) -> None:
    """The cache gives the same hidden states as one pass over the whole sequence."""
    torch.manual_seed(0)
    module = module_of("autoregressive", clips).eval()
    network = module.network
    told = network.read(CAPTIONS)
    x = torch.randn(2, 7, 32)
    from modules.rivals.network import Cache

    cache = Cache()
    steps = [network.run(x[:, i : i + 1], told, None, causal=False, cache=cache) for i in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), network.run(x, told, None, causal=True), atol=1e-5, rtol=1e-4)


def test_diffusion_tokens_hold_the_motion(clips: list[Clip]) -> None:
    module = module_of("diffusion", clips)
    rival, batch = module.network, batch_of(module, clips)
    assert isinstance(rival, DiffusionRival)
    points, there = rival._scaled(batch)
    known = points[there]
    assert known.mean(0).abs().max() < 0.05
    assert known.var(0).sub(1).abs().max() < 0.05
    found, sign = rival._features(rival._tokens(points, batch["seen"]))
    seen = batch["seen"]
    torch.testing.assert_close(rival._poses(found)[seen], batch["poses"][seen], atol=1e-5, rtol=0)
    assert ((sign > 0) == seen).all()


def test_scenes_with_too_many_people_are_left_out(make_scene: MakeScene) -> None:
    module = RivalsModule(config("diffusion"), max_steps=1)
    clip = Clip("a", make_scene(persons=4), "four people")
    assert module.encode(clip, np.random.default_rng(0), True) == []
    with pytest.raises(UserError, match="no clip has 1 to 3 people; raise network.max_people"):
        module.setup_data(lambda: [clip])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RivalsConfig(kind="gan"), "kind is 'gan'; allowed: diffusion, autoregressive"),
        (lambda: RivalNetworkConfig(width=30), "multiple of twice network.heads"),
        (lambda: RivalNetworkConfig(frames_per_token=3), "must divide network.stride"),
        (lambda: RivalsConfig(text_drop=1.0), "text_drop is 1.0"),
    ],
)
def test_messages(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
