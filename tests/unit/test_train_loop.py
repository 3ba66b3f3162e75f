"""train.py with a real stage at a tiny size: what a run leaves, how it goes on, what it refuses."""

from __future__ import annotations

import functools
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as script
from callbacks.ema import EMA
from callbacks.samples import gif_summary
from configs.cli import run_script
from configs.loader import load_config
from configs.schema import RunConfig
from datamodules.synthetic.build import SyntheticConfig, build
from modules.checkpoint import load_frozen, read_export
from modules.errors import UserError
from modules.evaluator.module import EvaluatorModule
from tests.tiny import ROOT, newest_checkpoint, short_run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    build(SyntheticConfig(out=str(out), train=16, val=4, test=0, shard_size=8, workers=1), progress=False)
    return out


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def make(*items: str) -> RunConfig:
        return short_run(shards, tmp_path / "runs", "trainer.val_every=2", *items)

    return make


def at_batch(number: int, action: Callable[[], Any]) -> Callable[..., Any]:
    """A training step that calls `action` for its loss at one batch."""
    step = EvaluatorModule.training_step
    calls = 0

    def training_step(self: EvaluatorModule, batch: Any, batch_idx: int) -> Any:
        nonlocal calls
        calls += 1
        return action() if calls == number else step(self, batch, batch_idx)

    return training_step


def stop() -> None:
    raise KeyboardInterrupt


def test_what_a_run_leaves(
    config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, objects = script.train(config())
    folder = tmp_path / "runs/evaluator/smoke"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == objects["trainer"].global_step == 6
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [2, 4, 6]
    assert metrics["val"]["val/retrieval"] == max(row["val/retrieval"] for row in history)
    assert load_config([str(folder / "config.yaml")]) == config()
    assert read_export(folder / "export", "evaluator").info["metrics"] == metrics["val"]
    load_frozen(folder / "export", "evaluator")
    events = EventAccumulator(str(folder / "logs")).Reload().Tags()["scalars"]
    assert {"train/loss", "val/accuracy", "perf/samples_per_second"} <= set(events)
    out = capsys.readouterr().out
    assert "step 3/6  loss " in out
    assert "samples/s" in out

    shutil.rmtree(folder / "export")
    assert script.train(config())[0] == metrics
    assert "is finished: 6 steps" in capsys.readouterr().out
    assert read_export(folder / "export").info["step"] == metrics["best_step"]


def test_the_export_holds_the_averaged_weights(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    script.train(config("trainer.val_every=6"))
    folder = tmp_path / "runs/evaluator/smoke"
    exported, saved = read_export(folder / "export").load_state(), newest_checkpoint(folder)
    average = saved["callbacks"][EMA.__name__]["average"]
    assert average
    for name, value in average.items():
        assert torch.equal(exported[name.removeprefix("network.")], value)
    assert any(not torch.equal(saved["state_dict"][name], value) for name, value in average.items())


@pytest.mark.parametrize(("val_every", "saved"), [(2, 4), (3, 3)], ids=["after an epoch", "within an epoch"])
def test_resuming_is_the_same_as_not_stopping(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_every: int, saved: int
) -> None:
    config = functools.partial(config, f"trainer.val_every={val_every}")
    script.train(config("name=whole"))
    with monkeypatch.context() as patch:
        patch.setattr(EvaluatorModule, "training_step", at_batch(10, stop))
        with pytest.raises(SystemExit):
            script.train(config("name=parts"))
    root = tmp_path / "runs/evaluator"
    assert newest_checkpoint(root / "parts")["global_step"] == saved
    script.train(config("name=parts"))
    whole, parts = newest_checkpoint(root / "whole"), newest_checkpoint(root / "parts")
    assert same(whole["state_dict"], parts["state_dict"])
    assert same(whole["optimizer_states"], parts["optimizer_states"])
    assert same(whole["callbacks"][EMA.__name__], parts["callbacks"][EMA.__name__])
    assert same(whole["random_states"], parts["random_states"])
    rows = [(root / name / "history.jsonl").read_text() for name in ("whole", "parts")]
    assert rows[0] == rows[1]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_continues_only_with_its_config_and_data(
    config: Callable[..., RunConfig], shards: Path, tmp_path: Path
) -> None:
    script.train(config())
    script.train(config("trainer.log_every=5", "data.num_workers=1"))  # harmless
    with pytest.raises(UserError, match=r"network.width was 8, now 16; trainer.max_steps was 6, now 8.*fresh=true"):
        script.train(config("model.network.width=16", "trainer.max_steps=8"))

    saved = tmp_path / "runs/evaluator/smoke/config.yaml"
    saved.write_text(saved.read_text().replace("  jitter: 0.01\n", ""))  # as if the setting were newer than the run
    script.train(config())

    other = tmp_path / "other"
    shutil.copytree(shards, other)
    script.train(config(f"data.path={other}"))  # moved, but the same
    (other / "train-000001.tar").unlink()
    refused = r"started with other data: data.shards.train-000001.tar was \d+ bytes \w+, now absent.* other_data=true"
    with pytest.raises(UserError, match=refused):
        script.train(config(f"data.path={other}"))
    script.train(config(f"data.path={other}", "other_data=true"))
    script.train(config(f"data.path={other}"))  # from now on these are its data

    metrics, _ = script.train(config("model.network.width=16", "fresh=true"))
    assert metrics["steps"] == 6


def test_fresh_deletes_nothing_but_runs(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = tmp_path / "runs/evaluator/smoke"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("all my work")
    with pytest.raises(UserError, match="is not a run folder"):
        script.train(config("fresh=true"))
    assert (folder / "thesis.tex").exists()


def test_missing_shards_leave_nothing(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make sample-data"):
        script.train(config(f"data.path={tmp_path / 'nowhere'}"))
    assert not (tmp_path / "runs").exists()


def test_show_prints_config_size_and_memory(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main([str(ROOT / "configs/evaluator/demo.yaml"), "--show"])
    out = capsys.readouterr().out
    assert "stage: evaluator" in out
    assert "trainable, 0 frozen" in out
    assert "MiB = weights" in out


def test_mistakes_end_with_status_2_and_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", str(ROOT / "configs/evaluator/demo.yaml"), "trainer.max_step=3", "x"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        run_script(script.main, script.__doc__)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: x: no such file")
    assert "Traceback" not in error


def test_animated_pictures_keep_their_frames() -> None:
    frames = np.zeros((3, 8, 12, 3), dtype=np.uint8)
    frames[1], frames[2] = 255, 100
    summary = gif_summary(frames, fps=10)
    assert (summary.height, summary.width) == (8, 12)
    picture = Image.open(io.BytesIO(summary.encoded_image_string))
    assert picture.format == "GIF"
    assert picture.n_frames == 3
