"""The depth head: six ids from one step, in training, decoding, exports and checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from modules.errors import UserError
from modules.llm.config import DepthHeadConfig, LLMConfig
from modules.llm.decoding import FREE, Sampling, SamplingConfig
from modules.llm.depth import DEPTH_FILE, DepthHead, embed_slots
from modules.llm.director import Director
from modules.llm.module import LLMModule
from modules.llm.tokens import DEPTH, CodeShape, ScenePlan
from tests.unit.test_llm_module import (  # noqa: F401  # vqvae is a fixture
    fit,
    make_batch,
    make_clips,
    make_config,
    make_module,
    true_sequences,
    vqvae,
)

HEAD = DepthHeadConfig(num_layers=2, width=16)


def config_with_head(vqvae: Path, **changes: Any) -> LLMConfig:  # noqa: F811
    return make_config(vqvae, depth_head=HEAD, **changes)


def random_head(seed: int = 0) -> DepthHead:
    torch.manual_seed(seed)
    head = DepthHead(HEAD, hidden_size=12, codes=CodeShape(3, 8, 5))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return head


def test_steps_are_the_whole_and_look_only_back() -> None:
    head, states, codes = random_head(), torch.randn(5, 12), torch.randint(0, 8, (5, 3))
    whole, sums = head(states, codes), head.start(states)
    for depth in range(3):
        torch.testing.assert_close(head.step(sums, depth), whole[:, depth])
        if depth < 2:
            sums = head.add(sums, codes[:, depth], depth)
    changed = codes.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 8
    other = head(states, changed)
    assert torch.equal(other[:, :2], whole[:, :2])
    assert not torch.allclose(other[:, 2], whole[:, 2])


def test_one_id_alone_has_its_own_row() -> None:
    table = torch.randn(20, 4)
    ids = torch.tensor([[3, -1, -1], [4, 5, 6], [-1, -1, -1]])
    found = embed_slots(lambda i: torch.nn.functional.embedding(i, table), ids)
    assert torch.equal(found[0], table[3])
    torch.testing.assert_close(found[1], table[4:7].sum(0) / 3**0.5)
    assert (found[2] == 0).all()


def test_losses_are_those_of_each_scene_alone(vqvae: Path) -> None:  # noqa: F811
    """Packed, and every depth, against plain transformers fed with one scene."""
    module = make_module(config_with_head(vqvae, pack_length=200))
    assert module.depth_head is not None
    torch.nn.init.normal_(module.depth_head.layers[0].down.weight, std=0.3)  # it starts at zero
    numbers, vocabulary = [0, 1, 2], module.grammar.vocabulary
    plain = LlamaForCausalLM(module.network.config)
    plain.load_state_dict(module.network.state_dict())
    plain.set_attn_implementation("eager")
    expected = []
    with torch.no_grad():
        step = module.model_step(make_batch(module, numbers))
        for sequence in true_sequences(module, numbers):
            ids = torch.tensor(sequence)
            posed = ids >= vocabulary.pose_start
            first = int(posed.nonzero()[0])
            poses = ids[posed].view(-1, 3)  # (K * P, Q) in the grammar's order
            table = plain.get_input_embeddings().weight
            rows = torch.cat([table[ids[:first]], table[poses].sum(1) / 3**0.5, table[ids[-1:]]])
            states = plain.model(inputs_embeds=rows[None]).last_hidden_state[0]
            logits = module.depth_head(states[first - 1 : first - 1 + len(poses)], vocabulary.codes_of(poses))
            expected.append(torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), vocabulary.codes_of(poses).flatten(), reduction="none").view_as(poses))
    for depth in range(3):
        mine, wanted = step.losses[step.kinds == DEPTH + depth], torch.cat(expected)[:, depth]
        torch.testing.assert_close(mine.sort().values, wanted.sort().values, rtol=1e-4, atol=1e-5)


def test_it_learns_and_resumes_bitwise(vqvae: Path, tmp_path: Path) -> None:  # noqa: F811
    ends = []
    for stop in (6, None):
        module = LLMModule(dataclasses.asdict(config_with_head(vqvae)), max_steps=9)
        torch.manual_seed(0)
        module.setup_data(make_clips)
        trainer = fit(module, stop or 9, tmp_path)
        if stop is not None:
            first = trainer.callback_metrics["train/loss"]
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            module = LLMModule(dataclasses.asdict(config_with_head(vqvae)), max_steps=9)
            trainer = fit(module, 9, tmp_path, tmp_path / "a.ckpt")
            assert trainer.callback_metrics["train/loss"] < first
            assert {"val/loss_depth0", "val/loss_depth2", "val/loss_box"} <= trainer.callback_metrics.keys()
        ends.append(module)
    states = [end.state_dict() for end in ends]
    assert any(name.startswith("depth_head.layers") for name in states[0])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.fixture(scope="module")
def exported(vqvae: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LLMModule, Path]:  # noqa: F811
    module = make_module(config_with_head(vqvae))
    assert module.depth_head is not None
    torch.nn.init.normal_(module.depth_head.head, std=0.5)
    path = tmp_path_factory.mktemp("llm") / "export"
    module.export(path, {"step": 3})
    return module, path


def test_the_export_is_a_plain_llama_and_a_head(exported: tuple[LLMModule, Path], tmp_path: Path) -> None:
    module, path = exported
    network = AutoModelForCausalLM.from_pretrained(path)
    assert type(network) is LlamaForCausalLM
    for name, value in network.state_dict().items():
        assert torch.equal(value, module.network.state_dict()[name])
    director = Director.from_export(path)
    (mine,), (other,) = (d.plan(["two people"], seeds=4, num_people=2) for d in (director, module.director()))
    np.testing.assert_array_equal(mine.codes, other.codes)
    (path / DEPTH_FILE).rename(tmp_path / "away")
    with pytest.raises(UserError, match=f"{DEPTH_FILE} cannot be read"):
        Director.from_export(path)
    (tmp_path / "away").rename(path / DEPTH_FILE)


def test_scenes_are_valid_and_do_not_depend_on_the_batch(exported: tuple[LLMModule, Path]) -> None:
    director = Director.from_export(exported[1])
    hot = Sampling(temperature=1.5)
    sampling = SamplingConfig(hot, hot, hot, hot, hot)
    prompts, people = ["a man", "two people wave", "x", "y"] * 4, [1, 2, 3, None] * 4
    plans = director.plan(prompts, num_people=people, seeds=3, sampling=sampling)  # parse() raises otherwise
    assert {plan.num_people for plan in plans} == {1, 2, 3}
    (alone,) = director.plan(prompts[4:5], num_people=people[4], seeds=7, sampling=sampling)
    np.testing.assert_array_equal(alone.codes, plans[4].codes)
    np.testing.assert_array_equal(alone.boxes, plans[4].boxes)


def test_going_on_and_forced_ids(exported: tuple[LLMModule, Path]) -> None:
    director = Director.from_export(exported[1])
    (whole,) = director.plan(["a man walks"], num_people=2, num_keys=6, seeds=3)
    for key in range(1, 6):
        start = ScenePlan(whole.prompt, whole.boxes, whole.codes[:, :key])
        (again,) = director.plan(["a man walks"], keys=[start], num_keys=6, seeds=3)
        np.testing.assert_array_equal(again.codes, whole.codes)  # the same random numbers at the same places
    codes = whole.codes[:, :3].copy()
    codes[1], codes[0, 1, 1:] = FREE, FREE  # the second person, and the fine depths of a key pose
    seen = []
    (free,) = director.plan(["a man walks"], keys=[ScenePlan("", whole.boxes, codes)], num_keys=6, seeds=9,
                            on_key=lambda plan: seen.append(plan.num_keys))  # fmt: skip
    np.testing.assert_array_equal(free.codes[0, 0], codes[0, 0])
    np.testing.assert_array_equal(free.codes[0, 2], codes[0, 2])
    assert free.codes[0, 1, 0] == codes[0, 1, 0]
    assert seen == sorted(set(seen))
    assert seen[-1] == 6


def test_bad_numbers() -> None:
    with pytest.raises(UserError, match="depth_head has -1 layers"):
        DepthHeadConfig(num_layers=-1)
