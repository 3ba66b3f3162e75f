"""Decoding: valid by construction, the same as plain transformers, and independent of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from modules.errors import UserError
from modules.llm.cached import CachedLlama
from modules.llm.config import ArchitectureConfig
from modules.llm.decoding import FREE, Request, Sampling, SamplingConfig, decode, draw
from modules.llm.director import Director
from modules.llm.network import random_network
from modules.llm.tokenizer import tokenizer_from_json, train_tokenizer
from modules.llm.tokens import CodeShape, SceneGrammar, ScenePlan, add_scene_tokens

SHAPE = CodeShape(num_quantizers=3, codebook_size=8, max_keys=5)
PROMPTS = ["a man walks", "two people: a woman waves and, beside her, a man jumps", "x"]


def make_director(max_people: int = 3, context: int = 160) -> Director:
    tokenizer = tokenizer_from_json(train_tokenizer(PROMPTS * 2, vocabulary_size=300))
    vocabulary = add_scene_tokens(tokenizer, SHAPE)
    grammar = SceneGrammar(tokenizer=tokenizer, vocabulary=vocabulary, max_people=max_people)
    torch.manual_seed(0)
    numbers = ArchitectureConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=context, initializer_range=0.3,
    )  # fmt: skip
    network = random_network(architecture=numbers, vocabulary=vocabulary, bos=tokenizer.bos_token_id).eval()
    return Director(network=network, grammar=grammar, stride=10, fps=30.0)


DIRECTOR = make_director()
GRAMMAR, NETWORK = DIRECTOR.grammar, DIRECTOR.network


def same(first: ScenePlan, second: ScenePlan) -> bool:
    return np.array_equal(first.boxes, second.boxes) and np.array_equal(first.codes, second.codes)


def test_an_untrained_model_writes_only_scenes() -> None:
    hot = Sampling(temperature=1.5)
    sampling = SamplingConfig(hot, hot, hot, hot, hot)
    plans = DIRECTOR.plan(PROMPTS * 334, sampling=sampling, batch_size=167)  # parse() raises where one is no scene
    assert len(plans) > 1000
    assert {plan.num_people for plan in plans} == {1, 2, 3}
    assert {plan.num_keys for plan in plans} == set(range(1, SHAPE.max_keys + 1))


@st.composite
def constraints(draw_: st.DrawFn) -> dict:
    keys = draw_(st.none() | st.integers(1, SHAPE.max_keys))
    if draw_(st.booleans()):
        return {"num_keys": keys, "num_people": draw_(st.none() | st.integers(1, 3))}
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    people = draw_(st.integers(1, 3))
    low = rng.integers(0, 255, (people, 2))
    boxes = np.concatenate((low, rng.integers(low + 1, 256)), 1)
    boxes = boxes[np.argsort(boxes[:, 0], kind="stable")]
    return {"num_keys": keys, "boxes": np.where(rng.random(boxes.shape) < 0.5, boxes, FREE)}


@given(constraints(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_constraint_is_kept(wanted: dict, seed: int) -> None:
    (plan,) = DIRECTOR.plan(["a man"], seeds=seed, **{k: [v] for k, v in wanted.items()})
    if wanted["num_keys"] is not None:
        assert plan.num_keys == wanted["num_keys"]
    if wanted.get("num_people") is not None:
        assert plan.num_people == wanted["num_people"]
    if wanted.get("boxes") is not None:
        free = wanted["boxes"] == FREE
        np.testing.assert_array_equal(np.where(free, FREE, plan.boxes), wanted["boxes"])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    together = DIRECTOR.plan(PROMPTS, seeds=[5, 6, 7], num_people=[1, 2, 3])
    for prompt, seed, people, plan in zip(PROMPTS, [5, 6, 7], [1, 2, 3], together, strict=True):
        (alone,) = DIRECTOR.plan([prompt], seeds=[seed], num_people=people)
        assert same(alone, plan)
        assert plan.prompt == prompt
        assert plan.info["seed"] == seed
    assert not same(together[1], DIRECTOR.plan([PROMPTS[1]], seeds=[8])[0])


def test_going_on_from_key_poses() -> None:
    (whole,) = DIRECTOR.plan(["a man walks"], num_people=2, num_keys=5, seeds=3)
    start = ScenePlan(whole.prompt, whole.boxes, whole.codes[:, :2])
    (again,) = DIRECTOR.plan(["a man walks"], keys=[start], num_keys=5, seeds=3)
    assert same(again, whole)  # the same random numbers at the same places
    (other,) = DIRECTOR.plan(["a man walks"], keys=[start], num_keys=5, seeds=4)
    np.testing.assert_array_equal(other.codes[:, :2], whole.codes[:, :2])
    assert not same(other, whole)
    with pytest.raises(UserError, match="num_keys is 1, but there are 2"):
        DIRECTOR.plan(["a man walks"], keys=[start], num_keys=1)


def test_against_transformers_generate() -> None:
    """Greedy decoding gives the ids of `generate` with the same grammar as a prefix function."""
    greedy = Sampling(temperature=0)
    prompts = GRAMMAR.encode_prompts(PROMPTS)
    mine = decode(
        NETWORK, [Request(ids, num_keys=3, num_people=2) for ids in prompts], vocabulary=GRAMMAR.vocabulary,
        max_people=3, sampling=SamplingConfig(greedy, greedy, greedy, greedy, greedy),
    )  # fmt: skip
    plain = LlamaForCausalLM(NETWORK.config).eval()
    plain.load_state_dict(NETWORK.state_dict())
    plain.set_attn_implementation("sdpa")
    for ids, scene in zip(prompts, mine, strict=True):

        def allowed(_: int, sequence: torch.Tensor, start: int = len(ids)) -> list[int]:
            return allowed_ids(sequence[start:].tolist())

        out = plain.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, use_cache=True,
            max_new_tokens=len(scene), prefix_allowed_tokens_fn=allowed, eos_token_id=GRAMMAR.vocabulary.end,
            pad_token_id=1,
        )  # fmt: skip
        assert out[0, len(ids) :].tolist() == scene


def allowed_ids(scene: list[int]) -> list[int]:
    """The grammar for 2 people and 3 keys, written once more and plainly."""
    vocabulary, place = GRAMMAR.vocabulary, len(scene)
    if place == 0:
        return [vocabulary.keys(3)]
    if place in (1, 6):
        return [vocabulary.person]
    if place == 11:
        return [vocabulary.motion]
    if place < 11:
        edge = (place - 2) % 5
        last = [token - vocabulary.box_start for token in scene]
        low = {0: last[2] if place == 7 else 0, 1: 0, 2: last[place - 2] + 1, 3: last[place - 2] + 1}[edge]
        return list(range(vocabulary.box_start + low, vocabulary.box_start + (255 if edge < 2 else 256)))
    if place == 12 + 2 * 3 * 3:
        return [vocabulary.end]
    start = vocabulary.pose_start + (place - 12) % 3 * SHAPE.codebook_size
    return list(range(start, start + SHAPE.codebook_size))


def test_cache_fed_in_pieces_equals_one_pass() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, GRAMMAR.vocabulary.stop, length).tolist() for length in (13, 9, 17)]
    llama = CachedLlama(NETWORK, batch=3, capacity=20)
    hidden = torch.zeros(3, 32)
    with torch.inference_mode():
        for step in range(5):
            parts = [np.array_split(row, 5)[step].tolist() for row in rows]
            width = max(map(len, parts))
            ids = torch.tensor([part + [0] * (width - len(part)) for part in parts])
            hidden = llama.extend(llama.embed(ids), [len(part) for part in parts])
        plain = LlamaForCausalLM(NETWORK.config).eval()
        plain.load_state_dict(NETWORK.state_dict())
        plain.set_attn_implementation("eager")
        for row, mine in zip(rows, hidden, strict=True):
            torch.testing.assert_close(
                mine, plain.model(torch.tensor([row])).last_hidden_state[0, -1], rtol=1e-4, atol=1e-5
            )


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, float("-inf"), 2.0])
    uniform = (torch.arange(20000) + 0.5) / 20000

    def shares(settings_: Sampling) -> torch.Tensor:
        return torch.bincount(draw(logits.expand(20000, 5), uniform, settings_), minlength=5) / 20000

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(-1)
        torch.testing.assert_close(shares(Sampling(temperature)), expected, atol=2e-4, rtol=0)
    assert shares(Sampling(0)).tolist() == [0, 0, 0, 0, 1]
    assert (shares(Sampling(top_k=2)) > 0).tolist() == [True, False, False, False, True]
    assert (shares(Sampling(top_p=0.6)) > 0).tolist() == [False, False, False, False, True]
    assert (shares(Sampling(top_p=0.7)) > 0).tolist() == [True, False, False, False, True]


def test_an_id_may_be_forced_anywhere() -> None:
    vocabulary = GRAMMAR.vocabulary
    prompt = GRAMMAR.encode_prompts(["a man"])[0]
    place = 1 + 5 + 1 + 4  # duration, one person, <motion>; depth 1 of the second key
    (scene,) = decode(
        NETWORK, [Request(prompt, num_people=1, num_keys=3, forced={place: vocabulary.pose_start + 13})],
        vocabulary=vocabulary, max_people=3,
    )  # fmt: skip
    assert GRAMMAR.parse(prompt + scene).codes[0, 1, 1] == 5
    wrong = Request(prompt, num_people=1, num_keys=3, forced={place: 0})
    with pytest.raises(UserError, match="forced at place 11 .* cannot stand there"):
        decode(NETWORK, [wrong], vocabulary=vocabulary, max_people=3)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt 1 of 1 is empty"),
        (" \n", {}, "is empty"),
        ("a man walks " * 800, {}, "shorten it"),
        ("x", {"num_people": 4}, "allowed are 1 to 3"),
        ("x", {"num_keys": 6}, "allowed are 1 to 5"),
        ("x", {"boxes": [np.array([[9, 0, 3, 5]])]}, "is empty"),
        ("x", {"boxes": [np.array([[9, 0, 12, 5], [-1, 0, 9, 5]])]}, "is empty"),
        ("x", {"boxes": [np.array([[0, 0, 1, 1]])], "num_people": 2}, "boxes for 1"),
        ("x", {"num_people": [1, 2]}, "2 values for 1 prompts"),
    ],
)
def test_bad_requests(prompt: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        DIRECTOR.plan([prompt], **options)
    assert "\n" not in str(raised.value)


def test_bad_sampling() -> None:
    with pytest.raises(UserError, match="temperature -1"):
        Sampling(temperature=-1)
