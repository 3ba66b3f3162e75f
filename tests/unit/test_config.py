"""Typed configuration: chains, overlays, and errors that name the file, the key and the way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from configs.cli import split_arguments
from configs.loader import ConfigError, load_config, to_plain
from configs.run import RunFolder, to_yaml
from configs.schema import RunConfig, TrainerConfig
from configs.show import estimate_memory
from modules.errors import UserError
from modules.optim import OptimConfig


@dataclass
class Net:
    width: int = 3
    kind: Literal["small", "large"] = "small"
    scales: tuple[int, ...] = (1, 2)
    vocabulary: list[int] | None = None

    def __post_init__(self) -> None:
        if self.width < 0:
            raise UserError(f"network.width is {self.width}; it must be 0 or more")


@dataclass
class Model:
    network: Net = field(default_factory=Net)
    second: Net | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    upstream: str = "runs/vqvae/${name}/export"
    source: str = "???"
    weights: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("stage: vqvae\ntrainer: {max_steps: 50}\nmodel: {source: a}\n")
    (tmp_path / "demo.yaml").write_text("extends: base.yaml\nmodel: {network: {width: 5, scales: [1, 2, 4]}}\n")
    (tmp_path / "fast.yaml").write_text("trainer: {max_steps: 2}\nmodel: {second: {width: 7}}\n")
    return tmp_path


def load(files: Path, *names: str, items: tuple[str, ...] = ()) -> RunConfig:
    return load_config([str(files / name) for name in names], list(items), Model)


def problems(files: Path, *names: str, items: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(files, *names, items=items)
    return caught.value.problems


def test_later_sources_win(files: Path) -> None:
    cfg = load(files, "demo.yaml", "fast.yaml", items=("model.network.width=9", "model.weights.pose=1"))
    assert cfg.trainer.max_steps == 2
    assert (cfg.model.network.width, cfg.model.network.scales) == (9, (1, 2, 4))
    assert cfg.model.second == Net(width=7)
    assert cfg.model.weights == {"pose": 1.0}


def test_the_name_of_a_run_is_that_of_its_file_and_can_be_used_in_values(files: Path) -> None:
    assert load(files, "demo.yaml", "fast.yaml").model.upstream == "runs/vqvae/demo/export"
    assert load(files, "demo.yaml", items=("name=mine",)).model.upstream == "runs/vqvae/mine/export"


def test_what_is_saved_is_read_back_the_same(files: Path) -> None:
    cfg = load(files, "demo.yaml", "fast.yaml")
    (files / "saved.yaml").write_text(to_yaml(cfg))
    assert load(files, "saved.yaml") == cfg
    assert yaml.safe_load(to_yaml(cfg)) == to_plain(cfg)


def test_all_mistakes_are_reported_at_once(files: Path) -> None:
    (files / "typo.yaml").write_text("extends: demo.yaml\ntrainer: {max_step: 3}\nmodel: {network: {width: wide}}\n")
    found = problems(files, "typo.yaml", items=("model.netwrk.width=1", "oops", "model.network.kind=huge"))
    text = "\n".join(found)
    assert len(found) == 5
    assert f"{files}/typo.yaml: trainer.max_step is unknown; did you mean trainer.max_steps?" in text
    assert f"{files}/typo.yaml: model.network.width is 'wide' (str), expected int" in text
    assert "command line: model.netwrk is unknown; did you mean model.network?" in text
    assert "command line: 'oops' is not key=value" in text
    assert "command line: model.network.kind is 'huge' (str), expected one of small, large" in text


def test_cross_checks_are_reported_together(files: Path) -> None:
    found = problems(files, "demo.yaml", items=("model.network.width=-1", "trainer.max_steps=0", "model.optim.lr=0"))
    assert [line.split(" is ")[0] for line in found] == [
        "command line: network.width", "command line: optim.lr", "command line: trainer.max_steps",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("stage=vqave", "it must be one of vqvae, llm, .*did you mean vqvae"),
        ("model.source=???", r"model\.source is missing; give it in a file or as model\.source="),
        ("model.upstream=${nmae}", "model.upstream is .*'nmae' not found"),
        ("model.network=3", "expected `key: value` lines"),
        ("model.network.scales=[a]", r"expected tuple\[int, \.\.\.\]"),
        ("trainer.limit_val_batches=x", "expected int | None"),
        ("--fresh=true", "not key=value"),
    ],
)
def test_mistakes_on_the_command_line(files: Path, item: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(files, "demo.yaml", items=(item,))


def test_a_missing_value_is_found_in_the_files(files: Path) -> None:
    (files / "bare.yaml").write_text("stage: vqvae\n")
    assert problems(files, "bare.yaml") == [
        f"{files}/bare.yaml: model.source is missing; give it in a file or as model.source=..."
    ]


def test_files_that_cannot_be_read(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ConfigError, match=r"no such file; did you mean configs/evaluator/demo.yaml\?"):
        load_config(["configs/evaluator/dmo.yml"])
    (files / "loop.yaml").write_text("extends: loop.yaml\n")
    assert "extends itself" in problems(files, "loop.yaml")[0]
    (files / "broken.yaml").write_text("model: [\n")
    assert "cannot be read as YAML" in problems(files, "broken.yaml")[0]
    (files / "list.yaml").write_text("- a\n")
    assert "must hold `key: value` lines" in problems(files, "list.yaml")[0]
    with pytest.raises(ConfigError, match="no config file is named; for example"):
        load_config([], ["name=x"])


def test_averaged_weights_do_not_go_with_sharded_weights() -> None:
    with pytest.raises(UserError, match="cannot go with deepspeed_stage_3"):
        TrainerConfig(strategy="deepspeed_stage_3", ema_decay=0.9)


def test_arguments_are_told_apart() -> None:
    paths, items, flags = split_arguments(["a.yaml", "name=x", "--show", "b.yaml"], ("--show",))
    assert (paths, items, flags) == (["a.yaml", "b.yaml"], ["name=x"], {"--show"})
    with pytest.raises(UserError, match="option --shwo is unknown; known: --show"):
        split_arguments(["--shwo"], ("--show",))


def test_memory_of_adam_in_single_precision_is_sixteen_bytes_a_parameter() -> None:
    assert sum(estimate_memory(100, 0, TrainerConfig()).values()) == 1600
    assert sum(estimate_memory(0, 100, TrainerConfig()).values()) == 400


def test_memory_of_zero_3_is_shared_out() -> None:
    alone = TrainerConfig(strategy="deepspeed_stage_3", precision="bf16-true")
    shared = TrainerConfig(strategy="deepspeed_stage_3", precision="bf16-true", devices=8)
    for trainer, own in ((alone, 800), (shared, 100)):
        memory = estimate_memory(800, 0, trainer)
        assert memory.pop("buffers") <= 10 * 800
        assert sum(memory.values()) == 16 * own


@pytest.mark.parametrize(
    ("path", "items", "message"),
    [
        ("configs/interp/demo.yaml", (), "stage interp; only llm is trained with DeepSpeed"),
        ("configs/llm/demo.yaml", (), "Muon needs whole matrices"),
        ("configs/llm/paper.yaml", ("trainer.spike_sigma=6",), "spike_sigma cannot go with DeepSpeed"),
        ("configs/llm/paper.yaml", ("trainer.background_save=true",), "background_save cannot go with DeepSpeed"),
    ],
)
def test_what_does_not_go_with_deepspeed(path: str, items: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([str(Path(__file__).parents[2] / path)], ["trainer.strategy=deepspeed_stage_3", *items])


def test_a_run_goes_on_with_other_ranks_that_share_the_same_batch(tmp_path: Path) -> None:
    def run(*items: str) -> RunFolder:
        path = Path(__file__).parents[2] / "configs/llm/paper.yaml"  # 8 devices, a batch of 32 on each
        return RunFolder(load_config([str(path)], [f"run_dir={tmp_path}", *items]))

    now = {"data": {}, "exports": {}}
    run().start(now)
    run("trainer.devices=4", "trainer.num_nodes=4", "data.batch_size=16").check_same(now)
    with pytest.raises(UserError, match=r"data.batch_size was 32, now 16; trainer.num_nodes was 1, now 4"):
        run("trainer.num_nodes=4", "data.batch_size=16").check_same(now)
