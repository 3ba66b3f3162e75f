"""The tables of generated scenes: one row a method, filled chunk by chunk, put together over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from modules.evaluator.network import Evaluator
from modules.metrics import pose as pose_metrics
from modules.metrics.embedding import POOL, distinct
from modules.metrics.intervals import ClipAverages, Units
from modules.metrics.matching import MatchingScores
from modules.metrics.novelty import Motions, gather_motions, nearest_distances
from modules.metrics.scene import VERDICTS, SceneVerdict, boxes_on, judge_scene, verdict_sums
from modules.pose.actors import clip_actors
from modules.pose.boxes import normalise
from modules.pose.scene import Clip, Person, Scene
from modules.reports import Column, Table

COLUMNS = [
    Column("valid", "share", "up"),
    Column("people", "share", "up"),
    Column("duration", "share", "up"),
    Column("box IoU", "number", "up"),
    Column("action", "share", "up"),
    Column("direction", "share", "up"),
    Column("side", "share", "up"),
    Column("whole caption", "share", "up"),
    Column("novelty", "number"),
]
NOTES = [
    "valid: the plan passes every check of plan.json. people: right number of them. duration: within 0.25 s.",
    "action: by the evaluator. direction: of those who travel, by geometry. side: of those whose caption names one.",
    "whole caption: number of people, and action, direction and side of everybody (those who do not travel must not).",
    "novelty: mean distance to the nearest training motion, box units (half of the longer side = 1); 0 is a copy.",
]
MATCHING_COLUMNS = [
    Column("FID", "fine", "down"),
    Column("KID", "fine", "down"),
    Column("R@1", "share", "up"),
    Column("R@2", "share", "up"),
    Column("R@3", "share", "up"),
    Column("MM-Dist", "number", "down"),
    Column("Diversity", "number"),
    Column("Multimodality", "number"),
]
KINEMATIC_COLUMNS = [
    Column("acceleration", "fine"),
    Column("jerk", "fine"),
    Column("bone drift", "fine", "down"),
    Column("foot skate (2D proxy)", "fine", "down"),
    Column("at keys", "fine", "down"),
    Column("MPJPE", "fine", "down"),
    Column("PCK", "share", "up"),
    Column("OKS", "number", "up"),
    Column("acceleration error", "fine", "down"),
]
KINEMATIC_NOTES = [
    "Box units (half of the longer side of the person's box = 1) a frame^2, a frame^3 for jerk. bone drift: change of "
    "a limb's length from frame to frame as a share of it; in pictures real limbs change too.",
    "foot skate (2D proxy): sideways speed of the lower ankle in torso lengths a frame while its height stays.",
    "at keys: distance of the dense poses from the key poses that they were made from. MPJPE, PCK@0.2 of the torso, "
    "OKS and acceleration error: against the real motion, where real key poses were given.",
]
_NAMES = {"count": "people", "box_iou": "box IoU", "caption": "whole caption"}
_KINEMATIC = tuple(column.name for column in KINEMATIC_COLUMNS)


class Row:
    """What one method has scored so far, in this process."""

    def __init__(self, units: Units, matching: MatchingScores) -> None:
        self.judged = ClipAverages(units.trials, (*VERDICTS, "valid", "novelty"))
        self.moved = ClipAverages(units.trials, _KINEMATIC)
        self.matching = matching


class Scoreboard:
    """Judges scenes against the captions of a split, row by row.

    Args:
        evaluator: names the actions, and puts captions and motions into one space.
        train: the training split: captions for pools that the split cannot fill, motions for the novelty.
        clips: the held-out clips, whose captions count and whose scenes are the reference.
        stride: dense frames per key pose.
        repeats: motions of one caption for Multimodality.
    """

    def __init__(
        self, evaluator: Evaluator, train: Sequence[Clip], clips: Sequence[Clip], stride: int, repeats: int = 0
    ) -> None:
        self.evaluator, self.clips, self.stride, self.repeats = evaluator, clips, stride, repeats
        self.units = Units.of(clips)
        self.train: Motions = gather_motions([clip.scene for clip in train], stride)
        names, self._own = distinct([clip.caption for clip in clips])
        self._captions = evaluator.embed_texts(names).double().numpy()
        more = list(dict.fromkeys(clip.caption for clip in train if clip.caption not in set(names)))
        self.others = evaluator.embed_texts(more if len(names) < POOL else []).double().numpy()
        self._real: dict[int, np.ndarray] = {}
        self.rows: dict[str, Row] = {}
        self.verdicts: dict[str, dict[int, SceneVerdict]] = {}

    @property
    def pool(self) -> int:
        """Captions in a pool."""
        return min(POOL, len(self._captions) + len(self.others))

    def real(self, places: Sequence[int]) -> np.ndarray:
        """Embeddings of the real motion of some clips, (B, D)."""
        missing = [place for place in places if place not in self._real]
        if missing:
            found = self.evaluator.embed_scenes([self.clips[place].scene for place in missing]).double().numpy()
            self._real |= dict(zip(missing, found, strict=True))
        return np.stack([self._real[place] for place in places])

    def _row(self, name: str) -> Row:
        if name not in self.rows:
            matching = MatchingScores(self.units, self._own, self._captions, self.others, repeats=self.repeats)
            self.rows[name] = Row(self.units, matching)
            self.verdicts[name] = {}
        return self.rows[name]

    def open(self, names: Sequence[str]) -> None:
        """Rows in their order; every process must have the same ones, also where it has no clip."""
        for name in names:
            self._row(name)

    def add(
        self,
        name: str,
        places: Sequence[int],
        scenes: Sequence[Scene],
        *,
        valid: Sequence[bool] | None = None,
        novelty: bool = False,
        keys: Sequence[Scene] | None = None,
        paired: bool = False,
        again: np.ndarray | None = None,
    ) -> None:
        """Judge a method's scenes of some clips.

        Args:
            places: of the clips in the split.
            scenes: dense or key poses.
            valid: whether each plan passes the checks.
            novelty: measure the distance to the training motions.
            keys: the key poses that dense scenes were made from.
            paired: the people are those of the clip, in its order: errors against the real motion mean something.
            again: (B, R, D) embeddings of further motions of the same captions; NaN where there are none.
        """
        row = self._row(name)
        actions = self.evaluator.classify(scenes)
        embedded = self.real(places) if scenes[0] is self.clips[places[0]].scene else (
            self.evaluator.embed_scenes(scenes).double().numpy()
        )
        row.matching.update(places, embedded, self.real(places), again)
        for i, (place, scene) in enumerate(zip(places, scenes, strict=True)):
            clip = self.clips[place]
            boxes = boxes_on(clip.scene, scene.width, scene.height)
            verdict = judge_scene(scene, actions[i], clip_actors(clip), caption_seconds(clip), boxes)
            self.verdicts[name][place] = verdict
            sums = verdict_sums(verdict)
            if valid is not None:
                sums["valid"] = (float(valid[i]), 1.0)
            if novelty and scene.persons:
                distance = nearest_distances(gather_motions([scene], self.stride), self.train)
                sums["novelty"] = (float(distance.sum()), float(len(distance)))
            row.judged.add(place, sums)
            if is_dense(scene, self.stride):
                truth = clip.scene if paired else None
                row.moved.add(place, kinematics(scene, keys[i] if keys is not None else None, truth))
            else:
                row.moved.add(place, {})

    def tables(self) -> list[Table]:
        """Captions, matching and kinematics. All processes must call it together."""
        judged, matching = Table("chain", COLUMNS, notes=list(NOTES)), Table("text and motion", MATCHING_COLUMNS)
        moved = Table("kinematics", KINEMATIC_COLUMNS, notes=list(KINEMATIC_NOTES))
        reasons: dict[str, None] = {}
        for name, row in self.rows.items():
            figures = row.judged.compute()
            judged.add(name, **{column_name(key).replace(" ", "_"): value for key, value in figures.items()})
            scores = row.matching.compute()
            matching.add(name, **{key.replace(" ", "_"): value for key, value in scores.items()})
            moving = row.moved.compute()
            if any(value is not None for value in moving.values()):
                moved.add(name, **{key.replace(" ", "_"): value for key, value in moving.items()})
            if (reason := row.matching.reason) is not None:
                reasons[reason] = None
        judged.notes.append(f"± is half of the 95 % interval by bootstrap over trials: {self.units}.")
        matching.notes = [self.about_matching(), *reasons]
        return [judged, matching, moved]

    def about_matching(self) -> str:
        """How the figures of matching were made."""
        pool, words = self.pool, self.evaluator.config.embedding
        filled = f", filled up with {len(self.others)} captions of the training split" if len(self.others) else ""
        chance = " / ".join(f"{k / pool:.1%}" for k in (1, 2, 3))
        return (
            f"Embeddings of the evaluator, {words} dimensions, of length 1. R@k: pools of {pool} distinct captions "
            f"({len(self._captions)} in the split{filled}), 20 pools a clip, Euclidean; chance {chance}. KID: "
            "unbiased, kernel (cos + 1)^3; of real motion: between random halves, the noise floor. FID of real motion "
            "is 0 by construction. Diversity: 300 pairs, 20 times. Multimodality: pairs of motions of one caption."
        )


def column_name(figure: str) -> str:
    """The column of a figure of `VERDICTS`."""
    return _NAMES.get(figure, figure)


def is_dense(scene: Scene, stride: int) -> bool:
    """Dense poses, not key poses."""
    return scene.num_frames > 1 and scene.times[1] - scene.times[0] < (stride - 0.5) / scene.fps


def caption_seconds(clip: Clip) -> float:
    """The duration that a caption states; that of the clip where it states none."""
    return float(clip.meta.get("seconds", clip.scene.num_frames / clip.scene.fps))


def kinematics(scene: Scene, keys: Scene | None, truth: Scene | None) -> dict[str, tuple[float, float]]:
    """Figures of `KINEMATIC_COLUMNS` of one dense scene, as sums and counts over its people."""
    sums: dict[str, np.ndarray] = {}

    def add(name: str, average: pose_metrics.Average) -> None:
        sums[name] = sums.get(name, np.zeros(2)) + [float(average.total), float(average.count)]

    for index, person in enumerate(scene.persons):
        poses, seen = _tensors(person, person.box)
        add("acceleration", pose_metrics.mean_acceleration(poses, seen))
        add("jerk", pose_metrics.mean_jerk(poses, seen))
        add("bone drift", pose_metrics.bone_drift(poses, seen))
        add("foot skate (2D proxy)", pose_metrics.foot_skate(poses, seen))
        if keys is not None:
            given, shown = _tensors(keys.persons[index], person.box)
            at = np.round(keys.times * scene.fps).astype(int)
            at, count = at[at < scene.num_frames], int((at < scene.num_frames).sum())
            add("at keys", pose_metrics.position_error(poses[:, at], given[:, :count], shown[:, :count]))
        if truth is not None:
            real, visible = _tensors(truth.persons[index], truth.persons[index].box)
            ours, _ = _tensors(person, truth.persons[index].box)
            frames = min(real.shape[1], ours.shape[1])
            # After the last key nothing says what happens.
            frames = min(frames, int(round(float(keys.times[-1]) * scene.fps)) + 1) if keys is not None else frames
            real, visible, ours = real[:, :frames], visible[:, :frames], ours[:, :frames]
            add("MPJPE", pose_metrics.position_error(ours, real, visible))
            add("PCK", pose_metrics.correct_keypoints(ours, real, visible))
            similarity, counted = pose_metrics.keypoint_similarity(ours, real, visible)
            add("OKS", pose_metrics.masked_average(similarity, counted))
            add("acceleration error", pose_metrics.difference_error(ours, real, visible, order=2))
    return {name: (float(total), float(count)) for name, (total, count) in sums.items()}


def _tensors(person: Person, box: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, N, J, 2) box coordinates and (1, N, J) visibility."""
    poses = normalise(person.joints, box, person.visibility).astype(np.float32)
    return torch.from_numpy(poses)[None], torch.from_numpy(person.visibility)[None]
