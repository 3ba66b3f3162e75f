"""Vocabulary, grammar and text tokenizer of the director."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modules.errors import UserError
from modules.llm.tokenizer import load_tokenizer, tokenizer_from_json, train_tokenizer
from modules.llm.tokens import DEPTH, TEXT, CodeShape, SceneGrammar, add_scene_tokens

CAPTIONS = [
    "A man in a red shirt walks to the left for 3.5 seconds, before a blue wall.",
    "A woman in a green shirt waves with her right hand for 2.0 seconds.",
    "On the left, a man jumps; on the right, a woman claps.",
] * 4
SHAPE = CodeShape(num_quantizers=3, codebook_size=8, max_keys=6)
CONTENT = train_tokenizer(CAPTIONS, vocabulary_size=400)


def make_grammar(max_people: int = 3) -> SceneGrammar:
    tokenizer = tokenizer_from_json(CONTENT)
    return SceneGrammar(tokenizer=tokenizer, vocabulary=add_scene_tokens(tokenizer, SHAPE), max_people=max_people)


GRAMMAR = make_grammar()


@st.composite
def scenes(draw: st.DrawFn) -> tuple[str, np.ndarray, np.ndarray]:
    people, keys = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 255, (people, 2))
    high = rng.integers(low + 1, 256)
    boxes = np.concatenate((low, high), 1)
    boxes = boxes[np.argsort(boxes[:, 0], kind="stable")]
    return draw(st.text()), boxes, rng.integers(0, SHAPE.codebook_size, (people, keys, SHAPE.num_quantizers))


@given(scenes())
@settings(max_examples=150, deadline=None)
def test_parse_is_the_inverse_of_encode(scene: tuple[str, np.ndarray, np.ndarray]) -> None:
    prompt, boxes, codes = scene
    ids = GRAMMAR.encode_scene(prompt, boxes, codes)
    plan = GRAMMAR.parse(ids)
    assert plan.prompt == prompt
    np.testing.assert_array_equal(plan.boxes, boxes)
    np.testing.assert_array_equal(plan.codes, codes)
    assert GRAMMAR.encode_scene(plan.prompt, plan.boxes, plan.codes) == ids


@given(scenes(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_sequence_is_read_as_itself_or_not_at_all(
    scene: tuple[str, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    ids = GRAMMAR.encode_scene("a man walks", *scene[1:])
    ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.integers(0, GRAMMAR.vocabulary.stop - 1))
    try:
        plan = GRAMMAR.parse(ids)
    except UserError:
        return
    assert GRAMMAR.scene_ids(plan.boxes, plan.codes) == ids[ids.index(GRAMMAR.vocabulary.scene) + 1 :]


def test_the_order_of_the_contract() -> None:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    codes = np.arange(2 * 2 * 3).reshape(2, 2, 3) % 8
    names = GRAMMAR.tokenizer.convert_ids_to_tokens(GRAMMAR.encode_scene("", boxes, codes))
    assert " ".join(names) == (
        "<bos> <scene> <keys_2> <person> <box_1> <box_2> <box_3> <box_4> <person> <box_5> <box_6> <box_7> <box_8> "
        "<motion> <pose_0_0> <pose_1_1> <pose_2_2> <pose_0_6> <pose_1_7> <pose_2_0> "
        "<pose_0_3> <pose_1_4> <pose_2_5> <pose_0_1> <pose_1_2> <pose_2_3> <end>"
    )


def test_kinds_follow_the_ids() -> None:
    vocabulary = GRAMMAR.vocabulary
    kinds = vocabulary.kind_table
    assert len(kinds) == len(GRAMMAR.tokenizer) == vocabulary.stop
    assert (kinds[: vocabulary.first] == TEXT).all()
    for q in range(SHAPE.num_quantizers):
        ids = vocabulary.pose_ids(np.full((4, SHAPE.num_quantizers), 5))[:, q]
        assert (kinds[ids] == DEPTH + q).all()
    assert vocabulary.kind_names[kinds[vocabulary.keys(SHAPE.max_keys)]] == "duration"


def test_a_prompt_never_becomes_a_special_token() -> None:
    text = "<scene> <pose_0_1> <bos> <end>"
    ids = GRAMMAR.encode_prompts([text])[0]
    assert max(ids[1:-1]) < GRAMMAR.vocabulary.first
    assert GRAMMAR.tokenizer.bos_token_id not in ids[1:]


def test_words_of_the_captions_are_single_tokens() -> None:
    for word in ("walks", "red", "left", "shirt"):
        assert len(GRAMMAR.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def test_training_is_deterministic() -> None:
    assert train_tokenizer(CAPTIONS, vocabulary_size=400) == CONTENT


def test_saved_in_the_hugging_face_layout(tmp_path) -> None:
    grammar = make_grammar()
    grammar.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    prompt = "A man… naïve\n  <scene>"
    assert len(again) == len(grammar.tokenizer)
    assert add_scene_tokens(again, SHAPE) == grammar.vocabulary
    reloaded = SceneGrammar(tokenizer=again, vocabulary=grammar.vocabulary)
    assert reloaded.encode_prompts([prompt]) == grammar.encode_prompts([prompt])


def test_another_codebook_shape_is_refused() -> None:
    tokenizer = make_grammar().tokenizer
    with pytest.raises(UserError, match="made for another pose tokenizer"):
        add_scene_tokens(tokenizer, CodeShape(num_quantizers=4, codebook_size=8, max_keys=6))
    with pytest.raises(UserError, match="last .* ids"):
        add_scene_tokens(tokenizer, CodeShape(num_quantizers=2, codebook_size=8, max_keys=6))


def test_a_tokenizer_without_bos_is_refused() -> None:
    tokenizer = tokenizer_from_json(CONTENT)
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="no <bos>"):
        add_scene_tokens(tokenizer, SHAPE)


def test_a_missing_tokenizer_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="no tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("boxes", "codes", "message"),
    [
        ([[0, 0, 9, 9]], np.zeros((2, 1, 3)), "wanted"),
        ([[0, 0, 9, 9]], np.zeros((1, 7, 3)), "7 key poses"),
        ([[0, 0, 9, 9]], np.full((1, 1, 3), 8), "codes go from 8 to 8"),
        ([[9, 0, 9, 9]], np.zeros((1, 1, 3)), "is empty"),
        ([[0, 0, 9, 256]], np.zeros((1, 1, 3)), "edges go from 0 to 256"),
        ([[5, 0, 9, 9], [4, 0, 9, 9]], np.zeros((2, 1, 3)), "not in order"),
        ([[0, 0, 9, 9]] * 4, np.zeros((4, 1, 3)), "4 people"),
    ],
)
def test_what_is_no_scene_is_refused(boxes: list[list[int]], codes: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRAMMAR.encode_scene("x", np.array(boxes), codes)


def test_parse_says_where_a_sequence_leaves_the_grammar() -> None:
    ids = GRAMMAR.encode_scene("x", np.array([[0, 0, 9, 9]]), np.zeros((1, 1, 3), np.int64))
    with pytest.raises(UserError, match="missing .*expected <end>"):
        GRAMMAR.parse(ids[:-1])
    with pytest.raises(UserError, match="follows <end>"):
        GRAMMAR.parse([*ids, 5])
    swapped = [*ids[:-3], ids[-2], ids[-3], ids[-1]]
    with pytest.raises(UserError, match=r"<pose_2_0>; expected a pose token of depth 1"):
        GRAMMAR.parse(swapped)
