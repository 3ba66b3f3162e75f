"""Decoding that can only write scenes: a state machine of the grammar says at each step which ids may follow.

Only the rows of the head that the grammar allows are computed; where one id alone may follow, none are. A batch may mix
prompts, numbers of people and durations. Every sample draws from random numbers of its own, so that it does not depend
on what it is batched with.

Letters: B samples, Q quantisers, W ids to choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.errors import UserError
from modules.llm.cached import CachedLlama
from modules.llm.depth import DepthHead, embed_slots, pad_slots
from modules.llm.tokens import SceneVocabulary, check_boxes, scene_length
from modules.pose.boxes import BOX_BINS

FREE = -1  # a box edge, or a pose code, that the model chooses


@dataclass(frozen=True)
class Sampling:
    """How one kind of token is drawn."""

    temperature: float = 1.0  # 0: the likeliest
    top_p: float = 1.0  # smallest set of the likeliest ids with at least this probability
    top_k: int = 0  # this many of the likeliest ids; 0: all

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError(
                f"sampling with temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}; "
                "wanted temperature >= 0, 0 < top_p <= 1, top_k >= 0"
            )


@dataclass(frozen=True)
class SamplingConfig:
    """Settings for each kind of token: `pose` is depth 0, `residual` the depths after it."""

    people: Sampling = field(default_factory=Sampling)
    duration: Sampling = field(default_factory=Sampling)
    box: Sampling = field(default_factory=Sampling)
    pose: Sampling = field(default_factory=Sampling)
    residual: Sampling = field(default_factory=Sampling)


@dataclass
class Request:
    """One scene to decode."""

    prompt_ids: list[int]  # <bos> prompt <scene>
    seed: int = 0
    num_people: int | None = None  # None: the model decides
    num_keys: int | None = None
    boxes: np.ndarray | None = None  # (P, 4) int edges; FREE where the model decides
    forced: dict[int, int] = field(default_factory=dict)  # place after <scene> -> id


@dataclass
class Choice:
    """What may follow: ids start + low .. start + high - 1, within a block of `width` ids of one kind."""

    kind: str  # people | duration | box | pose | residual | mark
    start: int
    width: int
    low: int
    high: int


class GrammarState:
    """Where one sample stands in the grammar.

    Raises:
        UserError: constraints that no scene fulfils.
    """

    def __init__(self, request: Request, vocabulary: SceneVocabulary, max_people: int) -> None:
        self.request = request
        self.vocabulary = vocabulary
        self.max_people = max_people
        self.ids: list[int] = []  # after <scene>
        self.num_people: int | None = request.num_people
        self.num_keys = 0
        self._boxes = self._wanted_boxes()
        if self.num_people is not None and not 1 <= self.num_people <= max_people:
            raise UserError(f"num_people is {self.num_people}; allowed are 1 to {max_people}")
        if request.num_keys is not None and not 1 <= request.num_keys <= vocabulary.codes.max_keys:
            raise UserError(f"num_keys is {request.num_keys}; allowed are 1 to {vocabulary.codes.max_keys}")
        self._plan = self._walk()
        self.choice: Choice | None = next(self._plan)

    def _wanted_boxes(self) -> np.ndarray:
        """(max_people, 4) edges, FREE where not given."""
        wanted = np.full((self.max_people, 4), FREE, np.int64)
        if self.request.boxes is None:
            return wanted
        boxes = np.asarray(self.request.boxes, np.int64).reshape(-1, 4)
        if self.num_people is not None and self.num_people != len(boxes):
            raise UserError(f"num_people is {self.num_people}, but there are boxes for {len(boxes)}")
        if not 1 <= len(boxes) <= self.max_people:
            raise UserError(f"there are {len(boxes)} boxes; allowed are 1 to {self.max_people}")
        self.num_people = len(boxes)
        wanted[: len(boxes)] = boxes
        # The tightest boxes that the given edges allow must be boxes in order.
        if boxes.min() < FREE:
            raise UserError(f"box edges must be 0 to {BOX_BINS - 1}, or {FREE} for a free one; got {boxes.min()}")
        low = np.where(boxes[:, :2] == FREE, 0, boxes[:, :2])
        low[:, 0] = np.maximum.accumulate(low[:, 0])
        low = np.where(boxes[:, :2] == FREE, low, boxes[:, :2])
        check_boxes(np.concatenate((low, np.where(boxes[:, 2:] == FREE, BOX_BINS - 1, boxes[:, 2:])), 1))
        return wanted

    def _walk(self) -> Iterator[Choice | None]:
        """The grammar, as the choices it offers one after another; None at the end."""
        vocabulary, codes = self.vocabulary, self.vocabulary.codes
        forced = self.request.num_keys
        low, high = (0, codes.max_keys) if forced is None else (forced - 1, forced)
        yield Choice("duration", vocabulary.keys_start, codes.max_keys, low, high)
        self.num_keys = self.ids[-1] - vocabulary.keys_start + 1
        people = 0
        while True:
            # <person> and <motion> stand side by side: 0 is one more person, 1 goes on.
            more = people < self.max_people if self.num_people is None else people < self.num_people
            enough = people > 0 if self.num_people is None else people >= self.num_people
            yield Choice("people", vocabulary.person, 2, 0 if more else 1, 2 if enough else 1)
            if self.ids[-1] == vocabulary.motion:
                break
            for edge in range(4):
                yield self._edge(people, edge)
            people += 1
        self.num_people = people
        for _ in range(self.num_keys * people):
            for depth in range(codes.num_quantizers):
                start = vocabulary.pose_start + depth * codes.codebook_size
                kind = "pose" if depth == 0 else "residual"
                yield Choice(kind, start, codes.codebook_size, 0, codes.codebook_size)
        yield Choice("mark", vocabulary.end, 1, 0, 1)
        yield None

    def _edge(self, person: int, edge: int) -> Choice:
        """Range of an edge: x1 > x0, y1 > y0, left edges in order, and room for the edges that the user wants."""
        start = self.vocabulary.box_start
        wanted = int(self._boxes[person, edge])
        if edge >= 2:
            low, high = self.ids[-2] - start + 1, BOX_BINS
        else:
            opposite = self._boxes[person:, edge + 2] if edge == 0 else self._boxes[person : person + 1, edge + 2]
            limits = [BOX_BINS - 1, *opposite[opposite != FREE].tolist()]
            low = 0
            if edge == 0:
                later = self._boxes[person:, 0]
                limits += (later[later != FREE] + 1).tolist()
                if person:  # the left edge of the person before stands 6 ids back: <person> and this x0 lie between
                    low = self.ids[-5] - start
            high = min(limits)
        if wanted != FREE:
            low, high = wanted, wanted + 1
        return Choice("box", start, BOX_BINS, low, high)

    def advance(self, token: int) -> None:
        """Take the next id, which must be allowed."""
        assert self.choice is not None
        self.ids.append(token)
        self.choice = next(self._plan)

    def only(self) -> int | None:
        """The id that must follow: the grammar's, or the user's; None where there is a choice or the scene is done."""
        choice = self.choice
        if choice is None:
            return None
        first, stop = choice.start + choice.low, choice.start + choice.high
        wanted = self.request.forced.get(len(self.ids))
        if wanted is not None:
            if not first <= wanted < stop:
                raise UserError(
                    f"the id {wanted}, forced at place {len(self.ids)} after <scene>, cannot stand there; "
                    f"the grammar allows {first} to {stop - 1} ({choice.kind})"
                )
            return wanted
        return first if stop - first == 1 else None


def draw(logits: Tensor, uniform: Tensor, settings: Sampling) -> Tensor:
    """One id of each row by inversion of the distribution.

    Args:
        logits: (B, W), -inf where forbidden.
        uniform: (B,) random numbers in [0, 1).

    Returns:
        (B,) int64 in 0..W-1.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    ordered, ids = torch.sort(logits.double() / settings.temperature, dim=-1, descending=True, stable=True)
    if settings.top_k:
        ordered[:, settings.top_k :] = float("-inf")
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities * (before < settings.top_p)
    cumulative = probabilities.cumsum(-1)
    # A forbidden id has probability 0 and stands at the end: it is never the first to exceed the threshold.
    chosen = (cumulative <= uniform.double()[:, None] * cumulative[:, -1:]).sum(-1)
    chosen = torch.minimum(chosen, (probabilities > 0).sum(-1) - 1)
    return ids.gather(-1, chosen[:, None])[:, 0]


