"""Runs of a tiny director, in one process or under DeepSpeed on two."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from datamodules.synthetic.build import SyntheticConfig, build
from datamodules.webdataset import iter_clips
from modules.checkpoint import save_export
from modules.llm.tokenizer import tokenizer_from_json, train_tokenizer
from modules.vqvae.config import NetworkConfig, VQVAEConfig
from modules.vqvae.network import PoseTokenizer

ROOT = Path(__file__).parents[2]
COMMON = (
    "data.batch_size=4", "model.embedding_init=mean", "model.optim.muon_lr=0", "model.optim.lr=3e-3",
    "model.optim.weight_decay=0.3", "model.optim.warmup_steps=2", "model.head_chunk=300", "trainer.max_steps=20",
    "trainer.val_every=10", "trainer.limit_val_batches=1", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.log_every=1", "trainer.gradient_clip=0.5",
)  # fmt: skip
ZERO = ("trainer.strategy=deepspeed_stage_3", "trainer.devices=2", "data.batch_size=2")


@dataclass
class Result:
    """What a run said and left."""

    status: int
    said: str
    folder: Path  # the run's
    noted: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@dataclass
class Director:
    """A folder with data, a pose tokenizer and a Llama checkpoint."""

    path: Path

    def train(self, name: str, *items: str, job: dict[str, list[int]] | None = None) -> Result:
        """Train a run, or go on with it."""
        folder = self.path / "jobs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job or {}))
        (folder / "noted.pt").unlink(missing_ok=True)
        given = {item.partition("=")[0] for item in items}
        keys = [item for item in COMMON if item.partition("=")[0] not in given]
        keys += [f"name={name}", "data.path=data", "model.vqvae=vqvae", "model.pretrained=llama"]
        command = [sys.executable, str(ROOT / "tests/zero/worker.py"), str(folder)]
        command += [str(ROOT / "configs/llm/smoke.yaml"), *keys, *items]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("SLURM_JOB_ID", None)
        done = subprocess.run(
            command, cwd=self.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        noted = torch.load(folder / "noted.pt", weights_only=True) if (folder / "noted.pt").exists() else {}
        return Result(done.returncode, done.stdout, self.path / "runs/llm" / name, noted)


@pytest.fixture(scope="session")
def director(tmp_path_factory: pytest.TempPathFactory) -> Director:
    path = tmp_path_factory.mktemp("zero")
    build(SyntheticConfig(out=str(path / "data"), train=48, val=8, test=0, shard_size=8, workers=1), progress=False)
    torch.manual_seed(0)
    config = VQVAEConfig(
        network=NetworkConfig(num_quantizers=3, codebook_size=8, latent_dim=4, width=8, dilations=[1]), num_keys=20
    )
    network = PoseTokenizer(config.network, config.quantizer)
    network.quantizer.codebooks.normal_()
    save_export(path / "vqvae", stage="vqvae", config=dataclasses.asdict(config), state=network.state_dict(), info={})
    captions = (clip.caption for clip in iter_clips(path / "data", "train"))
    tokenizer = tokenizer_from_json(train_tokenizer(captions, vocabulary_size=300))
    tokenizer.save_pretrained(path / "llama")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
        )
    ).save_pretrained(path / "llama")  # fmt: skip
    return Director(path)


@pytest.fixture(scope="session")
def unbroken(director: Director) -> Callable[..., Result]:
    """A run that nothing happens to, by its settings."""
    known: dict[tuple[str, ...], Result] = {}

    def get(*items: str) -> Result:
        if items not in known:
            known[items] = director.train(f"unbroken{len(known)}", *items)
            assert known[items].status == 0, known[items].said
        return known[items]

    return get
