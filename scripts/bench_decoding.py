"""Speed of writing scenes: python scripts/bench_decoding.py [export=runs/llm/demo/export] [depth=EXPORT]

Ours against `model.generate` of transformers with the same grammar as `prefix_allowed_tokens_fn`: the same model and
prompts, in one run, the likeliest token at each step. The ids must be the same. Beside them, the time of the matrix
products alone: every weight times a vector of each sample, as often as ours has steps, and nothing else.

  export=           a trained director, which writes token by token
  depth=            a director with a depth head: it writes as many people and key poses in the same run
  prompts=          a text file, a prompt a line; empty: short sentences about one to three people
  batches=[1,16]    scenes at a time    keys=20   key poses of each    repeats=3   the fastest of so many counts
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from modules.errors import UserError  # noqa: E402
from modules.llm.decoding import GrammarState, Request, Sampling, SamplingConfig, decode  # noqa: E402
from modules.llm.director import Director  # noqa: E402

PROMPTS = [
    "A man walks to the right.",
    "A woman waves her left hand, and beside her a man jumps.",
    "Three people: a man runs, a woman kicks and a man claps.",
    "A man in a red shirt sits down for 4 seconds in front of a gray wall, seen from the front.",
]
GREEDY = SamplingConfig(*[Sampling(temperature=0)] * 5)


@dataclass
class BenchConfig:
    export: str = "runs/llm/demo/export"
    depth: str = ""
    prompts: str = ""
    batches: list[int] = field(default_factory=lambda: [1, 16])
    keys: int = 20
    repeats: int = 3


class Allowed:
    """The grammar as a function for `generate`, which calls it for every sample at every step."""

    def __init__(self, director: Director, requests: list[Request], length: int) -> None:
        grammar = director.grammar
        self.states = [GrammarState(request, grammar.vocabulary, grammar.max_people) for request in requests]
        self.length, self.end = length, grammar.vocabulary.end

    def __call__(self, row: int, ids: torch.Tensor) -> list[int]:
        state = self.states[row]
        for token in ids[self.length + len(state.ids) :].tolist():
            if state.choice is not None:
                state.advance(token)
        only = state.only()
        if only is not None or state.choice is None:
            return [self.end if only is None else only]
        choice = state.choice
        return list(range(choice.start + choice.low, choice.start + choice.high))


def generated(director: Director, requests: list[Request]) -> list[list[int]]:
    """The ids after <scene> that transformers writes."""
    longest = max(len(request.prompt_ids) for request in requests)
    pad = director.grammar.tokenizer.bos_token_id
    ids = torch.tensor([[pad] * (longest - len(r.prompt_ids)) + r.prompt_ids for r in requests])
    mask = torch.tensor([[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests])
    end = director.grammar.vocabulary.end
    network: Any = director.network
    with torch.inference_mode():
        out = network.generate(
            ids, attention_mask=mask, do_sample=False, use_cache=True, max_length=None,
            max_new_tokens=director.grammar.longest_scene, eos_token_id=end, pad_token_id=end,
            prefix_allowed_tokens_fn=Allowed(director, requests, longest),
        )  # fmt: skip
    scenes = out[:, longest:].tolist()
    return [scene[: scene.index(end) + 1] for scene in scenes]


def products(director: Director, batch: int, prompt: int, steps: int) -> None:
    """The matrix products of a prompt and of `steps` steps after it."""
    network: Any = director.network
    weights = [p for name, p in network.model.layers.named_parameters() if p.ndim == 2]
    rows = director.grammar.vocabulary.codes.codebook_size
    vectors = {w.shape[1]: torch.rand(batch, w.shape[1]) for w in [*weights, network.lm_head.weight]}
    prompts = {width: torch.rand(batch * prompt, width) for width in vectors}
    with torch.inference_mode():
        for weight in weights:
            F.linear(prompts[weight.shape[1]], weight)
        for _ in range(steps):
            for weight in weights:
                F.linear(vectors[weight.shape[1]], weight)
            F.linear(vectors[network.lm_head.weight.shape[1]], network.lm_head.weight[:rows])


def fastest(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Seconds of the fastest call, and what the last one gave."""
    times, found = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - started)
    return min(times), found


