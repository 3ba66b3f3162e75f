"""How much the pose tokenizer loses, by the number of codes a pose, beside the mean pose of the training split.

Letters: N people, K key poses, J joints (18), Q quantisers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from modules.evaluation.tokenizer_conditions import by_view, with_hidden_joints
from modules.metrics.codebook import code_counts, dead_share, perplexity
from modules.metrics.intervals import ClipAverages, Units
from modules.metrics.pose import joint_mask, pose_sums, position_error, unit_scale
from modules.pose.boxes import denormalise
from modules.pose.scene import Clip, Person, Scene
from modules.pose.skeleton import BODY_JOINTS
from modules.reports import Column, Table
from modules.vqvae.config import VQVAEConfig
from modules.vqvae.data import Encode, collate
from modules.vqvae.network import DecodedPoses, PoseTokenizer

_BATCH = 128
_FIGURES = {
    "mpjpe_px": "MPJPE px", "mpjpe_diagonal": "MPJPE % of diagonal", "mpjpe": "MPJPE", "mpjpe_torso": "MPJPE torso",
    "pck": "PCK", "velocity_error": "velocity error", "bone_error": "bone error",
}  # fmt: skip


def batches(clips: Sequence[Clip], stride: int, num_keys: int) -> list[dict[str, Tensor]]:
    """Key poses of everybody, from the first frame, in box coordinates.

    `clip_boxes` (N, 4) are the boxes over the clips as they are given, however much of them the tokenizer reads.
    """
    encode, rng = Encode(VQVAEConfig(stride=stride, num_keys=num_keys)), np.random.default_rng(0)
    items = [item for clip in clips for item in encode(clip, rng, False)]
    frames = stride * num_keys
    boxes = [person.box for clip in clips for person in _encoded(clip, frames)]
    assert len(boxes) == len(items)
    return [
        collate(items[i : i + _BATCH]) | {"clip_boxes": torch.from_numpy(np.stack(boxes[i : i + _BATCH]))}
        for i in range(0, len(items), _BATCH)
    ]


def _encoded(clip: Clip, frames: int) -> list[Person]:
    """Those people of a clip that are seen in its first frames."""
    return [person for person in clip.scene.persons if person.visibility[:frames].any()]


def mean_pose(train: Sequence[dict[str, Tensor]]) -> Tensor:
    """(J, 2) mean over the visible joints."""
    seen = [batch["visibility"] & batch["key_mask"][..., None] for batch in train]
    total = sum(
        torch.where(mask[..., None], batch["poses"], 0).sum((0, 1)) for mask, batch in zip(seen, train, strict=True)
    )
    count = sum(mask.sum((0, 1)) for mask in seen)
    assert isinstance(total, Tensor)
    assert isinstance(count, Tensor)
    return total / count.clamp_min(1)[:, None]


def encode(network: PoseTokenizer, data: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Codes (B, K, Q) of each batch."""
    return [network.encode(batch["poses"], batch["visibility"], batch["key_mask"]) for batch in data]


@torch.inference_mode()
def evaluate(
    network: PoseTokenizer, train: Sequence[Clip], clips: Sequence[Clip], *, stride: int, num_keys: int
) -> list[Table]:
    """Errors of the reconstruction by depth, by camera and with joints hidden, and the use of the codebooks.

    Args:
        train: the training split, for the mean pose.
        clips: the held-out clips.
        stride, num_keys: of the tokenizer's export: dense frames per key pose, key poses at most.
    """
    data, seen = batches(clips, stride, num_keys), batches(train, stride, num_keys)
    codes = encode(network, data)
    constant = mean_pose(seen)
    units, frames = Units.of(clips), stride * num_keys
    trials = [trial for clip, trial in zip(clips, units.trials, strict=True) for _ in _encoded(clip, frames)]

    columns = [
        Column("MPJPE px", "px", "down"),
        Column("MPJPE % of diagonal", "px", "down"),
        Column("MPJPE", "fine", "down"),
        Column("MPJPE body", "fine", "down"),
        Column("MPJPE clip box", "fine", "down"),
        Column("MPJPE torso", "fine", "down"),
        Column("PCK", "share", "up"),
        Column("velocity error", "fine", "down"),
        Column("bone error", "fine", "down"),
        Column("visibility", "share", "up"),
    ]
    table = Table("reconstruction", columns)
    _add(table, "mean pose", data, [constant.expand_as(batch["poses"]) for batch in data], None, trials)
    depths = network.config.num_quantizers
    found: list[DecodedPoses] = []
    for depth in range(1, depths + 1):
        found = [network.decode(c, batch["key_mask"], depth) for c, batch in zip(codes, data, strict=True)]
        name = "ours" if depth == depths else f"ours, {depth} of {depths} codes"
        _add(table, name, data, [f.poses for f in found], [f.visibility for f in found], trials)
    people = sum(len(batch["poses"]) for batch in data)
    table.notes = [
        f"{people} people, keys every {stride} frames, visible joints. MPJPE: box units (half of the longer side = 1); "
        "body: without the face; clip box: in units of the box over the clip as it was read (the whole clip with "
        "data.num_frames=100000); torso: in torso lengths. PCK: within 0.2 torso lengths. velocity error: "
        "between successive keys. bone error: of the limbs' lengths in the picture. Codes of padding are a constant.",
        f"± is half of the 95 % interval by bootstrap over trials: {units}.",
    ]
    more = [*by_view(clips, data, found), with_hidden_joints(network, data, found)]
    usage = {"held out": _counts(network, data, codes), "training": _counts(network, seen, encode(network, seen))}
    return [table, _codebooks(usage), *more]


