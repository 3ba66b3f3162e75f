"""What the evaluator is worth: its retrieval on real held-out motion, and whether damage moves its figures."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from modules.evaluation.ablation import mean_pose, spline, stand_still
from modules.evaluation.ranks import Ranks
from modules.evaluation.rows import (
    KINEMATIC_COLUMNS,
    KINEMATIC_NOTES,
    MATCHING_COLUMNS,
    Scoreboard,
    kinematics,
)
from modules.evaluator.network import Evaluator
from modules.metrics.embedding import distinct
from modules.metrics.intervals import ClipAverages, Units
from modules.metrics.matching import MatchingScores
from modules.metrics.retrieval import CaptionRetrieval
from modules.pose.actors import clip_actors, swap_sides
from modules.pose.boxes import denormalise, normalise
from modules.pose.scene import Clip, Person, Scene
from modules.reports import Column, Table

NOISES = (0.05, 0.1, 0.4)  # box units


def evaluate(
    network: Evaluator,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    *,
    stride: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Table]:
    """Text-motion matching on real and on damaged motion; kinematics of baselines; accuracy of the action classifier.

    Args:
        train: the training split, for retrieval and the mean pose.
        clips: real clips of a held-out split.
        stride: dense frames per key pose.
        progress: called with the number of clips done, of those that this process scores.
    """
    board = Scoreboard(network, train, clips, stride)
    tables = [_matching(board, train, clips, seed, progress), _kinematics(train, clips, stride)]
    return tables + (_accuracies(network, clips, stride) if network.labels else [])


def noisy(scene: Scene, size: float, rng: np.random.Generator) -> Scene:
    """Every joint of every frame moved by chance: standard deviation in box units."""

    def changed(person: Person) -> Person:
        coords = normalise(person.joints, person.box, person.visibility)
        coords = coords + size * rng.standard_normal(coords.shape)
        joints = denormalise(coords, person.box, person.visibility).astype(np.float32)
        return Person(joints, person.visibility, person.box)

    return dataclasses.replace(scene, persons=[changed(person) for person in scene.persons])


def frozen(scene: Scene) -> Scene:
    """The first frame, held."""
    return dataclasses.replace(scene.at(np.zeros(scene.num_frames, int)), times=scene.times)


def _matching(
    board: Scoreboard, train: Sequence[Clip], clips: Sequence[Clip], seed: int, progress: Callable[[int], None] | None
) -> Table:
    network, retrieval = board.evaluator, CaptionRetrieval([clip.caption for clip in train])
    still, ranks = mean_pose(train), Ranks.current()
    captions = [clip.caption for clip in clips]
    swapped = [swap_sides(caption) for caption in captions]
    sided = [place for place, (a, b) in enumerate(zip(captions, swapped, strict=True)) if a != b]
    rows: dict[str, MatchingScores] = {}

    def row(name: str, texts: Sequence[str]) -> MatchingScores:
        names, own = distinct(texts)
        rows[name] = MatchingScores(board.units, own, network.embed_texts(names).double().numpy(), board.others)
        return rows[name]

    changes: dict[str, Callable[[int, np.random.Generator], Scene]] = {
        "real": lambda i, rng: clips[i].scene,
        "real, key poses": lambda i, rng: clips[i].scene.keys(board.stride),
        **{f"noise {size:g}": (lambda i, rng, size=size: noisy(clips[i].scene, size, rng)) for size in NOISES},
        "frozen": lambda i, rng: frozen(clips[i].scene),
        "mirrored": lambda i, rng: clips[i].scene.mirrored(),
        "mean pose in the real boxes": lambda i, rng: stand_still(clips[i].scene, *still),
        "caption retrieval": lambda i, rng: train[retrieval.nearest(captions[i])].scene,
    }
    for name in changes:
        row(name, captions)
    row("shuffled captions", shuffled(captions, seed))
    if sided:
        row("captions with a side: real", captions)
        row("captions with a side: mirrored motion", captions)
        row("captions with a side: left and right swapped in them", swapped)
    for places in ranks.chunks(len(clips)):
        real, among = board.real(places), [i for i, place in enumerate(places) if place in set(sided)]
        chosen = [places[i] for i in among]
        for number, (name, change) in enumerate(changes.items()):
            scenes = [change(i, np.random.default_rng([seed, number, i])) for i in places]
            found = real if name == "real" else network.embed_scenes(scenes).double().numpy()
            rows[name].update(places, found, real)
            if name == "mirrored" and chosen:
                rows["captions with a side: mirrored motion"].update(chosen, found[among], real[among])
        rows["shuffled captions"].update(places, real, real)
        if chosen:
            rows["captions with a side: real"].update(chosen, real[among], real[among])
            rows["captions with a side: left and right swapped in them"].update(chosen, real[among], real[among])
        if progress is not None:
            progress(len(places))
    table = Table("text-motion matching", [*MATCHING_COLUMNS[:-1], Column("clips", "count")])
    reasons: dict[str, None] = {}
    for name, scores in rows.items():
        figures = scores.compute()
        figures.pop("Multimodality")
        clips_of = len(sided) if name.startswith("captions with a side") else len(clips)
        table.add(name, clips=clips_of, **{key: value for key, value in figures.items()})
        if scores.reason is not None and clips_of == len(clips):
            reasons[scores.reason] = None
    table.notes = [
        f"± is half of the 95 % interval by bootstrap over trials: {board.units}.", board.about_matching(), *reasons,
        "Noise is in box units. FID and KID see the motion alone: captions that are shuffled or swapped cannot change "
        "them, and where the data show left and right alike, neither can a mirror.",
    ]  # fmt: skip
    return table


def shuffled(captions: Sequence[str], seed: int) -> list[str]:
    """Captions dealt out anew, so that, as far as it goes, none gets its own."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(captions))
    for _ in range(20):
        same = [i for i, j in enumerate(order) if captions[i] == captions[j]]
        if not same:
            break
        for i in same:
            other = int(rng.integers(len(captions)))
            order[i], order[other] = order[other], order[i]
    return [str(captions[i]) for i in order]


