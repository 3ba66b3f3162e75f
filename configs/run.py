"""The folder of a run, `<run_dir>/<stage>/<name>/`: configuration, checkpoints, logs, metrics and export."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

from configs.loader import ConfigError, load_config, to_plain
from configs.schema import RunConfig
from modules.checkpoint import INFO_FILE, fingerprint
from modules.errors import UserError
from modules.files import atomic_write

# A run may continue with other values of these: they change what is shown or where it runs, not what is learned.
# `max_steps` is not among them, because the learning rate depends on it. `data.path` is not compared as text: the
# shards themselves are.
HARMLESS = {
    "fresh", "other_data", "run_dir", "data.path", "data.num_workers", "data.cache_mb", "data.test_split",
    "data.max_bad_fraction",
    "trainer.log_every", "trainer.sample_every", "trainer.accelerator", "trainer.offload",
    "trainer.keep_checkpoints", "trainer.save_every", "trainer.background_save", "trainer.max_skipped",
}  # fmt: skip
# As long as their product stays the same: the batch of all ranks.
RANKS = {"data.batch_size", "trainer.devices", "trainer.num_nodes"}


class RunFolder:
    """Paths of a run and what it was started with."""

    def __init__(self, cfg: RunConfig):
        self.cfg = cfg
        self.root = Path(cfg.run_dir) / cfg.stage / cfg.name
        self.checkpoints = self.root / "checkpoints"
        self.export = self.root / "export"
        self.history = self.root / "history.jsonl"
        self._config, self._data, self._metrics = (
            self.root / name for name in ("config.yaml", "data.json", "metrics.json")
        )

    def started_with(self, data: dict[str, Any]) -> dict[str, Any]:
        """The fingerprint of the data, and those of the exports that the configuration names."""
        return {"data": data, "exports": export_fingerprints(to_plain(self.cfg.model))}

    def check_same(self, now: dict[str, Any]) -> None:
        """A run continues only with the configuration and the data that it started with.

        Raises:
            UserError: lists what differs.
        """
        was, is_ = _flatten(self._config_before()), _flatten(to_plain(self.cfg))
        same_batch = _global_batch(was) == _global_batch(is_)
        settings = _differences(was, is_, HARMLESS | RANKS if same_batch else HARMLESS)
        before = json.loads(self._data.read_text())
        settings += _differences(_flatten({"exports": before["exports"]}), _flatten({"exports": now["exports"]}), set())
        data = _differences(_flatten({"data": before["data"]}), _flatten({"data": now["data"]}), set())
        if data and self.cfg.other_data:
            with atomic_write(self._data) as file:
                json.dump(now, file, indent=2)
            data = []
        if differing := settings + data:
            more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
            override = "" if settings else ", or go on with the data as they are now with other_data=true"
            raise UserError(
                f"{self.root} was started with other {'settings' if settings else 'data'}: "
                f"{'; '.join(differing[:8])}{more}. Give the new run its own name (name=..., make: NAME=...), "
                f"or throw the old one away with fresh=true{override}"
            )

    def _config_before(self) -> dict[str, Any]:
        try:
            return to_plain(load_config([str(self._config)]))  # settings that are newer than the run get their defaults
        except ConfigError:  # settings that no longer exist
            return yaml.safe_load(self._config.read_text())

    def start(self, now: dict[str, Any]) -> None:
        """Empty the folder and note what the run starts with."""
        if self.root.exists():
            if any(self.root.iterdir()) and not self._config.is_file():
                raise UserError(f"{self.root} is not a run folder (no config.yaml); choose another name=...")
            shutil.rmtree(self.root)
        self.checkpoints.mkdir(parents=True)
        with atomic_write(self._data) as file:
            json.dump(now, file, indent=2)
        with atomic_write(self._config) as file:
            file.write(f"# python train.py {self._config}\n{to_yaml(self.cfg)}")

    def metrics(self) -> dict[str, Any] | None:
        """What a finished run measured; None while it is not finished."""
        return json.loads(self._metrics.read_text()) if self._metrics.is_file() else None

    def finish(self, metrics: dict[str, Any]) -> None:
        """Mark the run as finished."""
        with atomic_write(self._metrics) as file:
            json.dump(metrics, file, indent=2)


def summary(metrics: dict[str, Any]) -> str:
    """A finished run in a line."""
    score = metrics["val"].get(metrics["monitor"])
    best = f", {metrics['monitor']} {score:.4g} at step {metrics['best_step']}" if score is not None else ""
    return f"{metrics['steps']} steps in {metrics['seconds']:.0f} s{best}"


class _Dumper(yaml.SafeDumper):
    """Keys on lines of their own, lists in a line."""


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))


def to_yaml(cfg: RunConfig) -> str:
    """The resolved configuration."""
    return yaml.dump(to_plain(cfg), Dumper=_Dumper, sort_keys=False, width=110)


def export_fingerprints(model: dict[str, Any]) -> dict[str, str]:
    """Hash of every export that a value of the `model` section names, by key."""
    return {
        f"model.{key}": fingerprint(value)
        for key, value in _flatten(model).items()
        if isinstance(value, str) and value and (Path(value) / INFO_FILE).is_file()
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differences(before: dict[str, Any], now: dict[str, Any], ignored: set[str]) -> list[str]:
    nothing = object()
    return [
        f"{key} was {_show(before, key)}, now {_show(now, key)}"
        for key in dict.fromkeys([*before, *now])
        if key not in ignored and before.get(key, nothing) != now.get(key, nothing)
    ]


def _global_batch(values: dict[str, Any]) -> int:
    return math.prod(values.get(key, 1) for key in RANKS)


def _show(values: dict[str, Any], key: str) -> str:
    text = str(values.get(key, "absent"))
    return text if len(text) <= 40 else text[:12] + "..."
