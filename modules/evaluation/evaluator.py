"""How well the action classifier knows real motion that it has not seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from modules.evaluator.network import Evaluator
from modules.pose.actors import clip_actors
from modules.pose.scene import Clip
from modules.reports import Column, Table


def evaluate(network: Evaluator, clips: Sequence[Clip], *, stride: int) -> list[Table]:
    """Accuracy by person, over dense poses and over key poses, beside always saying the commonest action.

    Args:
        clips: real clips of a held-out split.
        stride: dense frames per key pose.
    """
    truth = [actor.action for clip in clips for actor in clip_actors(clip)]
    dense = [name for scene in network.classify([clip.scene for clip in clips]) for name in scene]
    keys = [name for scene in network.classify([clip.scene.keys(stride) for clip in clips]) for name in scene]
    commonest, count = Counter(truth).most_common(1)[0]

    overall = Table(
        "action classifier",
        [Column("dense poses", "share", "up"), Column("key poses", "share", "up"), Column("people", "count")],
    )
    share = count / len(truth)
    overall.add(f"always '{commonest}'", dense_poses=share, key_poses=share, people=len(truth))
    overall.add("ours", dense_poses=_accuracy(dense, truth), key_poses=_accuracy(keys, truth), people=len(truth))
    overall.notes.append("Share of people whose action is recognised; every person of a clip is a sample.")
    if unknown := set(truth) - set(network.labels):
        overall.notes.append(f"Not in the training split, so always wrong: {', '.join(sorted(unknown))}.")

    by_action: dict[str, list[int]] = defaultdict(list)
    for index, action in enumerate(truth):
        by_action[action].append(index)
    columns = [*overall.columns, Column("most often taken for", "text")]
    per_class = Table("by action", columns, notes=["Confusions are those over dense poses."])
    for action, members in sorted(by_action.items()):
        wrong = Counter(dense[i] for i in members if dense[i] != action).most_common(1)
        per_class.add(
            action,
            dense_poses=_accuracy([dense[i] for i in members], [action] * len(members)),
            key_poses=_accuracy([keys[i] for i in members], [action] * len(members)),
            people=len(members),
            most_often_taken_for=f"{wrong[0][0]} ({wrong[0][1]})" if wrong else None,
        )
    return [overall, per_class]


def _accuracy(found: Sequence[str], truth: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth)
