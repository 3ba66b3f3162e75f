"""A director token by token: its loss beside a bigram, whether the text matters, and what the grammar had to forbid."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modules.errors import UserError
from modules.llm.data import Encode
from modules.llm.decoding import GrammarState, Request, SamplingConfig
from modules.llm.director import Director
from modules.llm.scoring import SceneScore, score_scenes
from modules.llm.tokens import DEPTH, TEXT
from modules.metrics.bigram import CONTEXTS, Bigram
from modules.pose.scene import Clip
from modules.progress import Progress
from modules.reports import Column, Row, Table

CLIPS, CAPTIONS = 24, 12  # of the table about text: clips, and captions that each is held against
PLANS = 24  # of the table about the grammar


@dataclass
class Example:
    """A clip as the director reads it."""

    caption: str
    scene: list[int]  # ids after <scene>
    people: int
    held_out_phrasing: bool


def examples(director: Director, vqvae: torch.nn.Module, clips: Sequence[Clip]) -> list[Example]:
    """Scenes of clips, from their first frame on; clips without people are left out."""
    encode = Encode(max_people=director.grammar.max_people, start_jitter=False)
    encode.bind(stride=director.stride, max_keys=director.grammar.vocabulary.codes.max_keys)
    device, found = next(vqvae.parameters()).device, []
    for clip in clips:
        for item in encode(clip, np.random.default_rng(0), False):
            poses, seen = (torch.from_numpy(item[name]).to(device) for name in ("poses", "visibility"))
            mask = torch.ones(poses.shape[:2], dtype=torch.bool, device=device)
            with torch.inference_mode():
                codes = vqvae.encode(poses, seen, mask)  # type: ignore[operator]
            scene = director.grammar.scene_ids(item["boxes"], codes.cpu().numpy())
            unusual = bool(clip.meta.get("held_out_phrasing"))
            found.append(Example(clip.caption, scene, len(item["boxes"]), unusual))
    return found


def details(
    director: Director,
    vqvae: torch.nn.Module,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    *,
    sampling: SamplingConfig,
    seed: int,
    paraphrases: Mapping[str, str] | None = None,
) -> list[Table]:
    """Three tables: losses, text, grammar.

    Args:
        paraphrases: caption -> the same in other words; a further row of the table about text.
    """
    known, held_out = examples(director, vqvae, train), examples(director, vqvae, clips)
    return [
        loss_table(director, known, held_out),
        text_table(director, held_out, paraphrases or {}),
        grammar_table(director, held_out, sampling, seed),
    ]


def read_paraphrases(path: str) -> dict[str, str]:
    """{caption: the same in other words}; none where there is no path.

    Raises:
        UserError: not such a file.
    """
    if not path:
        return {}
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give JSON: {{caption: the same in other words}}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise UserError(f"{path} is not of the form {{caption: the same in other words}}")
    return found


def loss_table(director: Director, known: Sequence[Example], held_out: Sequence[Example]) -> Table:
    """Mean loss of held-out tokens by kind, beside bigrams of the training split."""
    vocabulary = director.grammar.vocabulary
    names = vocabulary.kind_names[TEXT + 1 :]
    table = Table("held-out loss, nats", [*(Column(name, "fine", "down") for name in [*names, "scene"])], notes=[
        "scene: all tokens after <scene>. Bigrams are smoothed (Witten-Bell) and told which kind is due at each place.",
    ])  # fmt: skip
    kinds = np.concatenate([vocabulary.kind_table[example.scene] for example in held_out])

    def add(name: str, losses: np.ndarray) -> None:
        means = {kind: float(losses[kinds == i + 1].mean()) for i, kind in enumerate(names) if (kinds == i + 1).any()}
        table.add(name, scene=float(losses.mean()), **means)

    for context in reversed(CONTEXTS):
        bigram = Bigram(vocabulary, context).fit(example.scene for example in known)
        losses = [bigram.losses(example.scene) for example in held_out]
        add("frequency" if context == "nothing" else f"bigram: {context}", np.array(sum(losses, [])))
    scores = _score(director, [(example.caption, example.scene) for example in held_out])
    add("ours", np.concatenate([score.losses for score in scores]))
    return table


def text_table(director: Director, held_out: Sequence[Example], paraphrases: Mapping[str, str]) -> Table:
    """Is the true caption the one under which a motion is likeliest?"""
    columns = [
        Column("rank", "number", "down"), Column("by chance"), Column("first", "share", "up"),
        Column("loss, own caption", "fine"), Column("loss, others", "fine"), Column("gap", "fine", "up"),
        Column("captions", "count"), Column("clips", "count"),
    ]  # fmt: skip
    table = Table("does the text matter", columns, notes=[
        "rank of the true caption among others by the likelihood of the key poses alone (a caption may state the "
        "duration). loss: nats an id of a key pose. Clips are spread over the captions.",
    ])  # fmt: skip
    groups = {"all": list(held_out)}
    if any(example.held_out_phrasing for example in held_out):
        groups["known phrasing"] = [example for example in held_out if not example.held_out_phrasing]
        groups["held-out phrasing"] = [example for example in held_out if example.held_out_phrasing]
    rows: list[tuple[str, list[Example], Mapping[str, str]]] = [(name, group, {}) for name, group in groups.items()]
    if other := [example for example in held_out if example.caption in paraphrases]:
        rows += [("as written", other, {})] * (len(other) < len(held_out)) + [("paraphrased", other, paraphrases)]
    for name, group, words in rows:
        chosen = spread(group, CLIPS)
        captions = list(dict.fromkeys(example.caption for example in group))
        pairs, sizes = [], []
        for number, example in enumerate(chosen):
            others = [caption for caption in captions if caption != example.caption]
            step = max(len(others) // (CAPTIONS - 1), 1)
            against = (others[number % step :: step])[: CAPTIONS - 1]
            sizes.append(1 + len(against))
            pairs += [(words.get(caption, caption), example.scene) for caption in [example.caption, *against]]
        kinds = director.grammar.vocabulary.kind_table
        scores = _score(director, pairs)
        posed = [score.losses[kinds[scene] >= DEPTH] for score, (_, scene) in zip(scores, pairs, strict=True)]
        means = iter([float(losses.mean()) for losses in posed])
        losses = [list(itertools.islice(means, size)) for size in sizes]
        losses = [found for found in losses if len(found) > 1]
        if not losses:
            continue
        ranks = [1 + sum(other < own for other in others) for own, *others in losses]
        matched = float(np.mean([own for own, *_ in losses]))
        shuffled = float(np.mean([np.mean(others) for _, *others in losses]))
        table.rows.append(_row(table, name, [
            float(np.mean(ranks)), float(np.mean([(len(found) + 1) / 2 for found in losses])),
            float(np.mean([rank == 1 for rank in ranks])), matched, shuffled, shuffled - matched,
            min(len(captions), CAPTIONS), len(losses),
        ]))  # fmt: skip
    return table


def spread(group: Sequence[Example], count: int) -> list[Example]:
    """At most so many, of as many captions as there are."""
    by_caption: dict[str, list[Example]] = defaultdict(list)
    for example in group:
        by_caption[example.caption].append(example)
    rounds = itertools.zip_longest(*by_caption.values())
    return [example for found in rounds for example in found if example is not None][:count]


def grammar_table(director: Director, held_out: Sequence[Example], sampling: SamplingConfig, seed: int) -> Table:
    """How often the grammar had to forbid what the director would have written first, in scenes of its own."""
    columns = [Column("choices", "count"), Column("first choice forbidden", "share", "down")]
    table = Table("grammar", columns, notes=[
        "choices: places at which the grammar leaves more than one token. First choice: the likeliest of the whole "
        "vocabulary.",
    ])  # fmt: skip
    chosen = spread(held_out, PLANS)
    prompts = [example.caption for example in chosen]
    plans = director.plan(prompts, seeds=seed, sampling=sampling)
    scenes = [director.grammar.scene_ids(plan.boxes, plan.codes) for plan in plans]
    counts: dict[str, list[bool]] = defaultdict(list)
    for scene, score in zip(scenes, _score(director, list(zip(prompts, scenes, strict=True))), strict=True):
        state = GrammarState(Request([]), director.grammar.vocabulary, director.grammar.max_people)
        for token, first in zip(scene, score.firsts.tolist(), strict=True):
            choice = state.choice
            if choice is not None and choice.high - choice.low > 1:
                allowed = choice.start + choice.low <= first < choice.start + choice.high
                counts[choice.kind].append(not allowed)
            state.advance(token)
    for kind, forbidden in [*counts.items(), ("all", sum(counts.values(), []))]:
        table.rows.append(_row(table, kind, [len(forbidden), float(np.mean(forbidden))]))
    agree = np.mean([plan.num_people == example.people for plan, example in zip(plans, chosen, strict=True)])
    table.notes.append(f"The number of people is that of the clip in {agree:.1%} of {len(plans)} scenes.")
    return table


def _row(table: Table, name: str, values: Sequence[float | int]) -> Row:
    return Row(name, {column.name: value for column, value in zip(table.columns, values, strict=True)})


def _score(director: Director, pairs: Sequence[tuple[str, list[int]]]) -> list[SceneScore]:
    """Scores of (caption, scene)."""
    prompts = director.grammar.encode_prompts([caption for caption, _ in pairs])
    with Progress(len(pairs), "scores") as progress:
        found = []
        for score in score_scenes(director, prompts, [scene for _, scene in pairs]):
            found.append(score)
            progress(1)
    return found
