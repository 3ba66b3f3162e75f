"""Scores of given scenes, the bigram beside them, and the tables made of both."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from configs.eval_schema import EvalOptions
from modules.checkpoint import load_frozen
from modules.errors import UserError
from modules.evaluation import llm_details
from modules.evaluation.llm import next_tokens
from modules.evaluation.llm_details import Example, examples, grammar_table, read_paraphrases, spread, text_table
from modules.evaluation.pictures import write_comparisons, written
from modules.llm.config import DepthHeadConfig
from modules.llm.decoding import SamplingConfig
from modules.llm.scoring import SceneScore, score_scenes
from modules.llm.tokens import DEPTH
from modules.metrics.bigram import CONTEXTS, Bigram, places
from modules.pipeline import Pipeline, PipelineConfig
from tests.unit.test_llm_module import (  # noqa: F401  # vqvae is a fixture
    make_batch,
    make_clips,
    make_config,
    make_module,
    vqvae,
)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.llm.scoring.native_bfloat16", lambda _: False)


@pytest.mark.parametrize("layers", [0, 1])
def test_scores_are_the_losses_of_training(vqvae: Path, layers: int) -> None:  # noqa: F811
    module = make_module(make_config(vqvae, loss_on="scene", depth_head=DepthHeadConfig(num_layers=layers, width=16)))
    batch = make_batch(module, [0, 1, 2, 3])
    with torch.no_grad():
        expected = module.model_step(batch)
    director = module.director()
    found = examples(director, load_frozen(vqvae, "vqvae"), make_clips()[:4])
    prompts = director.grammar.encode_prompts([example.caption for example in found])
    scores = list(score_scenes(director, prompts, [example.scene for example in found], batch_tokens=150))
    kinds = np.concatenate([director.grammar.vocabulary.kind_table[example.scene] for example in found])
    losses = np.concatenate([score.losses for score in scores])
    for kind in set(kinds.tolist()):
        wanted = expected.losses[expected.kinds == kind].numpy()
        np.testing.assert_allclose(np.sort(losses[kinds == kind]), np.sort(wanted), rtol=1e-4, atol=1e-5)
    pipeline = Pipeline(PipelineConfig())
    pipeline.director, pipeline.tokenizer = director, load_frozen(vqvae, "vqvae")  # type: ignore[assignment]
    table = next_tokens(pipeline, make_clips()[:4])
    for row in table.rows:
        kind = director.grammar.vocabulary.kind_names.index(row.name)
        wanted = expected.losses[expected.kinds == kind].mean()
        assert row.values["cross-entropy"] == pytest.approx(float(wanted), rel=1e-4)


def test_first_choices_are_those_of_transformers(vqvae: Path) -> None:  # noqa: F811
    module = make_module(make_config(vqvae))
    plain = LlamaForCausalLM(module.network.config).eval()
    plain.load_state_dict(module.network.state_dict())
    director = module.director()
    (example,) = examples(director, load_frozen(vqvae, "vqvae"), make_clips()[1:2])
    (prompt,) = director.grammar.encode_prompts([example.caption])
    (score,) = score_scenes(director, [prompt], [example.scene])
    plain.set_attn_implementation("eager")  # the two share their configuration
    logits = plain(torch.tensor([prompt + example.scene])).logits[0, len(prompt) - 1 : -1]
    assert score.firsts.tolist() == logits.argmax(-1).tolist()


def test_the_bigram_is_a_distribution_at_every_place(vqvae: Path) -> None:  # noqa: F811
    module = make_module(make_config(vqvae))
    vocabulary = module.grammar.vocabulary
    scenes = [e.scene for e in examples(module.director(), load_frozen(vqvae, "vqvae"), make_clips())]
    for context in CONTEXTS:
        bigram = Bigram(vocabulary, context).fit(scenes[:4])
        for place in places(scenes[5], vocabulary):
            block = [i for i in range(vocabulary.stop) if vocabulary.kind_table[i] == place.kind]
            if place.token == vocabulary.end:
                block = [vocabulary.end]
            elif place.kind < DEPTH and place.size == 2:
                block = [vocabulary.person, vocabulary.motion]
            total = sum(bigram.probability(dataclasses.replace(place, token=token)) for token in block)
            assert total == pytest.approx(1)
        # It has learned something: scenes that it knows are likelier than at equal shares.
        equal = [math.log(place.size) for place in places(scenes[0], vocabulary)]
        assert sum(bigram.losses(scenes[0])) < 0.8 * sum(equal)


def test_the_key_before_is_that_of_the_same_person_and_depth(vqvae: Path) -> None:  # noqa: F811
    grammar = make_module(make_config(vqvae)).grammar
    codes = np.arange(2 * 3 * 3).reshape(2, 3, 3) % 8
    scene = grammar.scene_ids(np.array([[0, 0, 9, 9], [1, 1, 9, 9]]), codes)
    found = [place for place in places(scene, grammar.vocabulary) if place.kind >= DEPTH]
    ids = grammar.vocabulary.pose_ids(codes)
    wanted = [-1 if key == 0 else int(ids[p, key - 1, q]) for key in range(3) for p in range(2) for q in range(3)]
    assert [place.above for place in found] == wanted


def test_rank_and_gap(vqvae: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """By a director that finds a scene likelier the nearer the caption's number is to its own, with one mistake."""
    director = make_module(make_config(vqvae)).director()
    start = director.grammar.vocabulary.pose_start
    keys = director.grammar.vocabulary.keys_start
    held_out = [Example(f"caption {n}", [keys, start + n], 1, n > 5) for n in range(8)]

    def score(_: object, pairs: list[tuple[str, list[int]]]) -> list[SceneScore]:
        far = [abs(int(caption.split()[-1]) - scene[1] + start) for caption, scene in pairs]
        worse = [5.5 if caption == "caption 3" and scene[1] == start + 3 else 0 for caption, scene in pairs]
        # The duration alone would give it away, and does not count.
        return [SceneScore(np.array([100 * a, a + b]), np.array([0, 0])) for a, b in zip(far, worse, strict=True)]

    monkeypatch.setattr(llm_details, "_score", score)
    table = text_table(director, held_out, {"caption 1": "in other words, caption 1"})
    rows = {row.name: row.values for row in table.rows}
    assert rows["all"]["rank"] == pytest.approx((7 * 1 + 8) / 8)
    assert rows["all"]["by chance"] == 4.5
    assert rows["all"]["first"] == pytest.approx(7 / 8)
    assert rows["all"]["loss, own caption"] == pytest.approx(5.5 / 8)
    assert rows["held-out phrasing"]["clips"] == 2
    assert set(rows) == {"all", "known phrasing", "held-out phrasing"}  # one caption has no others to be held against


