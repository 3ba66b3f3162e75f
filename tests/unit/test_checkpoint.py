"""Exports: complete or absent, of the right stage, and read back exactly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modules.checkpoint import fingerprint, load_frozen, read_export, save_export
from modules.errors import UserError
from modules.optim import OptimConfig, build_optimizer, lr_factor
from modules.vqvae.config import NetworkConfig, QuantizerConfig
from modules.vqvae.network import PoseTokenizer


def save(directory: Path, value: float = 1.0, stage: str = "vqvae") -> None:
    state = {"weight": torch.full((2, 3), value)}
    save_export(directory, stage=stage, config={"width": 3}, state=state, info={"step": 7})


def test_round_trip(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {"all": shared, "part": shared[2:4], "turned": torch.arange(6).view(2, 3).t(), "half": torch.ones(2).half()}
    save_export(tmp_path / "export", stage="vqvae", config={"a": [1, 2]}, state=state, info={"step": 3})
    found = read_export(tmp_path / "export", "vqvae")
    assert (found.stage, found.config, found.info) == ("vqvae", {"a": [1, 2]}, {"step": 3})
    loaded = found.load_state(dtype=None)
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(loaded[name], value)
    assert found.load_state()["half"].dtype == torch.float32
    assert found.load_state()["turned"].dtype == torch.int64


def test_a_failed_export_leaves_the_old_one(tmp_path: Path) -> None:
    save(tmp_path / "export")

    def fail(_: Path) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save_export(tmp_path / "export", stage="vqvae", config={}, state=None, info={}, extra=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert read_export(tmp_path / "export").info == {"step": 7}


def test_a_new_export_replaces_the_old_one_with_all_its_files(tmp_path: Path) -> None:
    save_export(
        tmp_path / "export", stage="llm", config={}, state=None, info={},
        extra=lambda folder: folder.joinpath("config.json").write_text("{}"),
    )  # fmt: skip
    save(tmp_path / "export")
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["export.json", "model.safetensors"]


def test_a_missing_export_lists_those_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "runs/vqvae/first/export")
    save(tmp_path / "runs/llm/first/export", stage="llm")
    with pytest.raises(UserError, match="no such folder; exports that exist: runs/vqvae/first/export; `make tr"):
        read_export("runs/vqvae/demo/export", "vqvae")
    with pytest.raises(UserError, match="is an export of stage 'llm', but one of stage 'vqvae' is needed"):
        read_export("runs/llm/first/export", "vqvae")


def test_damaged_exports(tmp_path: Path) -> None:
    save(tmp_path / "export")
    (tmp_path / "export/model.safetensors").write_bytes(b"12")
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        read_export(tmp_path / "export").load_state()
    content = json.loads((tmp_path / "export/export.json").read_text())
    (tmp_path / "export/export.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(UserError, match="format version 99, this code reads 1"):
        read_export(tmp_path / "export")
    (tmp_path / "export/export.json").write_text("{}")
    with pytest.raises(UserError, match="not an export description"):
        read_export(tmp_path / "export")


def test_an_export_of_another_version_of_the_code(tmp_path: Path) -> None:
    network = PoseTokenizer(NetworkConfig(num_quantizers=2, codebook_size=8, latent_dim=8, width=16, dilations=[1]))
    config: dict[str, Any] = {
        "network": dataclasses.asdict(network.config), "quantizer": dataclasses.asdict(QuantizerConfig())
    }  # fmt: skip
    state = network.state_dict()
    made: dict[str, Any] = {"stage": "vqvae", "config": config, "info": {"code": "abc123"}}
    save_export(tmp_path / "now", state=state, **made)
    load_frozen(tmp_path / "now", "vqvae")
    renamed = {f"{'old.' if number == 0 else ''}{name}": value for number, (name, value) in enumerate(state.items())}
    save_export(tmp_path / "weights", state=renamed, **made)
    with pytest.raises(UserError, match=r"does not fit this version .*made by another version \(abc123\); `make tr"):
        load_frozen(tmp_path / "weights", "vqvae")
    config["network"]["colour"] = "red"
    save_export(tmp_path / "config", state=state, **made)
    with pytest.raises(UserError, match=r"does not fit this version .*colour"):
        load_frozen(tmp_path / "config", "vqvae")


def test_the_fingerprint_names_the_weights(tmp_path: Path) -> None:
    save(tmp_path / "a", 1.0)
    save(tmp_path / "b", 1.0)
    save(tmp_path / "c", 2.0)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


def test_frozen_parameters_are_not_optimised_and_vectors_do_not_decay() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    network[0].weight.requires_grad_(False)
    optimizer = build_optimizer(network.named_parameters(), OptimConfig(weight_decay=0.1), 10)["optimizer"]
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(3, 0.0)]
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer(network.requires_grad_(False).named_parameters(), OptimConfig(), 10)


def test_the_learning_rate_warms_up_and_falls() -> None:
    cfg = OptimConfig(warmup_steps=10, min_lr_ratio=0.1)
    factors = [lr_factor(step, cfg, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(later < earlier for earlier, later in zip(factors[10:], factors[11:], strict=False))
    assert factors[100] == pytest.approx(0.1)
    assert lr_factor(0, OptimConfig(warmup_steps=0, schedule="constant"), 100) == 1.0
