"""Folders of OpenPose JSON (`--write_json`, COCO-18 or BODY_25, both dialects) to shards."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sources.build import DataSet
from datamodules.sources.captions import Entry, check_names, read_captions
from datamodules.sources.clips import ClipConfig, VideoSource, find_video, make_samples, settings_of
from datamodules.sources.preview import write_preview
from datamodules.sources.staging import build_staged
from modules.errors import UserError
from modules.pose.openpose import OpenPoseFrame, read_openpose_frames
from modules.pose.skeleton import NUM_JOINTS
from modules.pose.video import read_info

_NUMBERED = re.compile(r"(?P<stem>.*?)[_-]?(?P<number>\d+)(_keypoints)?\.json")


@dataclass
class OpenPoseConfig(ClipConfig):
    """Settings of `prepare.py openpose`."""

    poses: str = "???"  # folder of the JSON files: one folder a video, or all videos in one folder
    width: int = 0  # canvas in px, where neither the files nor a video say it
    height: int = 0


def build_openpose(config: OpenPoseConfig) -> dict[str, Any]:
    """Makes the data set, or what is missing of it, and returns the manifest.

    Raises:
        UserError: wrong input; the folder holds another data set.
    """
    found = find_frames(config.poses)
    entries = read_entries(config, list(found))
    sources = {
        name: VideoSource(name, entries.get(name, Entry()), find_video(config.videos, name), files)
        for name, files in found.items()
    }
    if config.video and not config.videos:
        raise UserError("video=true needs the videos; name their folder with videos=FOLDER")
    data = DataSet(config.out, settings_of(config, "openpose", fingerprint(sources, config)), config.overwrite)
    manifest = data.manifest
    if not data.complete:
        process = functools.partial(_process, config)
        manifest = build_staged(data, sources, entries, process, config, "video")
    write_preview(data.out, config.preview, {name: source.video for name, source in sources.items()})
    return manifest


def find_frames(folder: str | Path) -> dict[str, tuple[tuple[int, str], ...]]:
    """The JSON files of each video, (number of the frame, path) in order.

    A video is named by its folder below `folder`. Where a folder holds several videos, or is `folder` itself, the name
    is what comes before the number of the frame. A file without a number is a video of its own (a list of frames).

    Raises:
        UserError: no JSON files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"poses={folder} is no folder; give the folder that OpenPose wrote with --write_json")
    groups: dict[Path, dict[str, list[tuple[int, str]]]] = {}
    for path in sorted(folder.rglob("*.json")):
        match = _NUMBERED.fullmatch(path.name)
        if match and not path.name.endswith("_keypoints.json") and _is_list(path):
            match = None  # clip01.json, clip02.json: a video each
        stem, number = (match["stem"], int(match["number"])) if match else (path.stem, -1)
        groups.setdefault(path.parent, {}).setdefault(stem, []).append((number, str(path)))
    found: dict[str, tuple[tuple[int, str], ...]] = {}
    for parent, stems in groups.items():
        base = parent.relative_to(folder).as_posix()
        for stem, files in stems.items():
            parts = [] if base == "." else [base]
            parts += [stem] if stem and (base == "." or len(stems) > 1) else []
            files.sort()
            for (first, path), (second, other) in itertools.pairwise(files):
                if first == second:
                    raise UserError(f"{path} and {other} are the same frame of one video; keep one of them")
            found["/".join(parts) or folder.name] = tuple(files)
    if not found:
        raise UserError(f"poses={folder} has no .json files; give the folder that OpenPose wrote with --write_json")
    return found


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def fingerprint(sources: dict[str, VideoSource], config: ClipConfig) -> str:
    """Hash of the names and sizes of all input files and of the content of the captions."""
    digest = hashlib.sha256()
    for name, source in sources.items():
        paths: Iterable[str] = [path for _, path in source.files]
        paths = [*paths, source.video] if source.video else paths
        for path in paths:
            digest.update(f"{name}\0{Path(path).name}\0{Path(path).stat().st_size}\n".encode())
        digest.update(repr(source.entry).encode())
    if config.captioner and Path(config.captioner).is_file():
        digest.update(Path(config.captioner).read_bytes())
    return digest.hexdigest()[:16]


def read_entries(config: ClipConfig, names: list[str]) -> dict[str, Entry]:
    """The captions file, checked against the names of the videos."""
    entries = read_captions(config.captions) if config.captions else {}
    if not config.captions and not config.captioner:
        raise UserError(
            "captions are missing; give captions=FILE, a CSV with the columns name and caption "
            f"(names: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), or captioner=FILE.py"
        )
    if not config.captioner:
        check_names({name: entry for name, entry in entries.items() if entry.captions}, names, "the video")
    return entries


def _process(config: OpenPoseConfig, source: VideoSource, tar: tarfile.TarFile) -> dict[str, Any]:
    frames = _read(source)
    info = read_info(source.video) if source.video else None
    size = next((frame.size for _, frame in frames if frame.size), None)
    size = size or ((info.width, info.height) if info else (config.width, config.height))
    if 0 in size:
        raise UserError(f"{source.name}: its files do not say the size of the canvas; give width= and height=")
    for _, frame in frames:
        if frame.size not in (None, size):
            raise UserError(f"{frame.source}: its canvas is {frame.size}, that of the first frame {size}; split them")
    fps = source.entry.fps or config.fps or (info.fps if info else 0)
    if not fps:
        raise UserError(f"{source.name}: its frame rate is not known; give fps=, a column fps, or videos=")
    detections = [np.zeros((0, NUM_JOINTS, 3))] * (max(number for number, _ in frames) + 1)
    for number, frame in frames:
        detections[number] = frame.people
    return make_samples(tar, source, detections, size, fps, config)


def _read(source: VideoSource) -> list[tuple[int, OpenPoseFrame]]:
    """The frames with their numbers: of the files' names, or the places in the one file."""
    if len(source.files) == 1:
        return list(enumerate(read_openpose_frames(source.files[0][1])))
    frames = []
    for number, path in source.files:
        entries = read_openpose_frames(path)
        if len(entries) != 1:
            raise UserError(f"{path} is a list of {len(entries)} frames among files of one frame; put it elsewhere")
        frames.append((number, entries[0]))
    return frames