def test_clips_are_spread_over_captions() -> None:
    group = [Example(caption, [i], 1, False) for i, caption in enumerate("aaaabbc")]
    assert [example.scene[0] for example in spread(group, 5)] == [0, 4, 6, 1, 5]


def test_the_table_of_the_grammar_counts_choices(vqvae: Path) -> None:  # noqa: F811
    module = make_module(make_config(vqvae))
    director = module.director()
    held_out = examples(director, load_frozen(vqvae, "vqvae"), make_clips())
    table = grammar_table(director, held_out, SamplingConfig(), 0)
    rows = {row.name: row.values for row in table.rows}
    assert rows["all"]["choices"] == sum(values["choices"] for name, values in rows.items() if name != "all")
    assert rows["duration"]["choices"] == len(held_out)
    assert rows["residual"]["choices"] == 2 * rows["pose"]["choices"]
    assert 0.5 < rows["all"]["first choice forbidden"] <= 1  # untrained, over a vocabulary of 600
    assert "number of people" in table.notes[-1]


def test_pictures_of_different_captions(vqvae: Path, tmp_path: Path) -> None:  # noqa: F811
    module = make_module(make_config(vqvae))
    pipeline = Pipeline(PipelineConfig())
    pipeline.director, pipeline.tokenizer = module.director(), load_frozen(vqvae, "vqvae")  # type: ignore[assignment]
    clips = make_clips()
    found = written(pipeline, [*clips, *clips], 3, seed=0)
    assert [next(iter(scenes)) for _, scenes in found] == [clips[n].caption for n in (0, 2, 4)]
    assert all(scenes["director"].num_frames >= 1 for _, scenes in found)
    assert written(pipeline, clips, 0, seed=0) == []
    assert len({scene.num_frames for _, scenes in found for scene in scenes.values()}) > 1
    write_comparisons(tmp_path, found)  # also of scenes that differ in length
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.mp4"))) == 3


def test_bad_paraphrases(tmp_path: Path) -> None:
    assert read_paraphrases("") == {}
    with pytest.raises(UserError, match="cannot be read"):
        read_paraphrases(str(tmp_path / "none.json"))
    (tmp_path / "a.json").write_text('["a"]')
    with pytest.raises(UserError, match="is not of the form"):
        read_paraphrases(str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{"a": "b"}')
    assert read_paraphrases(str(tmp_path / "a.json")) == {"a": "b"}


def test_nothing_to_score() -> None:
    with pytest.raises(UserError, match="evaluator=none leaves nothing"):
        EvalOptions(evaluator="none")
