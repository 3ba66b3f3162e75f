"""Where the pose tokenizer errs: by direction of the camera, with joints hidden, and in what it calls visible.

Letters: B people, K key poses, J joints (18).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import BinaryF1Score

from modules.metrics.pose import Average, PoseError, position_error
from modules.pose.scene import Clip
from modules.pose.skeleton import BODY_JOINTS, NUM_JOINTS
from modules.reports import Column, Table
from modules.vqvae.network import DecodedPoses, PoseTokenizer

FACE_JOINTS = tuple(joint for joint in range(NUM_JOINTS) if joint not in BODY_JOINTS)
HIDDEN_SHARE = 0.2
# Degrees between the camera and the way the person faces -> name; the field `camera_azimuth_deg` of a clip's json.
_VIEWS = ((45, "from the front"), (135, "from the side"), (180, "from behind"))


def view_of(azimuth: float) -> str:
    """Name of a camera azimuth in degrees; 0 faces the camera."""
    away = abs((azimuth + 180) % 360 - 180)
    return next(name for limit, name in _VIEWS if away <= limit)


def by_view(clips: Sequence[Clip], data: Sequence[dict[str, Tensor]], found: Sequence[DecodedPoses]) -> list[Table]:
    """A table of the errors by camera; none where the data do not tell the camera."""
    # One entry a person, in the order of the batches.
    values = [clip.meta.get("camera_azimuth_deg") for clip in clips for _ in clip.scene.persons]
    azimuths = [float(value) for value in values if isinstance(value, (int, float))]
    if len(azimuths) != len(values) or len(azimuths) != sum(len(batch["poses"]) for batch in data):
        return []
    views = np.array([view_of(azimuth) for azimuth in azimuths])
    columns = [Column("people", "count"), Column("MPJPE", "fine", "down"), Column("MPJPE torso", "fine", "down")]
    table = Table("by camera", columns, notes=["MPJPE: box units; torso: in torso lengths."])
    for _, name in _VIEWS:
        metric, start = PoseError(), 0
        for batch, poses in zip(data, found, strict=True):
            size = len(batch["poses"])
            chosen = torch.from_numpy(views[start : start + size] == name)
            start += size
            seen = batch["visibility"] & batch["key_mask"][..., None] & chosen[:, None, None]
            metric.update(poses.poses, batch["poses"], seen)
        if (views == name).any():
            figures = metric.compute()
            table.add(
                name,
                people=int((views == name).sum()),
                MPJPE=float(figures["mpjpe"]),
                MPJPE_torso=float(figures["mpjpe_torso"]) if "mpjpe_torso" in figures else None,
            )
    return [table]


def with_hidden_joints(
    network: PoseTokenizer, data: Sequence[dict[str, Tensor]], found: Sequence[DecodedPoses]
) -> Table:
    """Errors where a share of the seen joints was hidden at random, and how well the visibility is told."""
    columns = [
        Column("MPJPE visible", "fine", "down"), Column("MPJPE hidden", "fine", "down"),
        Column("face F1 seen", "share", "up"), Column("face F1 unseen", "share", "up"),
        Column("all F1 unseen", "share", "up"),
    ]  # fmt: skip
    table = Table("visibility", columns)
    seen = [batch["visibility"] & batch["key_mask"][..., None] for batch in data]
    _add(table, "as they are", data, seen, found)
    generator = torch.Generator().manual_seed(0)
    kept = [mask & (torch.rand(mask.shape, generator=generator) >= HIDDEN_SHARE) for mask in seen]
    decoded = [
        network.decode(network.encode(batch["poses"], mask, batch["key_mask"]), batch["key_mask"])
        for batch, mask in zip(data, kept, strict=True)
    ]
    _add(table, f"{HIDDEN_SHARE:.0%} of the joints hidden", data, kept, decoded)
    table.notes = [
        "MPJPE in box units over the joints that the tokenizer was shown, and over true joints that it was not shown. "
        "F1 of the decoded visibility of the face joints (seen, then unseen, as the positive class) and of all joints.",
    ]
    return table


def _add(
    table: Table, name: str, data: Sequence[dict[str, Tensor]], shown: Sequence[Tensor], found: Sequence[DecodedPoses]
) -> None:
    visible: list[Average] = []
    hidden: list[Average] = []
    scores = {key: BinaryF1Score() for key in ("face F1 seen", "face F1 unseen", "all F1 unseen")}
    face = list(FACE_JOINTS)
    for batch, mask, decoded in zip(data, shown, found, strict=True):
        real = batch["key_mask"]
        true = batch["visibility"] & real[..., None]
        visible.append(position_error(decoded.poses, batch["poses"], mask))
        hidden.append(position_error(decoded.poses, batch["poses"], true & ~mask))
        guess, wanted = decoded.visibility[real], mask[real]  # (N, J)
        scores["face F1 seen"].update(guess[:, face].flatten(), wanted[:, face].flatten())
        scores["face F1 unseen"].update(~guess[:, face].flatten(), ~wanted[:, face].flatten())
        scores["all F1 unseen"].update(~guess.flatten(), ~wanted.flatten())
    count = float(sum(average.count for average in hidden))
    table.add(
        name,
        MPJPE_visible=_mean(visible),
        MPJPE_hidden=_mean(hidden) if count else None,
        **{key.replace(" ", "_"): float(score.compute()) for key, score in scores.items()},
    )


def _mean(averages: Sequence[Average]) -> float:
    return float(sum(a.total for a in averages) / sum(a.count for a in averages))
