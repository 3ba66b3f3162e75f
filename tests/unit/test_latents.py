"""Latents and text states of a base in shards: the same as those of the videos, and what training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prepare
from datamodules.shards import find_shards, read_shard
from datamodules.webdataset import PoseDataModule, iter_clips
from modules.controlnet.module import ControlNetModule
from modules.errors import UserError
from modules.pose.letterbox import Letterbox
from modules.pose.video import encode_video, read_frames
from tests.conftest import HEIGHT, WIDTH
from tests.unit.test_controlnet import exported_base, fit, tiny_config


@pytest.fixture
def shards(make_shards: Any) -> Path:
    pictures = np.random.default_rng(0).integers(0, 255, (61, HEIGHT, WIDTH, 3)).astype(np.uint8)
    return make_shards(video=encode_video(pictures, 30), train=(2, 3), val=(1, 2))


def run(*items: object) -> None:
    prepare.main(["latents", *map(str, items)])


@pytest.mark.parametrize("every", [1, 3])
def test_they_are_those_of_the_videos(shards: Path, tmp_path: Path, every: int, capsys: Any) -> None:
    base = exported_base(tmp_path / "base")
    run(f"data={shards}", f"base={base}", f"out={tmp_path}/latents", f"every={every}", "batch=7", "device=cpu")
    assert "6 train, 2 val, 0 test clips in 3 shards" in capsys.readouterr().out
    module = ControlNetModule(tiny_config(base, cached=True), max_steps=1)
    clips = list(iter_clips(tmp_path / "latents", "train", module.columns))
    assert [clip.key for clip in clips] == [f"train{i}" for i in range(6)]
    source = next(iter_clips(shards, "train", ("pose", "video")))
    assert np.array_equal(source.scene.joints, clips[0].scene.joints)
    network = module.renderer.base
    fitted = Letterbox((WIDTH, HEIGHT), (16, 16)).frames(read_frames(source.video, [0, every, 2 * every]))  # pyright: ignore
    pixels = torch.from_numpy(fitted).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    expected = network.encode_frames(pixels)[0].transpose(0, 1)
    assert clips[0].latents is not None
    assert len(clips[0].latents) == -(-source.scene.num_frames // every)
    torch.testing.assert_close(torch.from_numpy(clips[0].latents[:3]).float(), expected, atol=2e-3, rtol=2e-3)
    with torch.no_grad():
        states = network.encode_text([clips[1].caption])[0]
    torch.testing.assert_close(torch.from_numpy(clips[1].text).float(), states, atol=2e-3, rtol=2e-3)  # pyright: ignore


def test_an_item_shows_the_latents_of_its_frames(shards: Path, tmp_path: Path) -> None:
    base = exported_base(tmp_path / "base")
    run(f"data={shards}", f"base={base}", f"out={tmp_path}/latents", "every=3", "device=cpu")
    encode = ControlNetModule(tiny_config(base, cached=True), max_steps=1).encode
    clip = next(iter_clips(tmp_path / "latents", "train", ("pose", "latents", "text")))
    clip.start, clip.latents = 4, np.arange(40, dtype=np.float16).reshape(40, 1, 1, 1)  # a crop that is off the grid
    clip.latents = np.broadcast_to(clip.latents, (40, 4, 4, 4))
    for seed in range(20):
        (item,) = encode(clip, np.random.default_rng(seed), True)
        stride = 30 / item["fps"]
        assert stride in (3, 6)
        shown = item["latents"][:, 0, 0, 0] * 3 - clip.start  # frames of the crop
        assert (shown >= 0).all()
        assert (shown < clip.scene.num_frames).all()
        assert (np.diff(shown) == stride).all()


def test_training_on_them_is_training_on_the_videos(shards: Path, tmp_path: Path) -> None:
    base = exported_base(tmp_path / "base")
    run(f"data={shards}", f"base={base}", f"out={tmp_path}/latents", "device=cpu")
    found = {}
    for cached, path in ((False, shards), (True, tmp_path / "latents")):
        torch.manual_seed(0)
        module = ControlNetModule(tiny_config(base, cached=cached, caption_dropout=0.5), max_steps=2)
        data = PoseDataModule(
            path=str(path), columns=module.columns, encode=module.encode, collate=module.collate, batch_size=2
        )
        batch = next(iter(data.train_dataloader()))
        assert ("frames" in batch) == (not cached)
        torch.manual_seed(1)
        found[cached] = module.training_step(batch, 0).item()
        module.sample_videos(batch)
    assert found[True] == pytest.approx(found[False], rel=2e-3)  # kept at half precision
    fit(module, batch, 2)


def test_errors(shards: Path, make_shards: Any, tmp_path: Path) -> None:
    base = exported_base(tmp_path / "base")
    options = (f"data={shards}", f"out={tmp_path}/latents", "device=cpu")
    run(*options, f"base={base}")
    before = (tmp_path / "latents/train-000000.tar").read_bytes()
    run(*options, f"base={base}")  # complete: left as it is
    other = ControlNetModule(tiny_config(base, cached=True), max_steps=1)
    clip = next(iter_clips(tmp_path / "latents", "train", other.columns))
    clip.meta["cache"]["base"] = "0" * 64
    with pytest.raises(UserError, match="latents of another base"):
        other.encode(clip, np.random.default_rng(0), True)
    with pytest.raises(UserError, match=r"every 1 there, 2 asked for.*overwrite=true"):
        run(*options, f"base={base}", "every=2")
    assert (tmp_path / "latents/train-000000.tar").read_bytes() == before
    with pytest.raises(UserError, match=r"has no .latents.npy; `python prepare.py latents` makes it"):
        next(read_shard(find_shards(shards, "train")[0], other.columns)).sample()
    with pytest.raises(UserError, match=r"has no .mp4"):
        run(f"data={make_shards('plain')}", f"base={base}", f"out={tmp_path}/none", "device=cpu")
    with pytest.raises(UserError, match="no shards"):
        run(f"data={tmp_path}/nowhere", f"base={base}", f"out={tmp_path}/none", "device=cpu")
