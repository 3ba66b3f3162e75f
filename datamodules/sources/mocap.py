"""BVH files to shards: each motion seen by several virtual cameras.

Letters: T frames, J joints (18).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from datamodules.sample import FPS, write_sample
from datamodules.sources.build import DataSet, at_least
from datamodules.sources.bvh import read_bvh
from datamodules.sources.captions import Entry, check_names, read_captions
from datamodules.sources.clips import settings_of
from datamodules.sources.preview import write_preview
from datamodules.sources.rigs import Body, to_body
from datamodules.sources.staging import SourceConfig, build_staged, slug
from datamodules.synthetic.camera import project, seen
from modules.errors import UserError


@dataclass
class BvhConfig(SourceConfig):
    """Settings of `prepare.py bvh`."""

    motions: str = "???"  # folder of .bvh files
    captions: str = ""  # CSV or JSONL: name, caption, ...; see datamodules/sources/captions.py
    cameras: int = 4  # views of each clip, evenly around the person
    width: int = 1280  # canvas, px
    height: int = 720
    stature: float = 1.72  # of the person, metres: rigs do not say their unit
    min_seconds: float = 1.0
    max_frames: int = 240  # longer motions are split
    joints: dict[str, str] = field(default_factory=dict)  # joint -> its name in the rig, where it is not found

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, cameras=1, width=16, height=16, stature=0.1, min_seconds=0, max_frames=2)


def build_bvh(config: BvhConfig) -> dict[str, Any]:
    """Makes the data set, or what is missing of it, and returns the manifest.

    Raises:
        UserError: wrong input; the folder holds another data set.
    """
    folder = Path(config.motions)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".bvh")
    if not paths:
        raise UserError(f"motions={folder} has no .bvh files; give the folder that holds them")
    sources = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    if not config.captions:
        some = ", ".join(list(sources)[:3]) + (", ..." if len(sources) > 3 else "")
        raise UserError(
            f"captions are missing; give captions=FILE, a CSV with the columns name and caption (names: {some})"
        )
    entries = read_captions(config.captions)
    check_names({name: entry for name, entry in entries.items() if entry.captions}, list(sources), "the motion")
    digest = hashlib.sha256()
    for name, path in sources.items():
        digest.update(f"{name}\0{path.stat().st_size}\0{entries[name]!r}\n".encode())
    data = DataSet(config.out, settings_of(config, "bvh", digest.hexdigest()[:16]), config.overwrite)
    manifest = data.manifest
    if not data.complete:
        items = {name: (name, str(path), entries[name]) for name, path in sources.items()}
        process = functools.partial(_process, config)
        manifest = build_staged(data, items, entries, process, config, "motion")
    write_preview(data.out, config.preview)
    return manifest


def _process(config: BvhConfig, source: tuple[str, str, Entry], tar: tarfile.TarFile) -> dict[str, Any]:
    name, path, entry = source
    motion = read_bvh(path)
    body = _at_30_fps(to_body(motion, config.joints, config.stature, path), motion.frame_time)
    frames = len(body.joints)
    rejected: Counter[str] = Counter()
    if frames < config.min_seconds * FPS:
        return {"clips": 0, "frames": 0, "rejected": {"motion shorter than min_seconds": 1}}
    counts = {"clips": 0, "frames": 0}
    edges = np.linspace(0, frames, -(-frames // config.max_frames) + 1).round().astype(int).tolist()
    for start, stop in itertools.pairwise(edges):
        captions = entry.at(start / FPS, stop / FPS)
        if not captions:
            rejected["no caption at this time"] += 1
            continue
        part = Body(body.joints[start:stop], body.facing[start:stop])
        for camera in range(config.cameras):
            rng = np.random.default_rng([config.seed, zlib.crc32(name.encode()), start, camera])
            poses, view = look(part, camera, config, rng)
            meta = {
                "captions": captions, "label": entry.label, "fps": FPS, "width": config.width, "height": config.height,
                "source": name, "start_seconds": round(start / FPS, 3), **view,
            }  # fmt: skip
            write_sample(tar, f"{slug(name)}_{start:06d}_v{camera}", poses, meta)
            counts["clips"] += 1
            counts["frames"] += stop - start
    return {**counts, "rejected": dict(rejected)}


def _at_30_fps(body: Body, frame_time: float) -> Body:
    if len(body.joints) < 2:
        return body
    times = np.arange(len(body.joints)) * frame_time
    wanted = np.arange(int(times[-1] * FPS + 1e-6) + 1) / FPS
    facing = PchipInterpolator(times, body.facing)(wanted)
    facing /= np.maximum(np.linalg.norm(facing, axis=-1, keepdims=True), 1e-9)
    return Body(PchipInterpolator(times, body.joints)(wanted), facing)


def look(
    body: Body, camera: int, config: BvhConfig, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """The motion as one of the cameras sees it.

    Cameras stand evenly around the person, with a random deviation; camera 0 is about where the person looks at first.

    Returns:
        Poses (1, T, J, 3) float32 px and confidence, and where the camera is.
    """
    step = 360 / config.cameras
    azimuth = camera * step + float(rng.uniform(-0.3, 0.3)) * step
    ahead = body.facing[: max(len(body.facing) // 4, 1)].mean(0)
    turn = np.arctan2(ahead[0], ahead[2]) + np.radians(azimuth)
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])  # about y; the camera is then at +z
    centre = 0.5 * (body.joints.min((0, 1)) + body.joints.max((0, 1))) * [1, 0, 1]
    joints = ((body.joints - centre) @ rotation.T)[None]
    facing = (body.facing @ rotation.T)[None]
    distance = float(rng.uniform(2.5, 5.0)) * config.stature / 1.72 + max(float(joints[..., 2].max()), 0.0)
    eye = float(rng.uniform(0.6, 0.95)) * config.stature
    canvas = (config.width, config.height)
    size, place = float(rng.uniform(0.55, 0.9)), 0.5 * config.width / config.height + float(rng.uniform(-0.2, 0.2))
    heights = np.array([config.stature])
    view = project(joints, heights, distance, eye, size, place, float(rng.uniform(0.88, 0.97)), canvas)
    visible = seen(view, facing, joints, distance, eye, canvas)
    poses = np.concatenate([view.pixels, np.ones((*visible.shape, 1))], -1) * visible[..., None]
    where = {"camera_azimuth_deg": round((azimuth + 180) % 360 - 180, 1), "camera_distance_m": round(distance, 2)}
    return poses.astype(np.float32), where