@torch.inference_mode()
def decode(
    network: Any,
    requests: Sequence[Request],
    *,
    vocabulary: SceneVocabulary,
    max_people: int,
    sampling: SamplingConfig | None = None,
    depth_head: DepthHead | None = None,
    on_step: Callable[[list[GrammarState]], None] | None = None,
) -> list[list[int]]:
    """Decode one batch of requests.

    Args:
        depth_head: writes all ids of a key pose in one step; only for a network that was trained with it.
        on_step: called with the state of every sample after each step; it may raise, to stop.

    Returns:
        The ids after <scene> of each, from the duration to <end>: always a scene of the grammar.

    Raises:
        UserError: a constraint that cannot be fulfilled, or a prompt that leaves no room for a scene in the context.
    """
    sampling = sampling or SamplingConfig()
    depths = vocabulary.codes.num_quantizers
    states = [GrammarState(request, vocabulary, max_people) for request in requests]
    longest = [_longest(state, max_people, 1 if depth_head is not None else depths) for state in states]
    capacity = max(len(r.prompt_ids) + length for r, length in zip(requests, longest, strict=True))
    _check_context(requests, longest, network.config.max_position_embeddings)
    device = network.lm_head.weight.device
    places = scene_length(max_people, vocabulary.codes.max_keys, depths)
    uniforms = torch.stack(
        [torch.rand(places, generator=torch.Generator().manual_seed(request.seed)) for request in requests]
    ).to(device)  # (B, places): place after <scene> -> random number, also where ids before it are forced
    llama = CachedLlama(network, batch=len(requests), capacity=capacity)
    active = list(range(len(requests)))
    pending = [[[token] for token in request.prompt_ids] for request in requests]  # places to feed, of one or Q ids
    while active:
        for i in active:
            pending[i] += _forced(states[i], depths if depth_head is not None else 1)
        going = [row for row, i in enumerate(active) if states[i].choice is not None]
        if len(going) < len(active):
            active = [active[row] for row in going]
            if not active:
                break
            llama.keep(going)
        counts = [len(pending[i]) for i in active]
        if depth_head is None:
            ids = [sum(pending[i], []) + [0] * (max(counts) - len(pending[i])) for i in active]
            embedded = llama.embed(torch.tensor(ids, device=device))
        else:
            embedded = embed_slots(llama.embed, pad_slots([pending[i] for i in active], depths).to(device))
        hidden = llama.extend(embedded, counts)
        chosen = _choose(llama, hidden, [states[i] for i in active], uniforms[active], sampling, depth_head)
        for i, slot in zip(active, chosen, strict=True):
            pending[i] = [slot]
        if on_step is not None:
            on_step(states)
    return [state.ids for state in states]


