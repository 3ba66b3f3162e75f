"""What all sources of real people do with the detections of a video: tracks, clips, captions, samples.

Letters: P persons, T frames, J joints (18).
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.sample import FPS, write_sample
from datamodules.sources.captions import Entry, load_captioner
from datamodules.sources.motion import resample
from datamodules.sources.select import Person, SelectConfig, Stretch, make_clips, reject_person
from datamodules.sources.staging import FREE, SourceConfig, slug
from datamodules.sources.tracking import TrackingConfig, link
from modules.errors import UserError
from modules.pose.scene import Scene, make_person
from modules.pose.video import VideoEncoder, iter_frames, read_frames

_INPUTS = ("poses", "videos", "captions", "captioner", "motions", "detector", "pose_model")  # settings that are paths


@dataclass
class ClipConfig(SourceConfig):
    """Settings of the sources that begin with detections of single frames."""

    captions: str = ""  # CSV or JSONL: name, caption, ...; see datamodules/sources/captions.py
    captioner: str = ""  # or a Python file that defines caption(scene, frames)
    videos: str = ""  # folder of the videos, {name}.mp4 or another suffix
    video: bool = False  # put the videos into the shards, too (the renderer needs them)
    side: int = 0  # longer side of the canvas in the shards, px; 0: as it is
    crf: int = 18  # quality of those videos, 0 (lossless) to 51
    fps: float = 0  # of the videos; 0: the captions or the video files say it
    min_confidence: float = 0.1  # a joint is seen above it
    bridge: bool = True  # gaps of up to track.max_gap are interpolated; false: what was not seen stays unseen
    track: TrackingConfig = field(default_factory=TrackingConfig)
    keep: SelectConfig = field(default_factory=SelectConfig)


@dataclass(frozen=True)
class VideoSource:
    """A video and all that is known of it."""

    name: str
    entry: Entry
    video: str = ""  # path
    files: tuple[tuple[int, str], ...] = ()  # (number of the frame, path), of OpenPose JSON


def make_samples(
    tar: tarfile.TarFile,
    source: VideoSource,
    detections: Sequence[np.ndarray],
    size: tuple[int, int],
    fps: float,
    config: ClipConfig,
) -> dict[str, Any]:
    """Writes the clips of a video.

    Args:
        tar: open for `write_sample`.
        source: where the detections come from.
        detections: (n, J, 3) px and confidence, of every frame.
        size: canvas of the detections, width and height in px.
        fps: of the frames.
        config: see there.

    Returns:
        Numbers of tracks, clips and frames, and of what was left out by reason.

    Raises:
        UserError: there is neither caption nor captioner for any clip, or the video has too few frames.
    """
    rejected: Counter[str] = Counter()
    threshold = config.min_confidence
    tracks = link(detections, fps, threshold, config.track)
    max_gap = config.track.max_gap if config.bridge else 0.0
    persons = []
    for track in tracks:
        times = np.array(track.frames) / fps
        # Neighbouring frames are always joined; the rest is a gap.
        start, poses = resample(np.stack(track.poses), times, threshold, max(max_gap, 1.01 / fps))
        person = Person(start, poses)
        if reason := reject_person(person, size, threshold, config.keep):
            rejected[reason] += 1
        else:
            persons.append(person)
    stretches = make_clips(persons, config.keep, rejected)
    canvas = _canvas(size, config.side)
    scale = np.array([canvas[0] / size[0], canvas[1] / size[1], 1.0], np.float32)
    videos = _encode(source, stretches, canvas, fps, config) if config.video else [None] * len(stretches)
    counts = {"tracks": len(tracks), "cut": sum(t.cut for t in tracks), "clips": 0, "frames": 0}
    for number, (stretch, video) in enumerate(zip(stretches, videos, strict=True)):
        seconds = stretch.start / FPS, (stretch.start + stretch.poses.shape[1]) / FPS
        poses = stretch.poses * scale
        captions = _captions(source, poses, seconds, canvas, video, config)
        if not captions:
            rejected["no caption at this time"] += 1
            continue
        meta = {
            "captions": captions, "label": source.entry.label, "fps": FPS, "width": canvas[0], "height": canvas[1],
            "source": source.name, "start_seconds": round(seconds[0], 3), "source_width": size[0],
            "source_height": size[1],
        }  # fmt: skip
        write_sample(tar, f"{slug(source.name)}_{stretch.start:06d}_{number:03d}", poses, meta, video)
        counts["clips"] += 1
        counts["frames"] += poses.shape[1]
    return {**counts, "rejected": dict(rejected)}


def _canvas(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with the longer side `side`; even numbers, as videos need them."""
    if not side:
        return size
    factor = side / max(size)
    return max(2, 2 * round(size[0] * factor / 2)), max(2, 2 * round(size[1] * factor / 2))


