"""Does the renderer draw people where the poses say? Real clips' poses and captions, with and without control.

Letters: B videos, F frames, P persons, H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modules.base.network import BaseNetwork
from modules.controlnet.config import RenderConfig
from modules.controlnet.sampler import to_pixels
from modules.errors import UserError
from modules.evaluation.video import VideoScores, another, open_table, score_video
from modules.metrics.intervals import Units
from modules.pose.letterbox import Letterbox
from modules.pose.scene import Clip, Scene
from modules.pose.video import read_frames
from modules.rendering.pipeline import PoseVideoPipeline
from modules.reports import Table

_BATCH = 8


@dataclass
class Sample:
    """One window of a real clip."""

    clip: Clip
    scene: Scene  # its poses at the F rendered times
    frames: np.ndarray  # (F, H, W, 3) uint8, the real ones at the renderer's size


def gather(
    clips: Sequence[Clip], count: int, frame_stride: int, num_frames: int, size: tuple[int, int]
) -> list[Sample]:
    """The first window of the first clips that are long enough.

    Raises:
        UserError: a clip has no video, or fewer than two clips are long enough.
    """
    samples = []
    for clip in clips:
        indices = np.arange(num_frames) * frame_stride
        if len(samples) == count or indices[-1] >= clip.scene.num_frames:
            continue
        if clip.video is None:
            raise UserError(f"clip {clip.key} has no video; the renderer is scored on shards with a column .mp4")
        fit = Letterbox((clip.scene.width, clip.scene.height), (size[1], size[0]))
        frames = fit.frames(read_frames(clip.video, clip.start + indices))
        samples.append(Sample(clip, clip.scene.at(indices), frames))
    if len(samples) < 2:
        needed = (num_frames - 1) * frame_stride + 1
        raise UserError(
            f"{len(samples)} clips have the {needed} frames of a window; at least 2 are needed: lower frame_stride"
        )
    return samples


def evaluate(
    renderer: PoseVideoPipeline,
    clips: Sequence[Clip],
    *,
    count: int,
    settings: RenderConfig,
    seed: int,
    estimator: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Table]:
    """Figures, areas and colours of one window of `count` clips.

    Rows: the real video; its reconstruction by the autoencoder; control off; the same captions
    and seeds with another clip's poses; ours with the clip's poses.

    Args:
        clips: real clips with video.
        seed: video i has the seed seed + i.
        estimator: finds joints in frames, as in `score_video`.
        progress: called with the number of videos rendered.
    """
    config = renderer.base.config
    size = (config.height, config.width)
    samples = gather(clips, count, settings.frame_stride, config.num_frames, size)
    others = [samples[another(i, len(samples))] for i in range(len(samples))]
    fps = samples[0].clip.scene.fps / settings.frame_stride
    own_poses, other_poses = [s.scene for s in samples], [s.scene for s in others]

    def render(poses: Sequence[Scene], scale: float) -> list[np.ndarray]:
        videos: list[np.ndarray] = []
        for start in range(0, len(samples), _BATCH):
            part = slice(start, start + _BATCH)
            seeds = range(seed + start, seed + start + len(samples[part]))
            videos += list(
                renderer.render(
                    # The scenes are at the rendered times already.
                    [dataclasses.replace(scene, fps=fps) for scene in poses[part]],
                    [s.clip.caption for s in samples[part]],
                    seeds,
                    dataclasses.replace(settings, frame_stride=1, control_scale=scale),
                )
            )
            if progress is not None:
                progress(len(seeds))
        return videos

    trials = Units.of([s.clip for s in samples]).trials

    def add_row(name: str, videos: Sequence[np.ndarray], shown: Sequence[Scene], with_clothes: bool = True) -> None:
        scores = VideoScores(trials)
        for place, (video, poses, own, other, s) in enumerate(
            zip(videos, shown, own_poses, other_poses, samples, strict=True)
        ):
            scores.add(place, score_video(video, poses, own, other, s.clip, estimator))
        scores.add_row(table, name, with_clothes)

    table = open_table("rendering", [
        "Figures are held against the caption's own clip in every row, also where other poses were shown or none.",
        f"{config.num_frames} frames at {fps:g} fps, {settings.steps} steps, "
        f"guidance {settings.guidance_scale:g}, one seed a video from {seed} up.",
    ], estimator is not None)  # fmt: skip
    add_row("real video", [s.frames for s in samples], own_poses)
    add_row("autoencoder", reconstruct(renderer.base, samples), own_poses)
    add_row("control off", render(own_poses, 0.0), own_poses, with_clothes=False)
    add_row("another clip's poses", render(other_poses, settings.control_scale), other_poses, with_clothes=False)
    add_row("ours", render(own_poses, settings.control_scale), own_poses)
    return [table]


def reconstruct(base: BaseNetwork, samples: Sequence[Sample]) -> list[np.ndarray]:
    """The real frames through the autoencoder: the best that the renderer could do."""
    videos = []
    for s in samples:
        pixels = torch.from_numpy(s.frames).permute(0, 3, 1, 2)[None].float() / 127.5 - 1  # (1, F, 3, H, W)
        videos.append(to_pixels(base.decode_latents(base.encode_frames(pixels.to(base.latent_scale.device))))[0])
    return videos
