"""How likely a director thinks given scenes to be: the loss of every token, and what it would have written first.

Letters: L tokens or places of a packed row, N scored tokens, Q quantisers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.hardware import native_bfloat16
from modules.llm.depth import pad_slots
from modules.llm.director import Director
from modules.llm.network import hidden_states, use_packed_attention
from modules.llm.tokens import SceneVocabulary

_LOGITS = 512  # positions whose logits over the whole vocabulary are held at a time


@dataclass
class SceneScore:
    """Of every token after <scene>."""

    losses: np.ndarray  # (N,) float64, nats
    firsts: np.ndarray  # (N,) int64: the likeliest id of all, whatever the grammar says


@torch.inference_mode()
def score_scenes(
    director: Director, prompts: Sequence[list[int]], scenes: Sequence[list[int]], *, batch_tokens: int = 2048
) -> Iterator[SceneScore]:
    """Score scenes, each after its prompt, in order; in bfloat16 where the device computes in it.

    Args:
        prompts: ids from <bos> to <scene>.
        scenes: ids from the duration to <end>.
        batch_tokens: about as many at a time.
    """
    network: Any = use_packed_attention(director.network)
    batch: list[int] = []
    for i in range(len(scenes) + 1):
        if i == len(scenes) or sum(len(prompts[n]) + len(scenes[n]) for n in batch) >= batch_tokens:
            if batch:
                yield from _score(director, network, [prompts[n] for n in batch], [scenes[n] for n in batch])
            batch = []
        batch.append(i)


def _score(
    director: Director, network: Any, prompts: list[list[int]], scenes: list[list[int]]
) -> Iterator[SceneScore]:
    vocabulary, head = director.grammar.vocabulary, director.depth_head
    per_slot = vocabulary.codes.num_quantizers if head is not None else 1
    slots = []
    for prompt, scene in zip(prompts, scenes, strict=True):
        slots.append([[token] for token in prompt] + _slots(scene, vocabulary, per_slot))
    device = network.lm_head.weight.device
    ids = pad_slots([sum(slots, [])], per_slot).to(device)  # (1, L, Q or 1)
    positions = torch.cat([torch.arange(len(row), device=device) for row in slots])[None]
    samples = torch.repeat_interleave(
        torch.arange(len(slots), device=device), torch.tensor([len(row) for row in slots], device=device)
    )[None]
    with torch.autocast(device.type, torch.bfloat16, enabled=native_bfloat16(device.type)):
        states = hidden_states(network, ids if head is not None else ids[..., 0], positions, samples)[0]
        start = 0
        for prompt, row in zip(prompts, slots, strict=True):
            first, stop = start + len(prompt), start + len(row)
            yield _of_scene(network, head, states[first - 1 : stop - 1], ids[0, first:stop], vocabulary)
            start = stop


def _of_scene(network: Any, head: Any, states: Tensor, targets: Tensor, vocabulary: SceneVocabulary) -> SceneScore:
    """From the states before places (N, D), and the ids of the places (N, Q or 1)."""
    posed = (targets[:, 0] >= vocabulary.pose_start) & (head is not None)
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    firsts = torch.full_like(targets, -1)
    plain = (~posed).nonzero()[:, 0]
    for rows in plain.split(_LOGITS):
        logits = network.lm_head(states[rows]).float()
        losses[rows, 0] = torch.nn.functional.cross_entropy(logits, targets[rows, 0], reduction="none").double()
        firsts[rows, 0] = logits.argmax(-1)
    if head is not None and posed.any():
        codes = vocabulary.codes_of(targets[posed])
        logits = head(states[posed], codes).float()
        flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
        losses[posed], firsts[posed] = flat.view_as(codes).double(), vocabulary.pose_ids(logits.argmax(-1))
    real = targets >= 0
    return SceneScore(losses[real].cpu().numpy(), firsts[real].cpu().numpy())


def _slots(scene: list[int], vocabulary: SceneVocabulary, per_pose: int) -> list[list[int]]:
    """The ids of a scene by places: each key pose is one of `per_pose` ids."""
    first = scene.index(vocabulary.motion) + 1
    poses = [scene[i : i + per_pose] for i in range(first, len(scene) - 1, per_pose)]
    return [[token] for token in scene[:first]] + poses + [[scene[-1]]]
