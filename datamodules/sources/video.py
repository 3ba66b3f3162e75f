"""Videos through a pose estimator (RTMPose, by the optional package rtmlib) to shards."""

from __future__ import annotations

import functools
import hashlib
import importlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sources.build import DataSet
from datamodules.sources.captions import Entry
from datamodules.sources.clips import ClipConfig, VideoSource, make_samples, settings_of
from datamodules.sources.openpose import fingerprint, read_entries
from datamodules.sources.preview import write_preview
from datamodules.sources.staging import build_staged
from modules.errors import UserError
from modules.pose.skeleton import NUM_JOINTS
from modules.pose.video import iter_frames, read_info

_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


@dataclass
class VideoConfig(ClipConfig):
    """Settings of `prepare.py video`; `videos` is the folder that is read."""

    detector: str = ""  # ONNX file of the person detector (YOLOX); empty: rtmlib downloads its own
    detector_width: int = 640  # input of that network, px
    detector_height: int = 640
    pose_model: str = ""  # ONNX file of the pose network (RTMPose, 17 joints); empty: rtmlib downloads its own
    pose_width: int = 192
    pose_height: int = 256
    backend: str = "onnxruntime"
    device: str = "cpu"  # or cuda
    min_confidence: float = 0.3  # scores of RTMPose are higher than those of OpenPose


def build_video(config: VideoConfig) -> dict[str, Any]:
    """Makes the data set, or what is missing of it, and returns the manifest.

    Raises:
        UserError: rtmlib or its weights are missing; wrong input; the folder holds another data set.
    """
    folder = Path(config.videos)
    if not config.videos or not folder.is_dir():
        raise UserError(f"videos={config.videos} is no folder; give the folder that holds the videos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        known = ", ".join(sorted(_SUFFIXES))
        raise UserError(f"videos={folder} has no video ({known}); give the folder that holds them")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"videos={folder}: two videos are named {twice}; names without suffix must differ")
    entries = read_entries(config, names)
    check_estimator(config)
    sources = {
        name: VideoSource(name, entries.get(name, Entry()), str(path)) for name, path in zip(names, paths, strict=True)
    }
    digest = hashlib.sha256(fingerprint(sources, config).encode())
    for model in (config.detector, config.pose_model):
        digest.update(Path(model).read_bytes() if model else b"")
    settings = settings_of(config, "video", digest.hexdigest()[:16])
    data = DataSet(config.out, {k: v for k, v in settings.items() if k != "device"}, config.overwrite)
    manifest = data.manifest
    if not data.complete:
        manifest = build_staged(data, sources, entries, functools.partial(_process, config), config, "video")
    write_preview(data.out, config.preview, {name: source.video for name, source in sources.items()})
    return manifest


def check_estimator(config: VideoConfig) -> None:
    """Raises a UserError where the estimator cannot be had."""
    for name in ("detector", "pose_model"):
        path = getattr(config, name)
        if path and not Path(path).is_file():
            raise UserError(f"{name}={path} is no file; give an ONNX file, or none: rtmlib downloads its own")
    if "rtmo" in config.pose_model:
        raise UserError(
            f"pose_model={config.pose_model}: rtmlib takes every path with 'rtmo' in it for RTMO, which is not known "
            "here; give RTMPose weights, by another path"
        )
    try:
        importlib.import_module("rtmlib")
    except ImportError as error:
        raise UserError(
            f"the pose estimator is not installed ({error}); run `pip install 'pose-director[video]'`, or give "
            "OpenPose's files to `python prepare.py openpose`"
        ) from error


@functools.lru_cache(maxsize=1)
def _estimator(detector: str, detector_size: tuple[int, int], pose: str, pose_size: tuple[int, int], how: str) -> Any:
    """The networks, once a process."""
    backend, _, device = how.partition("/")
    try:
        return importlib.import_module("rtmlib").Body(
            det=detector or None, det_input_size=detector_size, pose=pose or None, pose_input_size=pose_size,
            to_openpose=True, backend=backend, device=device,
        )  # fmt: skip
    except Exception as error:  # of the network, of the download, of a file that is no network: many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the pose estimator cannot be loaded ({reason}); give the weights with detector=FILE and pose_model=FILE"
        ) from error


def _process(config: VideoConfig, source: VideoSource, tar: tarfile.TarFile) -> dict[str, Any]:
    body = _estimator(
        config.detector, (config.detector_height, config.detector_width), config.pose_model,
        (config.pose_width, config.pose_height), f"{config.backend}/{config.device}",
    )  # fmt: skip
    info = read_info(source.video)
    fps = source.entry.fps or config.fps or info.fps
    if not fps:
        raise UserError(f"{source.video}: does not say its frame rate; give fps= or a column fps")
    detections = [detect(body, frame) for frame in iter_frames(source.video)]
    return make_samples(tar, source, detections, (info.width, info.height), fps, config)


def detect(body: Any, frame: np.ndarray) -> np.ndarray:
    """The people of a frame (H, W, 3) uint8 RGB: (n, J, 3) px and confidence, (0, 0, 0) where unseen."""
    picture = np.ascontiguousarray(frame[..., ::-1])  # the networks were trained on BGR
    boxes = body.det_model(picture)
    if not len(boxes):  # without boxes the pose network would take the whole picture for a person
        return np.zeros((0, NUM_JOINTS, 3))
    points, scores = body.pose_model(picture, bboxes=boxes)
    poses = np.concatenate([points, np.asarray(scores)[..., None]], -1)[:, :NUM_JOINTS].astype(float)
    return np.where(np.isfinite(poses).all(-1, keepdims=True) & (poses[..., 2:] > 0), poses, 0.0).clip(None, 1e6)