def _captions(
    source: VideoSource,
    poses: np.ndarray,
    seconds: tuple[float, float],
    canvas: tuple[int, int],
    video: bytes | None,
    config: ClipConfig,
) -> list[str]:
    if not config.captioner:
        return source.entry.at(*seconds)
    seen = poses[..., 2] > config.min_confidence
    people = [make_person(p[..., :2], v, *canvas) for p, v in zip(poses, seen, strict=True)]
    scene = Scene(*canvas, float(FPS), np.arange(poses.shape[1]) / FPS, people)
    said = load_captioner(config.captioner)(scene, read_frames(video) if video else None)
    texts = [said] if isinstance(said, str) else said
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        remedy = "it must give a text or a list of texts"
        raise UserError(f"captioner={config.captioner}: caption() gave {said!r}; {remedy}")
    return [text.strip() for text in texts if text.strip()]


def _encode(
    source: VideoSource, stretches: Sequence[Stretch], canvas: tuple[int, int], fps: float, config: ClipConfig
) -> list[bytes]:
    """The videos of the clips, in one pass over the source."""
    wanted: dict[int, list[int]] = {}  # frame of the source -> clips, once for every frame of theirs that shows it
    last = [0] * len(stretches)
    for number, stretch in enumerate(stretches):
        times = (stretch.start + np.arange(stretch.poses.shape[1])) / FPS
        frames = np.floor(times * fps + 0.5).astype(int).tolist()
        for frame in frames:
            wanted.setdefault(frame, []).append(number)
        last[number] = frames[-1]
    buffers = [io.BytesIO() for _ in stretches]
    stop = max(wanted, default=-1)
    found = -1
    with contextlib.ExitStack() as stack:
        open_: dict[int, VideoEncoder] = {}
        for found, picture in enumerate(iter_frames(source.video)):
            if found in wanted and (picture.shape[1], picture.shape[0]) != canvas:
                picture = cv2.resize(picture, canvas, interpolation=cv2.INTER_AREA)
            for number in wanted.get(found, ()):
                if number not in open_:
                    encoder = VideoEncoder(buffers[number], FPS, crf=config.crf)
                    open_[number] = stack.enter_context(encoder)
                open_[number].add(picture)
            if found >= stop:
                break
    if found < stop:
        raise UserError(
            f"{source.video} ends with frame {found}, its poses need frame {stop}; give the video that the poses are of"
        )
    return [buffer.getvalue() for buffer in buffers]


def find_video(folder: str, name: str) -> str:
    """The video of that name, with any suffix that ffmpeg may know; "" without a folder.

    Raises:
        UserError: there is none.
    """
    if not folder:
        return ""
    base = Path(folder) / name
    found = sorted(p for p in base.parent.glob("*") if p.is_file() and p.stem == base.name and p.suffix != ".json")
    if not found:
        raise UserError(f"there is no video {base}.*; name the videos like the folders of their poses")
    return str(found[0])


def settings_of(config: SourceConfig, source: str, inputs: str) -> dict[str, Any]:
    """All that the content depends on. Files count by their content (`inputs`), not by where they are."""
    values = {key: value for key, value in asdict(config).items() if key not in (*FREE, *_INPUTS)}
    return {"source": source, "version": 1, "inputs": inputs, **values}
