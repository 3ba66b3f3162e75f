"""Training items of the director: normalised key poses, boxes and the caption, packed into rows.

The pose tokens themselves are made on the device, by the frozen pose tokenizer, for a whole batch at once: `collate`
leaves their places empty and says where they are (`pose_index`).

Letters: S samples, P persons of a sample, R persons of a batch, K key poses, J joints, Q quantisers, B rows, L tokens
of a row.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.errors import UserError
from modules.llm.tokens import SceneGrammar, scene_length
from modules.pose.boxes import box_to_tokens, normalise
from modules.pose.scene import Clip

log = logging.getLogger(__name__)

SHORTEST_ROOM = 16  # tokens for a prompt, beside the longest scene


class Encode:
    """Clip -> one item: {caption, canvas (2,) px, boxes (P, 4) int64, poses (P, K, J, 2), visibility (P, K, J)}.

    Args:
        max_people: of a clip with more, those seen in most frames are kept.
        start_jitter: in training, start up to one stride later (the number of keys, and so the stated duration, stays).
    """

    def __init__(self, *, max_people: int, start_jitter: bool) -> None:
        self.max_people = max_people
        self.start_jitter = start_jitter
        self.stride = 0  # dense frames per key pose
        self.max_keys = 0

    def bind(self, *, stride: int, max_keys: int) -> None:
        """Take over the rates of the pose tokenizer, which are known once its export has been read."""
        self.stride, self.max_keys = stride, max_keys

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        assert self.stride > 0, "bind() comes first"
        frames = clip.scene.num_frames
        first = int(rng.integers((frames - 1) % self.stride + 1)) if train and self.start_jitter else 0
        scene = clip.scene.crop(first, min(frames, first + self.stride * self.max_keys))
        scene.persons.sort(key=lambda person: -int(person.visibility.any(1).sum()))
        del scene.persons[self.max_people :]
        if not scene.persons:
            return []
        scene = scene.ordered()
        keys = scene.keys(self.stride)
        return [
            {
                "caption": clip.caption,
                "canvas": np.array([scene.width, scene.height]),
                "boxes": box_to_tokens(scene.boxes, scene.width, scene.height),
                "poses": normalise(keys.joints, keys.boxes, keys.visibility).astype(np.float32),
                "visibility": keys.visibility,
            }
        ]


class Collate:
    """Items -> packed rows, as the table of batches says.

    Returns (call):
        captions: of the samples in the order of their numbers.
        input_ids (B, L): whole sequences one after another; 0 where a pose token will stand and in padding.
        position_ids (B, L): place within the sample.
        sample_ids (B, L): number of the sample in the batch, -1 in padding.
        poses (R, K, J, 2), visibility (R, K, J), key_mask (R, K): the people of all samples, padded to the longest.
        pose_index (R, K, Q): where their pose tokens stand in the flat rows, -1 in padding. With a depth head a key
            pose is one place: (R, K, 1).
        canvases (S, 2): width and height of each sample in px.
    """

    def __init__(self, *, pack_length: int) -> None:
        self.pack_length = pack_length
        self.grammar: Any = None
        self.room = 0  # tokens of the longest prompt
        self.per_pose = 0  # places of a key pose
        self.truncated = 0  # prompts that did not fit the context so far

    def bind(self, *, grammar: SceneGrammar, context: int, depth_head: bool = False) -> None:
        """Take over the vocabulary and the context, which are known once there is a tokenizer.

        Raises:
            UserError: the context has no room for a prompt and the longest scene.
        """
        self.grammar = grammar
        codes = grammar.vocabulary.codes
        self.per_pose = 1 if depth_head else codes.num_quantizers
        longest = scene_length(grammar.max_people, codes.max_keys, self.per_pose)
        self.room = context - longest
        if self.room < SHORTEST_ROOM:
            raise UserError(
                f"the context of the network is {context} tokens, and the longest scene takes {longest} of "
                f"{grammar.max_people} people; lower model.max_people, or take a Llama with a longer context"
            )

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        assert self.grammar is not None, "bind() comes first"
        prompts = self._prompts([item["caption"] for item in items])
        sequences, slots = [], []
        for prompt, item in zip(prompts, items, strict=True):
            people, keys = item["poses"].shape[:2]
            head = prompt + self.grammar.head_ids(item["boxes"], keys)
            start, places = len(head), people * keys * self.per_pose
            order = np.arange(places).reshape(keys, people, self.per_pose)  # the grammar's order
            sequences.append([*head, *[0] * places, self.grammar.vocabulary.end])
            slots.append(start + order.transpose(1, 0, 2))
        rows = pack([len(sequence) for sequence in sequences], self.pack_length)
        length = max(sum(len(sequences[i]) for i in row) for row in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
        position_ids = torch.zeros_like(input_ids)
        sample_ids = torch.full_like(input_ids, -1)
        for number, row in enumerate(rows):
            start = 0
            for i in row:
                stop = start + len(sequences[i])
                input_ids[number, start:stop] = torch.tensor(sequences[i])
                position_ids[number, start:stop] = torch.arange(stop - start)
                sample_ids[number, start:stop] = i
                slots[i] = slots[i] + number * length + start
                start = stop
        pose_index = _stack(slots, -1)
        input_ids.view(-1)[pose_index[pose_index >= 0]] = 0
        return {
            "captions": [item["caption"] for item in items],
            "input_ids": input_ids,
            "position_ids": position_ids,
            "sample_ids": sample_ids,
            "poses": _stack([item["poses"] for item in items], 0),
            "visibility": _stack([item["visibility"] for item in items], False),
            "key_mask": pose_index[..., 0] >= 0,
            "pose_index": pose_index,
            "canvases": torch.from_numpy(np.stack([item["canvas"] for item in items])),
        }

    def _prompts(self, captions: list[str]) -> list[list[int]]:
        """Ids of the prompts; one too long for the context loses its end, which is counted and logged."""
        prompts = self.grammar.encode_prompts(captions)
        for i, prompt in enumerate(prompts):
            if len(prompt) > self.room:
                prompts[i] = [*prompt[: self.room - 1], prompt[-1]]
                self.truncated += 1
                if self.truncated & (self.truncated - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                    log.warning("%d captions were cut to the %d tokens that fit the context", self.truncated, self.room)
        return prompts


def _stack(arrays: list[np.ndarray], fill: Any) -> Tensor:
    """Arrays (P_i, K_i, ...) of all samples to one (R, K, ...), padded to the longest K."""
    people, keys = sum(len(array) for array in arrays), max(array.shape[1] for array in arrays)
    result = np.full((people, keys, *arrays[0].shape[2:]), fill, arrays[0].dtype)
    start = 0
    for array in arrays:
        result[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return torch.from_numpy(result)


def pack(lengths: list[int], row_length: int) -> list[list[int]]:
    """Which samples share a row: best fit, longest first; every row holds at most `row_length` tokens.

    A sample longer than that has a row of its own; `row_length` 0 puts all into one row.
    """
    if row_length == 0:
        return [list(range(len(lengths)))]
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row, left in enumerate(room) if left >= lengths[i]]
        if fitting:
            row = min(fitting, key=lambda row: room[row])
            rows[row].append(i)
            room[row] -= lengths[i]
        else:
            rows.append([i])
            room.append(row_length - lengths[i])
    return rows


def place_pose_tokens(batch: dict[str, Any], codes: Tensor, grammar: SceneGrammar) -> Tensor:
    """Input ids (B, L) of a batch with its pose tokens in place; codes (R, K, Q) from the pose tokenizer.

    With a depth head the token of depth 0 stands for the key pose.
    """
    index = batch["pose_index"]
    real = index >= 0
    ids = batch["input_ids"].flatten()
    ids[index[real]] = grammar.vocabulary.pose_ids(codes)[..., : index.shape[-1]][real]
    return ids.view_as(batch["input_ids"])


def next_token_targets(
    input_ids: Tensor, sample_ids: Tensor, grammar: SceneGrammar, loss_on: str
) -> tuple[Tensor, Tensor]:
    """Supervised positions: indices into the flat rows (N,), and the ids that follow there (N,).

    Args:
        loss_on: "all" tokens after <bos>, or those of the "scene", which is what follows <scene>.
    """
    follows = sample_ids[:, 1:] == sample_ids[:, :-1]
    follows &= sample_ids[:, 1:] >= 0
    targets = input_ids[:, 1:]
    if loss_on == "scene":
        follows &= targets > grammar.vocabulary.scene
    mask = torch.nn.functional.pad(follows, (0, 1))  # (B, L - 1) -> (B, L): the last token has no next
    return mask.flatten().nonzero()[:, 0], targets[follows]
