"""Vocabulary and grammar of a scene: what the director reads and writes.

    <bos> prompt <scene> <keys_K> (<person> x0 y0 x1 y1) x P <motion> key_0 ... key_{K-1} <end>

`key_k` is, for each person in the order of the boxes, Q pose ids (depth 0 .. Q-1). Time comes before person, so that
"from key k on" is a plain prefix, also with several people.

Letters: P persons, K key poses, Q quantisers, V codebook size, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from modules.errors import UserError
from modules.pose.boxes import BOX_BINS

SCENE, PERSON, MOTION, END = "<scene>", "<person>", "<motion>", "<end>"
STRUCTURE = (SCENE, PERSON, MOTION, END)

# Kinds of tokens, as losses and sampling settings name them; the kind of a pose token is DEPTH + its depth.
TEXT, MARK, DURATION, BOX, DEPTH = range(5)


@dataclass(frozen=True)
class CodeShape:
    """What the director must know of the pose tokenizer; read from its export, never retyped."""

    num_quantizers: int  # Q
    codebook_size: int  # V
    max_keys: int  # key poses in the longest scene

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CodeShape:
        """From the configuration in a `vqvae` export."""
        network = config["network"]
        return cls(network["num_quantizers"], network["codebook_size"], config["num_keys"])


@dataclass(frozen=True)
class SceneVocabulary:
    """Ids of the scene tokens: one block after the text tokens, in the order of `names`."""

    first: int  # id of <scene>
    codes: CodeShape

    @property
    def names(self) -> list[str]:
        """Every token, in the order of the ids."""
        codes = self.codes
        return [
            *STRUCTURE,
            *(f"<keys_{count}>" for count in range(1, codes.max_keys + 1)),
            *(f"<box_{edge}>" for edge in range(BOX_BINS)),
            *(f"<pose_{q}_{code}>" for q in range(codes.num_quantizers) for code in range(codes.codebook_size)),
        ]

    @property
    def scene(self) -> int:
        return self.first

    @property
    def person(self) -> int:
        return self.first + 1

    @property
    def motion(self) -> int:
        return self.first + 2

    @property
    def end(self) -> int:
        return self.first + 3

    @property
    def keys_start(self) -> int:
        return self.first + len(STRUCTURE)

    @property
    def box_start(self) -> int:
        return self.keys_start + self.codes.max_keys

    @property
    def pose_start(self) -> int:
        return self.box_start + BOX_BINS

    @property
    def stop(self) -> int:
        """One past the last id: the size of the whole vocabulary."""
        return self.pose_start + self.codes.num_quantizers * self.codes.codebook_size

    def keys(self, count: int) -> int:
        """Id of the duration of `count` key poses."""
        return self.keys_start + count - 1

    def pose_ids(self, codes: Any) -> Any:
        """Codes (..., Q) int, numpy or torch, to the ids of the pose tokens, in the same shape."""
        depths = np.arange(self.codes.num_quantizers) * self.codes.codebook_size + self.pose_start
        return codes + (depths if isinstance(codes, np.ndarray) else codes.new_tensor(depths))

    def codes_of(self, ids: Any) -> Any:
        """Inverse of `pose_ids`."""
        return (ids - self.pose_start) % self.codes.codebook_size

    @cached_property
    def kind_table(self) -> np.ndarray:
        """(stop,) int64: the kind of every id; all ids below `first` are text."""
        kinds = np.full(self.stop, TEXT, np.int64)
        kinds[self.first : self.keys_start] = MARK
        kinds[self.keys_start : self.box_start] = DURATION
        kinds[self.box_start : self.pose_start] = BOX
        kinds[self.pose_start :] = DEPTH + np.repeat(
            np.arange(self.codes.num_quantizers), self.codes.codebook_size
        )
        return kinds

    @property
    def kind_names(self) -> list[str]:
        """Names of the kinds, for logs."""
        return ["text", "mark", "duration", "box", *(f"depth{q}" for q in range(self.codes.num_quantizers))]


def add_scene_tokens(tokenizer: Any, codes: CodeShape) -> SceneVocabulary:
    """Append the scene tokens to a Hugging Face fast tokenizer, or check those that it has.

    Raises:
        UserError: the tokenizer is not a fast one, has no <bos>, or has scene tokens of another codebook shape.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; the director needs one with a tokenizer.json"
        )
    if tokenizer.bos_token_id is None:
        raise UserError("the tokenizer has no <bos> token; set `bos_token` in its tokenizer_config.json")
    known = tokenizer.get_vocab()
    # A vocabulary with holes would give the new tokens ids in the middle of others' rows.
    first = known.get(SCENE, max(known.values()) + 1)
    vocabulary = SceneVocabulary(first, codes)
    names = vocabulary.names
    missing = [name for name in names if name not in known]
    if missing and len(missing) < len(names):
        raise UserError(
            f"the tokenizer has {len(names) - len(missing)} of the {len(names)} scene tokens of "
            f"{codes.num_quantizers} x {codes.codebook_size} codes and {codes.max_keys} keys; it was made for another "
            "pose tokenizer: name the vqvae export that it was trained with, or a tokenizer without scene tokens"
        )
    if missing:
        from tokenizers import AddedToken

        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    if ids != list(range(first, vocabulary.stop)) or len(tokenizer) > vocabulary.stop:
        raise UserError(
            f"the scene tokens must be the last {len(names)} ids of the tokenizer, in order; "
            "start from a tokenizer without them"
        )
    return vocabulary