def write(director: Director, requests: list[Request], on_step: Callable | None = None) -> list[list[int]]:
    """The ids after <scene> that we write."""
    grammar = director.grammar
    return decode(
        director.network, requests, vocabulary=grammar.vocabulary, max_people=grammar.max_people, sampling=GREEDY,
        depth_head=director.depth_head, on_step=on_step,
    )  # fmt: skip


def bench(director: Director, depth: Director | None, prompts: list[str], batch: int, cfg: BenchConfig) -> str:
    """One row of the table.

    Raises:
        UserError: ours and transformers' ids differ.
    """
    chosen = [prompts[i % len(prompts)] for i in range(batch)]
    requests = [Request(ids, num_keys=cfg.keys) for ids in director.grammar.encode_prompts(chosen)]
    steps = 0

    def count(_: object) -> None:
        nonlocal steps
        steps += 1

    scenes = write(director, requests, count)
    others: list[Request] = []
    if depth is not None:  # as many people
        people = [scene.count(director.grammar.vocabulary.person) for scene in scenes]
        others = [Request(ids, num_keys=cfg.keys) for ids in depth.grammar.encode_prompts(chosen)]
        for request, number in zip(others, people, strict=True):
            request.num_people = number
    longest = max(len(request.prompt_ids) for request in requests)
    # In turns, so that other programs on the machine slow down all alike.
    times: list[list[float]] = [[], [], [], []]
    mine: list[list[int]] = []
    theirs: list[list[int]] = []
    for _ in range(cfg.repeats):
        seconds, mine = fastest(lambda: write(director, requests), 1)
        times[0].append(seconds)
        seconds, theirs = fastest(lambda: generated(director, requests), 1)
        times[1].append(seconds)
        times[2].append(fastest(lambda: products(director, batch, longest, steps), 1)[0])
        if depth is not None:
            times[3].append(fastest(lambda: write(depth, others), 1)[0])
    if mine != theirs:
        raise UserError(f"batch {batch}: ours and transformers' ids differ")
    tokens = sum(map(len, mine))
    own, other, matrices, deep = (min(values, default=float("nan")) for values in times)
    return (
        f"{batch:>5}{tokens:>8}{steps:>7}{own:>9.3f}{other:>14.3f}{matrices:>10.3f}{other / own:>11.2f}"
        f"{own / matrices:>17.2f}{tokens / own:>10.0f}{deep:>15.3f}{own / deep:>12.2f}"
    )


def main(arguments: list[str]) -> None:
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(BenchConfig, [], items)
    director = Director.from_export(cfg.export)
    prompts = Path(cfg.prompts).read_text().splitlines() if cfg.prompts else PROMPTS
    network: Any = director.network
    print(f"{cfg.export}: {network.num_parameters() / 1e6:.1f} M parameters, {torch.get_num_threads()} threads")
    depth = Director.from_export(cfg.depth) if cfg.depth else None
    if director.depth_head is not None or depth is not None and depth.depth_head is None:
        raise UserError("export= is to have no depth head, and depth= is to have one")
    names = ["batch", "tokens", "steps", "ours, s", "generate, s", "products", "gen./ours", "ours/products", "tokens/s"]
    widths = [5, 8, 7, 9, 14, 10, 11, 17, 10, 15, 12]
    names += ["depth head, s", "ours/depth"]
    print("".join(name.rjust(width) for name, width in zip(names, widths, strict=True)))
    for batch in cfg.batches:
        print(bench(director, depth, prompts, batch, cfg), flush=True)


if __name__ == "__main__":
    run_script(main, __doc__)
