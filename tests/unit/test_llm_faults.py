"""What a director says to checkpoints, tokenizers, exports and prompts that do not fit (docs/DIRECTOR.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from modules.errors import UserError
from modules.llm.director import Director
from modules.llm.module import LLMModule
from modules.llm.tokenizer import tokenizer_from_json, train_tokenizer
from modules.pipeline import Exports, Pipeline, PipelineConfig
from tests.unit.test_llm_module import (  # noqa: F401  # vqvae is a fixture
    make_batch,
    make_clips,
    make_config,
    make_module,
    save_llama,
    vqvae,
)


@pytest.fixture(scope="module")
def export(vqvae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("llm") / "export"
    make_module(make_config(vqvae)).export(path, {})
    return path


def copied(export: Path, to: Path) -> Path:
    return Path(shutil.copytree(export, to / "export"))


def message(call: object, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_of_another_training(export: Path, tmp_path: Path) -> None:
    path = copied(export, tmp_path)
    other = train_tokenizer([clip.caption for clip in make_clips()] * 2, vocabulary_size=280)
    tokenizer_from_json(other).save_pretrained(path)
    assert "rows for" in (said := message(Director.from_export, path))
    assert "weights and tokenizer are not of one training" in said


def test_codes_of_another_shape(export: Path, tmp_path: Path) -> None:
    path = copied(export, tmp_path)
    content = json.loads((path / "export.json").read_text())
    content["config"]["codes"]["codebook_size"] = 16
    (path / "export.json").write_text(json.dumps(content))
    assert "made for another pose tokenizer" in message(Director.from_export, path)


def test_the_codebook_of_another_pose_tokenizer(export: Path, vqvae: Path, tmp_path: Path) -> None:  # noqa: F811
    other = Path(shutil.copytree(vqvae, tmp_path / "vqvae"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    config = PipelineConfig(exports=Exports(llm=str(export), vqvae=str(other)))
    said = message(lambda: Pipeline.from_exports(config, stages=("vqvae", "llm")))
    assert "was trained with another pose tokenizer than" in said


def test_a_checkpoint_that_is_no_llama(vqvae: Path, tmp_path: Path) -> None:  # noqa: F811
    save_llama(tmp_path, vqvae, 300)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    module = LLMModule(make_config(vqvae, pretrained=str(tmp_path)), max_steps=1)
    module.setup_data(make_clips)
    assert "is a 'gpt2' model; the director needs a Llama" in message(module.setup, "fit")


def test_a_tokenizer_without_a_pad_token_is_as_good(vqvae: Path, tmp_path: Path) -> None:  # noqa: F811
    """Llama 3's has none: rows are padded by what no token sees."""
    losses = []
    for name in ("with", "without"):
        save_llama(tmp_path / name, vqvae, 300)
        if name == "without":
            path = tmp_path / name / "tokenizer_config.json"
            content = json.loads(path.read_text())
            del content["pad_token"]
            path.write_text(json.dumps(content))
        module = make_module(make_config(vqvae, pretrained=str(tmp_path / name), pack_length=1, max_people=2))
        assert (module.tokenizer.pad_token is None) == (name == "without")
        with torch.no_grad():
            losses.append(module.model_step(make_batch(module, [0, 1, 3])).losses)
        module.export(tmp_path / name / "export", {})
        plans = Director.from_export(tmp_path / name / "export").plan(["a man", "two people and more words"], seeds=2)
        losses.append(torch.from_numpy(np.concatenate([plan.codes.ravel() for plan in plans])))
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[3])


def test_a_prompt_longer_than_the_context(export: Path) -> None:
    said = message(Director.from_export(export).plan, ["very long " * 200])
    assert "fit the context of 512: shorten it" in said


def test_a_context_shorter_than_a_scene(vqvae: Path) -> None:  # noqa: F811
    config = make_config(vqvae)
    config.architecture.max_position_embeddings = 64
    module = LLMModule(config, max_steps=1)
    module.setup_data(make_clips)
    said = message(module.setup, "fit")
    assert "the context of the network is 64 tokens" in said
    assert "lower model.max_people" in said
