"""Every config file in the repository: it loads, its first line runs it, and its network can be built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from configs.loader import load_config, load_typed
from configs.run import to_yaml
from configs.schema import STAGES
from configs.show import GIB, build_on_meta, count_parameters, estimate_memory
from configs.slurm_schema import SlurmConfig

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
TRAINING = [path for path in FILES if path.parts[1] in STAGES]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_every_stage_has_its_sizes() -> None:
    assert {path.parts[1] for path in TRAINING} == set(STAGES)
    for stage in STAGES:
        sizes = {path.stem for path in TRAINING if path.parts[1] == stage}
        # Rivals are compared at the size of the demo alone.
        wanted = {"demo", "smoke", "paper"} if stage != "rivals" else {"diffusion", "autoregressive", "diffusion-smoke"}
        assert wanted <= sizes, stage


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_first_line_is_the_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert re.match(r"# (python \w+\.py |make |Values that all stages share)", first), first
    named = re.findall(r"configs/\S+\.yaml", first)
    assert all(Path(name).is_file() for name in named)
    if path in TRAINING:
        assert named[0] == str(path)


@pytest.mark.parametrize("path", TRAINING, ids=str)
def test_it_loads_and_builds(path: Path) -> None:
    cfg = load_config([str(path)])
    assert cfg.stage == path.parts[1]
    assert cfg.name == path.stem
    assert yaml.safe_load(to_yaml(cfg))["stage"] == cfg.stage
    assert count_parameters(build_on_meta(cfg))[0] > 0


def test_the_cluster() -> None:
    assert load_typed(SlurmConfig, ["configs/cluster/slurm.yaml"]) == SlurmConfig()  # it says what the defaults are


def test_the_sizes_of_the_paper() -> None:
    tokenizer = load_config(["configs/vqvae/paper.yaml"])
    assert (tokenizer.model.network.num_quantizers, tokenizer.model.network.codebook_size) == (6, 512)
    assert (tokenizer.data.num_frames, tokenizer.data.stride, tokenizer.model.num_keys) == (200, 10, 20)

    director = load_config(["configs/llm/paper.yaml"])
    assert director.trainer.strategy == "deepspeed_stage_3"
    assert count_parameters(build_on_meta(director))[0] == pytest.approx(8.05e9, rel=0.01)  # Llama 3 8B, every one

    alone = load_config(["configs/llm/paper_1gpu.yaml"])
    assert alone.model.architecture == director.model.architecture
    batches = [c.data.batch_size * c.trainer.devices * c.trainer.accumulate for c in (director, alone)]
    assert batches[0] == batches[1]
    memory = sum(estimate_memory(count_parameters(build_on_meta(alone))[0], 0, alone.trainer).values())
    assert 120 * GIB < memory < 130 * GIB  # of the 139 GiB of an H200


def test_smollm2() -> None:
    """Its own 134.5 M parameters, and rows for the scene tokens in its one table."""
    config = load_config(["configs/llm/smollm2.yaml"])
    assert count_parameters(build_on_meta(config))[0] == 134_515_008 + 576 * (4 + 20 + 256 + 6 * 512)
