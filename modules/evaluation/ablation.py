"""Dense scenes for the rows of the chain's table: each stage replaced by the truth in turn, and trivial baselines.

Letters: P persons, K keys, T dense frames, J joints (18).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from modules.interp.sampler import sample
from modules.interp.splines import clip_spline
from modules.pipeline import Pipeline
from modules.pose.boxes import denormalise, normalise
from modules.pose.scene import Clip, Person, Scene
from modules.pose.skeleton import NUM_JOINTS


def mean_pose(train: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """(J, 2) mean of the training poses in box coordinates, and (J,) which joints are seen most of the time."""
    total, count, frames = np.zeros((NUM_JOINTS, 2)), np.zeros(NUM_JOINTS), 0
    for clip in train:
        for person in clip.scene.persons:
            total += normalise(person.joints, person.box, person.visibility).sum(0)
            count += person.visibility.sum(0)
            frames += len(person.visibility)
    return total / np.maximum(count, 1)[:, None], count > frames / 2


def stand_still(scene: Scene, pose: np.ndarray, seen: np.ndarray) -> Scene:
    """The mean pose in the box of everybody, for as long as the scene."""
    persons = []
    for person in scene.persons:
        joints = denormalise(pose, person.box, seen).astype(np.float32)
        shape = (scene.num_frames, 1)
        persons.append(Person(np.tile(joints, (*shape, 1)), np.tile(seen, shape), person.box))
    return dataclasses.replace(scene, persons=persons)


def spline(keys: Scene, stride: int) -> Scene:
    """Dense poses by PCHIP through key poses, K * stride of them; after the last key the pose is held."""
    at = np.arange(keys.num_frames) * stride
    frames = np.minimum(np.arange(keys.num_frames * stride), at[-1])
    nearest = np.abs(frames[:, None] - at).argmin(1)
    persons = []
    for person in keys.persons:
        coords = normalise(person.joints, person.box, person.visibility).astype(np.float32)
        if len(at) > 1:
            poses = clip_spline(coords, person.visibility, at, frames, "pchip")
        else:
            poses = coords[np.zeros(len(frames), int)]
        seen = person.visibility[nearest]
        persons.append(Person(denormalise(poses, person.box, seen).astype(np.float32), seen, person.box))
    return dataclasses.replace(keys, times=np.arange(len(frames)) / keys.fps, persons=persons)


def interpolated(
    pipeline: Pipeline, scenes: Sequence[Scene], prompts: Sequence[str], stride: int, seed: int
) -> list[Scene]:
    """Dense poses by the interpolator through key poses, K * stride of them; everybody of all scenes in one batch.

    `Pipeline.dense` does the same one person at a time, with noise that is tied to the plan: what users get. Here only
    the figures count, and a batch is several times as fast.
    """
    people = [(number, person) for number, scene in enumerate(scenes) for person in scene.persons]
    if not people:
        return [dataclasses.replace(s, times=np.arange(s.num_frames * stride) / s.fps) for s in scenes]
    longest = max(scene.num_frames for scene in scenes)
    keys = torch.zeros(len(people), longest, NUM_JOINTS, 2)
    seen = torch.zeros(len(people), longest, NUM_JOINTS, dtype=torch.bool)
    mask = torch.zeros(len(people), longest, dtype=torch.bool)
    times = torch.zeros(len(people), longest, dtype=torch.float64)
    for row, (number, person) in enumerate(people):
        count = scenes[number].num_frames
        coords = normalise(person.joints, person.box, person.visibility).astype(np.float32)
        keys[row, :count], seen[row, :count] = torch.from_numpy(coords), torch.from_numpy(person.visibility)
        mask[row, :count], times[row, :count] = True, torch.from_numpy(scenes[number].times)
    found = sample(
        pipeline.interpolator,
        keys.to(pipeline.device),
        seen.to(pipeline.device),
        mask.to(pipeline.device),
        times.to(pipeline.device),
        longest * stride,
        [prompts[number] for number, _ in people],
        sampling=pipeline.config.interp,
        generator=torch.Generator().manual_seed(seed),
    )
    joints, visible = found.joints.cpu().numpy(), found.visibility.cpu().numpy()
    persons: list[list[Person]] = [[] for _ in scenes]
    for row, (number, person) in enumerate(people):
        frames = scenes[number].num_frames * stride
        shown = visible[row, :frames]
        persons[number].append(
            Person(denormalise(joints[row, :frames], person.box, shown).astype(np.float32), shown, person.box)
        )
    return [
        dataclasses.replace(scene, times=np.arange(scene.num_frames * stride) / scene.fps, persons=found)
        for scene, found in zip(scenes, persons, strict=True)
    ]