def _forced(state: GrammarState, per_pose: int) -> list[list[int]]:
    """Take all places that leave no choice; a key pose only if none of its `per_pose` ids does."""
    places: list[list[int]] = []
    while state.choice is not None:
        start, count = len(state.ids), per_pose if state.choice.kind == "pose" else 1
        if count > 1 and not all(start + depth in state.request.forced for depth in range(count)):
            break
        slot = []
        while len(slot) < count and (token := state.only()) is not None:
            state.advance(token)
            slot.append(token)
        if not slot:
            break
        places.append(slot)
    return places


def _choose(
    llama: CachedLlama, hidden: Tensor, states: list[GrammarState], uniforms: Tensor, sampling: SamplingConfig,
    depth_head: DepthHead | None,
) -> list[list[int]]:  # fmt: skip
    """Take the next place of each sample; samples at the same kind of token share one product with the head."""
    groups: dict[tuple[str, int, int], list[int]] = {}
    for row, state in enumerate(states):
        assert state.choice is not None
        groups.setdefault((state.choice.kind, state.choice.start, state.choice.width), []).append(row)
    result: list[list[int]] = [[] for _ in states]
    for (kind, start, width), rows in groups.items():
        members = [states[row] for row in rows]
        own = hidden if len(rows) == len(states) else hidden[rows]
        if kind == "pose" and depth_head is not None:
            slots = _choose_poses(depth_head, own, members, uniforms[rows], sampling)
        else:
            slots = [[token] for token in _draw(llama.logits(own, start, width), members, uniforms[rows], sampling)]
        for row, slot in zip(rows, slots, strict=True):
            result[row] = slot
    return result


