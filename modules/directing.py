"""Edits that ask the director: a continuation from a key pose, and somebody more.

What stands is forced, code by code; the director writes the rest. The key poses that stand keep their coordinates.
Letters: P persons, K key poses, J joints, Q quantisers.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from modules.errors import UserError
from modules.llm.decoding import FREE
from modules.llm.tokens import ScenePlan
from modules.pipeline import Pipeline
from modules.pose.boxes import box_to_tokens, normalise
from modules.pose.io import Plan
from modules.pose.scene import Person
from modules.text import check_prompt


def codes_of(pipeline: Pipeline, plan: Plan) -> np.ndarray:
    """Codes (P, K, Q) of the key poses: those of the plan where they are of this tokenizer, else encoded."""
    if plan.codes is not None and plan.tokenizer == pipeline.tokenizer_name:
        return plan.codes
    scene, network = plan.scene_keys, pipeline.tokenizer
    coords = normalise(scene.joints, scene.boxes, scene.visibility).astype(np.float32)  # (P, K, J, 2)
    with torch.inference_mode():
        poses = torch.from_numpy(coords).to(pipeline.device)
        seen = torch.from_numpy(scene.visibility).to(pipeline.device)
        mask = torch.ones(seen.shape[:2], dtype=torch.bool, device=pipeline.device)
        return network.encode(poses, seen, mask).cpu().numpy().astype(np.int64)


def continue_plan(
    pipeline: Pipeline, plan: Plan, *, key: int, prompt: str, seed: int | None = None, seconds: float | None = None
) -> Plan:
    """From a key pose on, what the director makes of another prompt.

    Key poses before `key` and all boxes stay. The new prompt holds for motion and video from that time on.

    Args:
        key: first new key pose, at least 1.
        seconds: duration of the whole scene afterwards; None: as long as it was.

    Raises:
        UserError: nothing to go on from, no room for more key poses, or another rate than the director's.
    """
    check_prompt(prompt)
    director, scene = pipeline.director, plan.scene_keys
    if key < 1:
        raise UserError("'key' is 0: there is nothing to go on from; start from a later key pose, or make a new plan")
    if (plan.stride, scene.fps) != (director.stride, director.fps):
        raise UserError(
            f"the plan has a key pose every {plan.stride} frames at {scene.fps:g} fps, the director of "
            f"{pipeline.config.exports.llm} writes one every {director.stride} at {director.fps:g}; give it such a plan"
        )
    num_keys = scene.num_frames if seconds is None else round(seconds * scene.fps / plan.stride)
    if num_keys <= key:
        raise UserError(
            f"the scene would have {num_keys} key poses, and {key} of them stand already; "
            "start earlier, or give 'seconds' for a longer scene"
        )
    order = _order(scene.boxes)
    boxes = box_to_tokens(scene.boxes, scene.width, scene.height)
    codes = codes_of(pipeline, plan)
    (found,) = director.plan(
        [prompt],
        num_keys=num_keys,
        keys=[ScenePlan(prompt, boxes[order], codes[order][:, :key])],
        seeds=[plan.seed if seed is None else seed],
        sampling=pipeline.token_sampling,
    )
    written = pipeline.plan_of(found, plan.seed, scene.width, scene.height).scene_keys.persons
    persons = list(scene.persons)
    for place, i in enumerate(order.tolist()):
        joints, visibility = persons[i].joints[:key], persons[i].visibility[:key]
        persons[i] = Person(
            np.concatenate([joints, written[place].joints[key:]]),
            np.concatenate([visibility, written[place].visibility[key:]]),
            persons[i].box,
        )
    times = np.arange(num_keys) * plan.stride / scene.fps
    start = float(times[key])
    later = (*((time, text) for time, text in scene.later if time < start - 1e-6), (start, prompt.strip()))
    scene = dataclasses.replace(scene, times=times, persons=persons, later=later)
    return dataclasses.replace(plan, scene_keys=scene, codes=None)


def add_person(
    pipeline: Pipeline,
    plan: Plan,
    *,
    box: list[float] | None = None,
    prompt: str | None = None,
    seed: int | None = None,
) -> Plan:
    """Somebody more, whom the director writes while it sees the others; they stay, and come first in the plan.

    Args:
        box: px xyxy; None: the director's choice, to the right of the others' left edges.
        prompt: of the whole scene with the new person, which becomes the plan's; None: it stays.

    Raises:
        UserError: too many people, a box outside of the canvas, or another rate than the director's.
    """
    director, scene = pipeline.director, plan.scene_keys
    if prompt is not None:
        check_prompt(prompt)
        scene = dataclasses.replace(scene, prompt=prompt.strip())
    if len(scene.persons) >= director.grammar.max_people:
        raise UserError(f"there are {len(scene.persons)} people, as many as the director knows; delete one first")
    if (plan.stride, scene.fps) != (director.stride, director.fps):
        raise UserError(f"the director writes a key pose every {director.stride} frames at {director.fps:g} fps")
    edges = np.full(4, FREE, np.int64)
    if box is not None:
        wanted = np.asarray(box, np.float32)
        if wanted.min() < 0 or wanted[2] > scene.width or wanted[3] > scene.height:
            raise UserError(f"'box' {box} is outside of the frame of {scene.width} x {scene.height}; move it into it")
        edges = box_to_tokens(wanted, scene.width, scene.height)
    codes = codes_of(pipeline, plan)
    boxes = np.concatenate([box_to_tokens(scene.boxes, scene.width, scene.height), edges[None]])
    codes = np.concatenate([codes, np.full((1, *codes.shape[1:]), FREE, np.int64)])
    order = _order(boxes) if box is not None else np.append(_order(boxes[:-1]), len(boxes) - 1)
    (found,) = director.plan(
        [scene.prompt],
        num_keys=scene.num_frames,
        keys=[ScenePlan(scene.prompt, boxes[order], codes[order])],
        seeds=[plan.seed if seed is None else seed],
        sampling=pipeline.token_sampling,
    )
    written = pipeline.plan_of(found, plan.seed, scene.width, scene.height).scene_keys.persons
    new = written[order.tolist().index(len(boxes) - 1)]
    scene = dataclasses.replace(scene, persons=[*scene.persons, new])
    return dataclasses.replace(plan, scene_keys=scene, codes=None, ids=[*plan.ids, max(plan.ids) + 1])


def _order(boxes: np.ndarray) -> np.ndarray:
    """The grammar's order of people: by the left edge of the box."""
    return np.argsort(boxes[:, 0], kind="stable")