def _kinematics(train: Sequence[Clip], clips: Sequence[Clip], stride: int) -> Table:
    """Real motion beside splines through its key poses, at the stride and at one key a second."""
    units, rows = Units.of(clips), dict[str, ClipAverages]()
    names = [column.name for column in KINEMATIC_COLUMNS]
    still = mean_pose(train)
    strides = dict.fromkeys((stride, round(clips[0].scene.fps)))
    for name in ("real", "mean pose in the real boxes", *(f"PCHIP, keys every {s} frames" for s in strides)):
        rows[name] = ClipAverages(units.trials, names)
    for places in Ranks.current().chunks(len(clips)):
        for place in places:
            scene = clips[place].scene
            rows["real"].add(place, kinematics(scene, None, None))
            rows["mean pose in the real boxes"].add(place, kinematics(stand_still(scene, *still), None, scene))
            for s in strides:
                keys = scene.keys(s)
                figures = kinematics(spline(keys, s), keys, scene) if keys.num_frames > 1 else {}
                rows[f"PCHIP, keys every {s} frames"].add(place, figures)
    table = Table("kinematics", KINEMATIC_COLUMNS, notes=[*KINEMATIC_NOTES, f"± over trials: {units}."])
    for name, row in rows.items():
        table.add(name, **{key.replace(" ", "_"): value for key, value in row.compute().items()})
    return table


def _accuracies(network: Evaluator, clips: Sequence[Clip], stride: int) -> list[Table]:
    """Accuracy by person, over dense poses and over key poses, beside always saying the commonest action."""
    units, columns = Units.of(clips), [Column("dense poses", "share", "up"), Column("key poses", "share", "up")]
    truth = [[actor.action for actor in clip_actors(clip)] for clip in clips]
    counted = Counter(action for people in truth for action in people if action)
    commonest = counted.most_common(1)[0][0]
    overall, actions = ClipAverages(units.trials, ("dense", "keys", "constant")), sorted(counted)
    each = ClipAverages(units.trials, [f"{kind} {action}" for action in actions for kind in ("dense", "keys")])
    names = sorted({*actions, *network.labels})
    confusion, number = MulticlassConfusionMatrix(len(names)), {name: i for i, name in enumerate(names)}
    for places in Ranks.current().chunks(len(clips)):
        scenes = [clips[place].scene for place in places]
        dense, keys = network.classify(scenes), network.classify([scene.keys(stride) for scene in scenes])
        for i, place in enumerate(places):
            sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for wanted, a, b in zip(truth[place], dense[i], keys[i], strict=True):
                if not wanted:
                    continue
                for name, right in (("dense", a == wanted), ("keys", b == wanted), ("constant", wanted == commonest)):
                    for key in (name, f"{name} {wanted}") if name != "constant" else (name,):
                        sums[key][0] += right
                        sums[key][1] += 1
                confusion.update(torch.tensor([number[a]]), torch.tensor([number[wanted]]))
            pairs = {name: (total, count) for name, (total, count) in sums.items()}
            overall.add(place, {name: pair for name, pair in pairs.items() if name in overall.figures})
            each.add(place, {name: pair for name, pair in pairs.items() if name in each.figures})
    people, found = sum(counted.values()), overall.compute()
    table = Table("action classifier", [*columns, Column("people", "count")])
    table.add(f"always '{commonest}'", dense_poses=found["constant"], key_poses=found["constant"], people=people)
    table.add("ours", dense_poses=found["dense"], key_poses=found["keys"], people=people)
    table.notes.append("Share of people whose action is recognised; every person of a clip is a sample.")
    if unknown := set(counted) - set(network.labels):
        table.notes.append(f"Not in the training split, so always wrong: {', '.join(sorted(unknown))}.")
    columns += [Column("people", "count"), Column("most often taken for", "text")]
    per_class, shares = Table("by action", columns, notes=["Confusions are those over dense poses."]), each.compute()
    taken = confusion.compute()
    taken.fill_diagonal_(0)
    for action in actions:
        wrong = taken[number[action]]
        other = f"{names[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.max() > 0 else None
        figures = {f"{kind}_poses": shares[f"{name} {action}"] for kind, name in (("dense", "dense"), ("key", "keys"))}
        per_class.add(action, people=counted[action], most_often_taken_for=other, **figures)
    return [table, per_class]
