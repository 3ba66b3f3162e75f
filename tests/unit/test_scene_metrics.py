"""Judging scenes: geometry against the sample data's own labels, captions, retrieval, novelty."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from datamodules.synthetic.clips import synthesise
from modules.metrics.geometry import SIDE_LIMBS, moving_side, travel_direction
from modules.metrics.novelty import gather_motions, nearest_distances
from modules.metrics.retrieval import CaptionRetrieval
from modules.metrics.scene import (
    VERDICTS,
    SceneVerdict,
    boxes_on,
    judge_scene,
    match_boxes,
    scene_seconds,
    verdict_sums,
)
from modules.pose.actors import Actor, clip_actors
from modules.pose.scene import Clip, Scene, make_person

NO_FACE = [14, 15, 16, 17]


def synthetic(index: int) -> Clip:
    made = synthesise(0, "test", index)
    meta, frames = made.meta, made.pose.shape[1]
    people = [make_person(pose[..., :2], pose[..., 2] > 0.1, meta["width"], meta["height"]) for pose in made.pose]
    scene = Scene(meta["width"], meta["height"], 30.0, np.arange(frames) / 30, people, meta["caption"])
    return Clip(f"test{index}", scene, meta["caption"], meta["label"], meta)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [synthetic(index) for index in range(48)]


@pytest.mark.parametrize("stride", [1, 10])
def test_direction_and_side_agree_with_the_sample_data(clips: list[Clip], stride: int) -> None:
    directions, sides = [], []
    for clip in clips:
        scene = clip.scene.keys(stride)
        for person, actor in zip(scene.persons, clip_actors(clip), strict=True):
            directions.append(travel_direction(person, scene.times) == actor.direction)
            if actor.action in SIDE_LIMBS:
                sides.append(moving_side(person, actor.action) == actor.side)
    assert len(directions) > 50
    assert np.mean(directions) >= 0.97
    assert len(sides) > 5
    assert np.mean(sides) >= 0.97


def test_a_mirrored_scene_goes_the_other_way_with_the_other_hand(clips: list[Clip]) -> None:
    other = {"left": "right", "right": "left"}
    for clip in clips:
        mirrored = clip.scene.mirrored()
        for person, twin, actor in zip(clip.scene.persons, mirrored.persons, clip_actors(clip), strict=True):
            direction = travel_direction(person, clip.scene.times)
            assert travel_direction(twin, clip.scene.times) == other.get(direction, direction)
            side = moving_side(person, actor.action)
            assert moving_side(twin, actor.action) == other.get(side, side)


def test_who_is_never_seen_travels_nowhere() -> None:
    person = make_person(np.ones((5, 18, 2)), np.ones((5, 18), bool), 64, 64)
    person.visibility[:] = False
    assert travel_direction(person, np.arange(5) / 30) == "none"
    assert moving_side(person, "wave") in ("left", "right", "both")


def test_boxes_of_another_canvas_are_compared_as_shares_of_it(clips: list[Clip]) -> None:
    scene = clips[0].scene
    large = dataclasses.replace(scene, width=20 * scene.width, height=10 * scene.height)
    large.persons = [dataclasses.replace(p, box=p.box * np.array([20, 10, 20, 10])) for p in scene.persons]
    assert match_boxes(large.boxes, scene.boxes) < 0.1
    assert match_boxes(large.boxes, boxes_on(scene, large.width, large.height)) == pytest.approx(1)


def judge(clip: Clip, scene: Scene, actions: list[str] | None = None) -> SceneVerdict:
    actors = clip_actors(clip)
    actions = actions if actions is not None else [actor.action for actor in actors]
    return judge_scene(scene, actions, actors, clip.meta["seconds"], clip.scene.boxes)


def test_real_scenes_are_what_their_captions_say(clips: list[Clip]) -> None:
    for clip in clips:
        for scene in (clip.scene, clip.scene.keys(10)):
            verdict = judge(clip, scene)
            assert verdict.count
            assert verdict.duration
            assert verdict.caption
            assert verdict.box_iou == pytest.approx(1.0)


def test_a_missing_person_is_wrong_in_everything(clips: list[Clip]) -> None:
    clip = next(clip for clip in clips if len(clip.scene.persons) == 2)
    scene = copy.copy(clip.scene)
    scene.persons = scene.persons[:1]
    verdict = judge(clip, scene, [clip_actors(clip)[0].action])
    assert not verdict.count
    assert not verdict.caption
    assert verdict.actions == [True, False]
    assert verdict.directions[1] is False
    assert verdict.box_iou <= 0.5


def test_people_are_judged_from_left_to_right(clips: list[Clip]) -> None:
    clip = next(c for c in clips if len(c.scene.persons) == 2 and len({a.action for a in clip_actors(c)}) == 2)
    swapped = copy.copy(clip.scene)
    swapped.persons = swapped.persons[::-1]
    actions = [actor.action for actor in clip_actors(clip)]
    assert judge(clip, swapped, actions[::-1]).actions == [True, True]
    assert judge(clip, clip.scene, actions[::-1]).actions == [False, False]


def test_what_a_caption_does_not_say_is_not_judged(clips: list[Clip]) -> None:
    scene = clips[0].scene
    verdict = judge_scene(scene, ["x"] * len(scene.persons), [Actor("x")] * len(scene.persons), 1.0, scene.boxes)
    assert verdict.directions == verdict.sides == [None] * len(scene.persons)
    assert verdict.caption
    assert verdict_sums(verdict)["direction"] == (0.0, 0.0)
    unnamed = judge_scene(scene, ["x"] * len(scene.persons), [Actor("")] * len(scene.persons), 1.0, scene.boxes)
    assert unnamed.actions == [None] * len(scene.persons)
    assert verdict_sums(unnamed)["action"] == (0.0, 0.0)


def test_duration_counts_the_time_up_to_the_next_pose(clips: list[Clip]) -> None:
    scene = clips[0].scene
    seconds = scene.num_frames / 30
    assert scene_seconds(scene) == pytest.approx(seconds)
    assert abs(scene_seconds(scene.keys(10)) - seconds) < 0.34
    short = scene.crop(0, scene.num_frames - 15)
    assert not judge_scene(short, [], [], seconds, scene.boxes).duration


def test_boxes_are_matched_in_any_order() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 20]], np.float32)
    assert match_boxes(boxes[::-1].copy(), boxes) == pytest.approx(1.0)
    assert match_boxes(boxes[:1], boxes) == pytest.approx(0.5)
    assert match_boxes(boxes[:0], boxes) == 0.0
    assert match_boxes(np.array([[0, 0, 10, 5]], np.float32), boxes[:1]) == pytest.approx(0.5)


def test_people_and_scenes_count_as_the_caption_has_them(clips: list[Clip]) -> None:
    totals = dict.fromkeys(VERDICTS, 0.0)
    for clip in clips:
        sums = verdict_sums(judge(clip, clip.scene, [actor.action for actor in clip_actors(clip)]))
        totals = {name: totals[name] + sums[name][1] for name in VERDICTS}
        assert sums["action"] == (float(len(clip.scene.persons)),) * 2
    actors = [actor for clip in clips for actor in clip_actors(clip)]
    assert totals["caption"] == totals["count"] == totals["box_iou"] == len(clips)
    assert totals["direction"] == sum(actor.direction != "none" for actor in actors)
    assert totals["side"] == sum(actor.side != "none" for actor in actors)


def test_retrieval_finds_the_same_words() -> None:
    captions = ["A man walks to the left.", "A woman waves her left hand.", "A man runs to the right for 4.5 seconds."]
    retrieval = CaptionRetrieval(captions)
    assert [retrieval.nearest(caption) for caption in captions] == [0, 1, 2]
    assert retrieval.nearest("a person waves") == 1
    assert retrieval.nearest("4.5 seconds") == 2
    assert retrieval.nearest("nothing in common") == 0


def test_pairs_of_words_tell_who_does_what() -> None:
    captions = ["a man waves, a woman runs", "a man runs, a woman waves"]
    assert CaptionRetrieval(captions).nearest("the man and the woman waves") == 1


def test_a_copy_is_not_novel_and_a_shorter_copy_neither(clips: list[Clip]) -> None:
    scenes = [clip.scene for clip in clips]
    known = gather_motions(scenes[:40], 10)
    copies = gather_motions([scene.keys(10) for scene in scenes[:40]], 10)
    assert nearest_distances(copies, known).max() == 0
    cut = gather_motions([scene.keys(10).at(range(4)) for scene in scenes[:5]], 10)
    assert nearest_distances(cut, known).max() == 0
    assert nearest_distances(gather_motions(scenes[40:], 10), known).min() > 0


def test_unseen_joints_do_not_count_as_distance(clips: list[Clip]) -> None:
    scene = copy.deepcopy(clips[0].scene.keys(10))
    for person in scene.persons:
        person.visibility[:, NO_FACE] = False
        person.joints[:, NO_FACE] = 0
    known = gather_motions([clips[0].scene], 10)
    assert nearest_distances(gather_motions([scene], 10), known).max() == 0
