"""The director: prompts in, scene plans out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from modules.checkpoint import load_frozen, read_export
from modules.errors import UserError
from modules.llm.decoding import FREE, GrammarState, Request, SamplingConfig, decode
from modules.llm.depth import DepthHead, load_depth_head
from modules.llm.tokenizer import load_tokenizer
from modules.llm.tokens import CodeShape, SceneGrammar, ScenePlan, add_scene_tokens

T = TypeVar("T")


class Director:
    """A trained Llama with its grammar.

    Args:
        network: transformers' LlamaForCausalLM.
        grammar: the grammar over its tokenizer.
        stride, fps: of the key poses (dense frames per key, dense frames per second).
        vqvae_sha256: fingerprint of the pose tokenizer whose codes it writes.
        depth_head: writes all ids of a key pose in one step, where it was trained with one.
    """

    def __init__(
        self, *, network: nn.Module, grammar: SceneGrammar, stride: int, fps: float, vqvae_sha256: str = "",
        depth_head: DepthHead | None = None,
    ) -> None:  # fmt: skip
        self.network = network
        self.grammar = grammar
        self.stride = stride
        self.fps = fps
        self.vqvae_sha256 = vqvae_sha256
        self.depth_head = depth_head

    @classmethod
    def from_export(cls, directory: str | Path, *, device: str = "cpu") -> Director:
        """The director of an `llm` export."""
        config = read_export(directory, "llm").config
        tokenizer = load_tokenizer(str(directory))
        vocabulary = add_scene_tokens(tokenizer, CodeShape(**config["codes"]))
        network: Any = load_frozen(directory, "llm")
        if network.config.vocab_size != vocabulary.stop:
            raise UserError(
                f"{directory} has {network.config.vocab_size} rows for {vocabulary.stop} tokens: weights and tokenizer "
                "are not of one training; make the export again"
            )
        grammar = SceneGrammar(tokenizer=tokenizer, vocabulary=vocabulary, max_people=config["max_people"])
        depth = config.get("depth_head", {"num_layers": 0})
        width = network.config.hidden_size
        head = None
        if depth["num_layers"]:
            head = load_depth_head(Path(directory), depth, hidden_size=width, codes=vocabulary.codes).to(device)
        return cls(
            network=network.to(device),
            grammar=grammar,
            stride=config["stride"],
            fps=config["fps"],
            vqvae_sha256=config["vqvae"]["sha256"],
            depth_head=head,
        )

    def plan(
        self,
        prompts: Sequence[str],
        *,
        num_people: int | Sequence[int | None] | None = None,
        num_keys: int | Sequence[int | None] | None = None,
        boxes: Sequence[np.ndarray | None] | None = None,
        keys: Sequence[ScenePlan | None] | None = None,
        seeds: int | Sequence[int] = 0,
        sampling: SamplingConfig | None = None,
        batch_size: int = 32,
        on_key: Callable[[ScenePlan], None] | None = None,
    ) -> list[ScenePlan]:
        """One scene for each prompt.

        Args:
            num_people, num_keys: for all prompts, or for each; None leaves it to the model.
            boxes: for each prompt (P, 4) edges 0..255, ordered by the left edge, -1 for a free edge; or None.
            keys: for each prompt a plan to go on from: its boxes and its key poses stand, except edges and codes that
                are -1, and what follows is new. The new scene has `num_keys` key poses in all, or as many as a scene
                can have.
            seeds: first seed (prompt i has seeds + i), or one for each. A seed gives the same scene whatever else is
                in the batch.
            on_key: for a single prompt: called with the plan so far after each key pose; it may raise, to stop.

        Raises:
            UserError: an empty prompt, one too long for the context, or a constraint that cannot be fulfilled.
        """
        count = len(prompts)
        for number, prompt in enumerate(prompts):
            if not prompt.strip():
                raise UserError(f"prompt {number + 1} of {count} is empty; describe the people and what they do")
        all_seeds = [seeds + i for i in range(count)] if isinstance(seeds, int) else list(seeds)
        people, durations = _each(num_people, count, "num_people"), _each(num_keys, count, "num_keys")
        wanted_boxes, wanted_keys = _each(boxes, count, "boxes"), _each(keys, count, "keys")
        requests = []
        for i, ids in enumerate(self.grammar.encode_prompts(prompts)):
            request = Request(ids, all_seeds[i], people[i], durations[i], wanted_boxes[i])
            start = wanted_keys[i]
            if start is not None:
                self._continue(request, start)
            requests.append(request)
        plans: list[ScenePlan | None] = [None] * count
        # Scenes of like length together: a batch takes as many steps as its longest.
        order = sorted(range(count), key=lambda i: (durations[i] or 0, people[i] or 0, len(requests[i].prompt_ids)))
        for start in range(0, count, batch_size):
            chosen = order[start : start + batch_size]
            scenes = decode(
                self.network,
                [requests[i] for i in chosen],
                vocabulary=self.grammar.vocabulary,
                max_people=self.grammar.max_people,
                sampling=sampling,
                depth_head=self.depth_head,
                on_step=_Watch(prompts[0], self.grammar, on_key) if on_key is not None and count == 1 else None,
            )
            for i, scene in zip(chosen, scenes, strict=True):
                plan = self.grammar.parse(requests[i].prompt_ids + scene)
                plans[i] = ScenePlan(prompts[i], plan.boxes, plan.codes, {"seed": all_seeds[i]})
        return [plan for plan in plans if plan is not None]

    def _continue(self, request: Request, start: ScenePlan) -> None:
        """Force the boxes and the key poses of a plan."""
        vocabulary = self.grammar.vocabulary
        shape, codes = vocabulary.codes, np.asarray(start.codes, np.int64)
        if request.num_keys is None:
            request.num_keys = shape.max_keys
        if request.num_keys < start.num_keys:
            raise UserError(f"num_keys is {request.num_keys}, but there are {start.num_keys} key poses to go on from")
        if codes.shape[2] != shape.num_quantizers or codes.min() < FREE or codes.max() >= shape.codebook_size:
            raise UserError(
                f"codes of {codes.shape[2]} depths from {codes.min()} to {codes.max()}; wanted are "
                f"{shape.num_quantizers} depths from 0 to {shape.codebook_size - 1}, or {FREE} for a free one"
            )
        request.num_people, request.boxes = start.num_people, start.boxes
        ids = vocabulary.pose_ids(codes).transpose(1, 0, 2).reshape(-1)  # (P, K, Q) -> (K, P, Q) -> (L,)
        fixed = (codes != FREE).transpose(1, 0, 2).reshape(-1)
        first = _poses_start(start.num_people)
        request.forced.update({first + place: int(ids[place]) for place in np.flatnonzero(fixed).tolist()})


def _poses_start(num_people: int) -> int:
    """Place of the first pose id after <scene>: the duration, the boxes and <motion> stand before it."""
    return 2 + 5 * num_people


class _Watch:
    """Tells of every key pose of one scene that has just been decoded."""

    def __init__(self, prompt: str, grammar: SceneGrammar, on_key: Callable[[ScenePlan], None]) -> None:
        self.prompt, self.grammar, self.on_key = prompt, grammar, on_key
        self.told = 0

    def __call__(self, states: list[GrammarState]) -> None:
        state, vocabulary = states[0], self.grammar.vocabulary
        people, depths = state.num_people, vocabulary.codes.num_quantizers
        if not people or vocabulary.motion not in state.ids:
            return
        first = _poses_start(people)
        done = (len(state.ids) - first) // (people * depths)
        if done <= self.told:
            return
        self.told = done
        boxes = np.array(state.ids[1 : first - 1], np.int64).reshape(people, 5)[:, 1:] - vocabulary.box_start
        ids = np.array(state.ids[first : first + done * people * depths], np.int64).reshape(done, people, depths)
        codes = ids - vocabulary.pose_ids(np.zeros(depths, np.int64))
        self.on_key(ScenePlan(self.prompt, boxes, codes.transpose(1, 0, 2).copy(), {"keys": state.num_keys}))


def _each(value: T | Sequence[T] | None, count: int, name: str) -> list[Any]:
    """One value for each prompt."""
    if value is None or isinstance(value, int):
        return [value] * count
    values = list(value)  # type: ignore[arg-type]
    if len(values) != count:
        raise UserError(f"{name} has {len(values)} values for {count} prompts; give one for each")
    return values