def _add(
    table: Table,
    name: str,
    data: Sequence[dict[str, Tensor]],
    poses: Sequence[Tensor],
    visible: Sequence[Tensor] | None,
    trials: Sequence[Hashable],
) -> None:
    """A row of the table of reconstructions; `trials` are those of all people in `data`."""
    scores, person = ClipAverages(trials, [column.name for column in table.columns]), 0
    for i, (batch, found) in enumerate(zip(data, poses, strict=True)):
        seen = batch["visibility"] & batch["key_mask"][..., None]
        scale = unit_scale(batch["boxes"], batch["clip_boxes"])
        # The mean pose takes every joint as seen.
        guess = visible[i] if visible is not None else torch.ones_like(seen)
        right = (guess == batch["visibility"]) & batch["key_mask"][..., None]
        for j in range(len(found)):
            own = slice(j, j + 1)
            given = found[own], batch["poses"][own], seen[own]
            figures = pose_sums(*given, batch["boxes"][own])
            sums = {column: figures[figure] for figure, column in _FIGURES.items()}
            sums["MPJPE body"] = position_error(*given[:2], joint_mask(given[2], BODY_JOINTS))
            sums["MPJPE clip box"] = position_error(*given, scale[own])
            counted = {column: (float(average.total), float(average.count)) for column, average in sums.items()}
            total = float(batch["key_mask"][j].sum()) * seen.shape[-1]
            scores.add(person, counted | {"visibility": (float(right[j].sum()), total)})
            person += 1
    table.add(name, **{column.replace(" ", "_"): value for column, value in scores.compute().items()})


@torch.inference_mode()
def pairs(
    network: PoseTokenizer, clips: Sequence[Clip], *, stride: int, num_keys: int, fps: float
) -> list[tuple[str, dict[str, Scene]]]:
    """(name, true key poses and what the tokenizer leaves of them) of the people of some clips."""
    result = []
    for clip in clips:
        [batch] = batches([clip], stride, num_keys)
        decoded = network.decode(network.encode(batch["poses"], batch["visibility"]))
        times = np.arange(batch["poses"].shape[1]) * stride / fps
        for number, box in enumerate(batch["boxes"].numpy()):
            scenes = {}
            for label, poses, visible in (
                ("real", batch["poses"][number], batch["visibility"][number]),
                ("through the tokenizer", decoded.poses[number], decoded.visibility[number]),
            ):
                joints = denormalise(poses.numpy()[None], box[None], visible.numpy()[None])[0]
                person = Person(joints.astype(np.float32), visible.numpy(), box)
                scenes[label] = Scene(clip.scene.width, clip.scene.height, fps, times, [person])
            result.append((f"{clip.key}-{number}", scenes))
    return result


def _counts(network: PoseTokenizer, data: Sequence[dict[str, Tensor]], codes: Sequence[Tensor]) -> Tensor:
    """How often each entry is used: (Q, V)."""
    size = network.config.codebook_size
    return torch.stack([code_counts(c, batch["key_mask"], size) for c, batch in zip(codes, data, strict=True)]).sum(0)


def _codebooks(usage: dict[str, Tensor]) -> Table:
    """Perplexity and unused entries of each depth, by the name of the data."""
    columns = [
        column
        for name in usage
        for column in (Column(f"perplexity, {name}", "number", "up"), Column(f"never used, {name}", "share", "down"))
    ]
    table = Table("codebooks", columns)
    for depth in range(len(next(iter(usage.values())))):
        values: dict[str, float] = {}
        for name, counts in usage.items():
            values[f"perplexity, {name}".replace(" ", "_")] = float(perplexity(counts)[depth])
            values[f"never used, {name}".replace(" ", "_")] = float(dead_share(counts)[depth])
        table.add(f"depth {depth}", **values)
    poses = ", ".join(f"{int(counts[0].sum())} {name}" for name, counts in usage.items())
    table.notes = [f"{next(iter(usage.values())).shape[1]} entries each. Key poses: {poses}."]
    return table
