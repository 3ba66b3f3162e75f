"""How well plans say what their captions say, beside real motion and beside retrieval from the training split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from modules.errors import UserError
from modules.evaluation.llm_details import examples
from modules.evaluation.ranks import Ranks
from modules.evaluation.rows import COLUMNS, Scoreboard, column_name
from modules.llm.scenes import decode_codes
from modules.llm.scoring import score_scenes
from modules.metrics.intervals import ClipAverages, Estimate, Units
from modules.metrics.retrieval import CaptionRetrieval
from modules.metrics.scene import VERDICTS, verdict_sums
from modules.pipeline import Pipeline
from modules.pose.actors import clip_actors
from modules.pose.boxes import denormalise, normalise
from modules.pose.io import Plan, plan_from_dict, plan_to_dict
from modules.pose.scene import Clip, Person, Scene
from modules.reports import Column, Table


def make_plans(pipeline: Pipeline, clips: Sequence[Clip], places: Sequence[int], seed: int) -> list[Plan]:
    """Plans of the captions of some clips; that of clip i has the seed seed + i."""
    return pipeline.plan([clips[place].caption for place in places], [seed + place for place in places])


def is_valid(plan: Plan) -> bool:
    """Does the plan pass the checks of plan.json when it is read back?"""
    try:
        found = plan_from_dict(plan_to_dict(plan))
    except UserError:
        return False
    return bool(found.scene_keys.persons) and found.scene_keys.num_frames > 0


@torch.inference_mode()
def quantised(pipeline: Pipeline, keys: Scene) -> Scene:
    """Key poses as the pose tokenizer gives them back: the best that a director can write."""
    poses = torch.from_numpy(normalise(keys.joints, keys.boxes, keys.visibility).astype(np.float32))  # (P, K, J, 2)
    mask = torch.ones(poses.shape[:2], dtype=torch.bool)
    tensors = [tensor.to(pipeline.device) for tensor in (poses, torch.from_numpy(keys.visibility), mask)]
    coords, seen = decode_codes(pipeline.tokenizer, pipeline.tokenizer.encode(*tensors))
    joints = denormalise(coords, keys.boxes, seen).astype(np.float32)
    persons = [Person(*parts) for parts in zip(joints, seen, keys.boxes, strict=True)]
    return dataclasses.replace(keys, persons=persons)


def evaluate(
    pipeline: Pipeline,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Table]:
    """Scores of the plans of held-out captions.

    Args:
        pipeline: with exports of `vqvae`, `llm` and `evaluator`.
        train: the training split, for retrieval and novelty.
        clips: the held-out clips.
        progress: called with the number of new plans, of those that this process makes.
    """
    stride = pipeline.director.stride
    board = Scoreboard(pipeline.evaluator, train, clips, stride)
    retrieval = CaptionRetrieval([clip.caption for clip in train])
    board.open(["real (key poses)", "real, through vqvae", "caption retrieval", "ours"])
    for places in Ranks.current().chunks(len(clips)):
        part = [clips[place] for place in places]
        keys = [clip.scene.keys(stride) for clip in part]
        board.add("real (key poses)", places, keys, novelty=True)
        board.add("real, through vqvae", places, [quantised(pipeline, scene) for scene in keys])
        found = [train[retrieval.nearest(clip.caption)].scene.keys(stride) for clip in part]
        board.add("caption retrieval", places, found)
        plans = make_plans(pipeline, clips, places, seed)
        board.add("ours", places, [plan.scene_keys for plan in plans], valid=[is_valid(p) for p in plans], novelty=True)
        if progress is not None:
            progress(len(places))
    judged, matching, _ = board.tables()
    judged.title = "plans"
    return [judged, matching, next_tokens(pipeline, clips), by_kind(board, "ours")]


@torch.inference_mode()
def next_tokens(pipeline: Pipeline, clips: Sequence[Clip]) -> Table:
    """Cross-entropy, perplexity and accuracy of the next token of the real scenes, by its kind.

    The true tokens stand before each (teacher forcing). Perplexity is over the whole vocabulary (with a depth head, of
    the codes of a key pose: over one codebook); beside it stands that of guessing among the tokens of the kind.
    """
    director, vocabulary = pipeline.director, pipeline.director.grammar.vocabulary
    kinds, names = vocabulary.kind_table, vocabulary.kind_names
    averages = ClipAverages(Units.of(clips).trials, [f"{what} {name}" for name in names for what in ("loss", "hit")])
    for places in Ranks.current().chunks(len(clips)):
        scenes = {
            place: example
            for place in places
            for example in examples(director, pipeline.tokenizer, [clips[place]])
        }  # a clip without people has none
        prompts = director.grammar.encode_prompts([example.caption for example in scenes.values()])
        scores = score_scenes(director, prompts, [example.scene for example in scenes.values()])
        for (place, example), score in zip(scenes.items(), scores, strict=True):
            tokens = np.array(example.scene)
            kind, hits = kinds[tokens], score.firsts == tokens
            sums: dict[str, tuple[float, float]] = {}
            for number in np.unique(kind):
                chosen = kind == number
                sums[f"loss {names[number]}"] = (float(score.losses[chosen].sum()), float(chosen.sum()))
                sums[f"hit {names[number]}"] = (float(hits[chosen].sum()), float(chosen.sum()))
            averages.add(place, sums)
    found = averages.compute()
    columns = [Column("cross-entropy", "number", "down"), Column("perplexity", "number", "down")]
    table = Table("next token", [*columns, Column("of guessing", "count"), Column("accuracy", "share", "up")])
    for number, name in enumerate(names):
        loss = found[f"loss {name}"]
        if loss is None:
            continue
        low, high = (None if end is None else math.exp(end) for end in loss[1:])
        size = int((kinds == number).sum())
        perplexity = Estimate(math.exp(loss.value), low, high)
        figures = {"cross-entropy": loss, "perplexity": perplexity, "accuracy": found[f"hit {name}"]}
        table.add(name, of_guessing=size, **figures)
    table.notes.append("Of real scenes, with the true tokens before each. depth q: code q of a key pose.")
    return table


def by_kind(board: Scoreboard, name: str) -> Table:
    """A row's scores by the number of people, and by whether an action's phrasing is in the training split."""
    clips = board.clips
    columns = [*(column for column in COLUMNS if column.name not in ("valid", "novelty")), Column("clips", "count")]
    table = Table("ours, by kind of caption", columns)
    groups = {
        f"{n} {'person' if n == 1 else 'people'}": [len(clip_actors(clip)) == n for clip in clips] for n in (1, 2, 3, 4)
    }
    if any("held_out_phrasing" in clip.meta for clip in clips):
        groups["known phrasing"] = [not clip.meta.get("held_out_phrasing") for clip in clips]
        groups["held-out phrasing"] = [bool(clip.meta.get("held_out_phrasing")) for clip in clips]
    for group, members in groups.items():
        if not any(members):
            continue
        averages = ClipAverages(board.units.trials, VERDICTS)
        for place, verdict in board.verdicts[name].items():
            if members[place]:
                averages.add(place, verdict_sums(verdict))
        figures = {column_name(key).replace(" ", "_"): value for key, value in averages.compute().items()}
        table.add(group, clips=sum(members), **figures)
    return table