@dataclass(eq=False)
class ScenePlan:
    """A scene as the director writes it."""

    prompt: str
    boxes: np.ndarray  # (P, 4) int64 edges 0..255, x0 y0 x1 y1
    codes: np.ndarray  # (P, K, Q) int64, 0..V-1
    info: dict[str, Any] = field(default_factory=dict)  # how it was made (seed, log-probability)

    @property
    def num_people(self) -> int:
        return self.codes.shape[0]

    @property
    def num_keys(self) -> int:
        return self.codes.shape[1]


def scene_length(num_people: int, num_keys: int, num_quantizers: int) -> int:
    """Tokens of a scene after <scene>: duration, boxes, <motion>, key poses, <end>."""
    return 1 + 5 * num_people + 1 + num_keys * num_people * num_quantizers + 1


def check_boxes(boxes: np.ndarray) -> None:
    """Raises UserError unless boxes (P, 4) are on the token grid, not empty, and ordered by the left edge."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"boxes have the shape {boxes.shape}; wanted (people, 4): x0 y0 x1 y1")
    if boxes.size and (boxes.min() < 0 or boxes.max() >= BOX_BINS):
        raise UserError(f"box edges go from {boxes.min()} to {boxes.max()}; allowed are 0 to {BOX_BINS - 1}")
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise UserError(f"box {boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)][0].tolist()} is empty; x1 > x0 and y1 > y0")
    if (np.diff(boxes[:, 0]) < 0).any():
        raise UserError(f"left edges {boxes[:, 0].tolist()} are not in order; sort the people by the left edge")


class SceneGrammar:
    """Encodes scenes to ids and back; `encode_scene` and `parse` are exact inverses.

    The text of a prompt never becomes a special token, whatever it spells. With a byte-level tokenizer (the demo's, or
    Llama 3's) any prompt comes back exactly.
    """

    def __init__(self, *, tokenizer: Any, vocabulary: SceneVocabulary, max_people: int = 4) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.max_people = max_people

    @property
    def longest_scene(self) -> int:
        """Tokens of the longest scene after <scene>."""
        codes = self.vocabulary.codes
        return scene_length(self.max_people, codes.max_keys, codes.num_quantizers)

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """`<bos> prompt <scene>` of each prompt."""
        text = self.tokenizer(
            list(prompts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]
        return [[self.tokenizer.bos_token_id, *ids, self.vocabulary.scene] for ids in text]

    def scene_ids(self, boxes: np.ndarray, codes: np.ndarray) -> list[int]:
        """What follows <scene>.

        Args:
            boxes: (P, 4) int edges, ordered by the left edge.
            codes: (P, K, Q) int.

        Raises:
            UserError: out of range, or shapes that do not agree.
        """
        vocabulary, shape = self.vocabulary, self.vocabulary.codes
        boxes, codes = np.asarray(boxes, np.int64), np.asarray(codes, np.int64)
        if codes.ndim != 3 or codes.shape[2] != shape.num_quantizers or len(codes) != len(boxes):
            raise UserError(
                f"codes have the shape {codes.shape}; wanted ({len(boxes)} people, keys, {shape.num_quantizers})"
            )
        if codes.min(initial=0) < 0 or codes.max(initial=0) >= shape.codebook_size:
            raise UserError(f"codes go from {codes.min()} to {codes.max()}; allowed are 0 to {shape.codebook_size - 1}")
        ids = self.head_ids(boxes, codes.shape[1])
        ids += vocabulary.pose_ids(codes).transpose(1, 0, 2).reshape(-1).tolist()  # (P, K, Q) -> (K, P, Q) -> (L,)
        ids.append(vocabulary.end)
        return ids

    def head_ids(self, boxes: np.ndarray, num_keys: int) -> list[int]:
        """What stands between <scene> and the key poses; errors as `scene_ids`."""
        vocabulary, shape, people = self.vocabulary, self.vocabulary.codes, len(boxes)
        check_boxes(boxes)
        if not 1 <= people <= self.max_people:
            raise UserError(f"the scene has {people} people; allowed are 1 to {self.max_people}")
        if not 1 <= num_keys <= shape.max_keys:
            raise UserError(f"the scene has {num_keys} key poses; allowed are 1 to {shape.max_keys}")
        ids = [vocabulary.keys(num_keys)]
        for box in boxes.tolist():
            ids += [vocabulary.person, *(vocabulary.box_start + edge for edge in box)]
        ids.append(vocabulary.motion)
        return ids

    def encode_scene(self, prompt: str, boxes: np.ndarray, codes: np.ndarray) -> list[int]:
        """The whole sequence of a scene, from <bos> to <end>; arguments and errors as `scene_ids`."""
        return self.encode_prompts([prompt])[0] + self.scene_ids(boxes, codes)

    def parse(self, ids: Iterable[int]) -> ScenePlan:
        """Inverse of `encode_scene`.

        Raises:
            UserError: the ids are not a scene; says at which position and what was expected there.
        """
        sequence = [int(token) for token in ids]
        reader = _Reader(sequence, self.vocabulary)
        reader.expect(self.tokenizer.bos_token_id, "<bos>")
        text = reader.take_text()
        reader.expect(self.vocabulary.scene, SCENE)
        shape = self.vocabulary.codes
        num_keys = 1 + reader.take(self.vocabulary.keys_start, shape.max_keys, "a duration")
        boxes = []
        while reader.peek() == self.vocabulary.person:
            reader.expect(self.vocabulary.person, PERSON)
            boxes.append([reader.take(self.vocabulary.box_start, BOX_BINS, "a box edge") for _ in range(4)])
        reader.expect(self.vocabulary.motion, f"{PERSON} or {MOTION}" if len(boxes) < self.max_people else MOTION)
        codes = np.zeros((num_keys, len(boxes), shape.num_quantizers), np.int64)
        for index in np.ndindex(*codes.shape):
            start = self.vocabulary.pose_start + index[2] * shape.codebook_size
            codes[index] = reader.take(start, shape.codebook_size, f"a pose token of depth {index[2]}")
        reader.expect(self.vocabulary.end, END)
        if reader.peek() is not None:
            raise UserError(f"token {reader.position} of the scene follows {END}; nothing may")
        plan = ScenePlan(
            self.tokenizer.decode(text, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            np.array(boxes, np.int64).reshape(-1, 4),
            codes.transpose(1, 0, 2).copy(),  # (K, P, Q) -> (P, K, Q)
        )
        self.scene_ids(plan.boxes, plan.codes)  # the values must be allowed, too
        return plan


class _Reader:
    """Walks over ids and says where they leave the grammar."""

    def __init__(self, ids: list[int], vocabulary: SceneVocabulary) -> None:
        self.ids, self.vocabulary, self.position = ids, vocabulary, 0

    def peek(self) -> int | None:
        return self.ids[self.position] if self.position < len(self.ids) else None

    def take_text(self) -> list[int]:
        start = self.position
        while self.position < len(self.ids) and 0 <= self.ids[self.position] < self.vocabulary.first:
            self.position += 1
        return self.ids[start : self.position]

    def take(self, start: int, count: int, what: str) -> int:
        """The next id as a number in 0..count-1."""
        token = self.peek()
        if token is None or not start <= token < start + count:
            raise UserError(f"token {self.position} of the scene is {self._name(token)}; expected {what}")
        self.position += 1
        return token - start

    def expect(self, token: int, what: str) -> None:
        self.take(token, 1, what)

    def _name(self, token: int | None) -> str:
        if token is None:
            return "missing (the sequence ends)"
        offset = token - self.vocabulary.first
        return self.vocabulary.names[offset] if 0 <= offset < len(self.vocabulary.names) else f"text id {token}"