def _choose_poses(
    head: DepthHead, hidden: Tensor, states: list[GrammarState], uniforms: Tensor, sampling: SamplingConfig
) -> list[list[int]]:
    """All ids of the next key pose of each sample, one depth after another."""
    sums, slots = head.start(hidden), [[] for _ in states]
    for depth in range(head.num_quantizers):
        tokens = _draw(head.step(sums, depth), states, uniforms, sampling)
        for slot, token in zip(slots, tokens, strict=True):
            slot.append(token)
        if depth + 1 < head.num_quantizers:
            codes = torch.tensor(tokens, device=hidden.device) - states[0].vocabulary.pose_start
            sums = head.add(sums, codes % head.codebook_size, depth)
    return slots


def _draw(logits: Tensor, states: list[GrammarState], uniforms: Tensor, sampling: SamplingConfig) -> list[int]:
    """Draw the next id of samples at the same kind of token, from logits (B', W) of its block, and take it."""
    choices = [choice for state in states if (choice := state.choice) is not None]
    width = logits.shape[1]
    if any(choice.low > 0 or choice.high < width for choice in choices):
        low, high = logits.new_tensor([[c.low, c.high] for c in choices]).unbind(-1)
        place = torch.arange(width, device=logits.device)
        outside = (place < low[:, None]) | (place >= high[:, None])
        logits = logits.masked_fill(outside, float("-inf"))
    settings = getattr(sampling, choices[0].kind)
    if settings.temperature > 0:
        uniforms = torch.stack([row[len(state.ids)] for row, state in zip(uniforms, states, strict=True)])
    tokens = []
    for state, choice, place in zip(states, choices, draw(logits, uniforms, settings).tolist(), strict=True):
        wanted = state.only()  # within a key pose whose other ids are free
        tokens.append(choice.start + place if wanted is None else wanted)
        state.advance(tokens[-1])
    return tokens


def _longest(state: GrammarState, max_people: int, per_pose: int) -> int:
    """Most places after <scene> that the constraints of a sample allow."""
    codes = state.vocabulary.codes
    return scene_length(state.num_people or max_people, state.request.num_keys or codes.max_keys, per_pose)


def _check_context(requests: Sequence[Request], longest: list[int], context: int) -> None:
    for request, length in zip(requests, longest, strict=True):
        if len(request.prompt_ids) + length > context:
            raise UserError(
                f"the prompt has {len(request.prompt_ids) - 2} tokens; beside up to {length} tokens of the scene, at "
                f"most {max(context - length - 2, 0)} fit the context of {context}: shorten it, or ask for fewer people"
                " or key poses"
            )
