"""Make a data set of shards: python prepare.py SOURCE [key=value ...]

  python prepare.py synthetic                       the sample data, in data/sample (one to two minutes on 2 cores)
  python prepare.py openpose poses=json videos=videos captions=captions.csv out=data/mine preview=8
  python prepare.py bvh motions=bvh captions=captions.csv out=data/mocap preview=8
  python prepare.py latents data=data/sample out=data/latents
  python prepare.py shards "tars=[old/train-*.tar,more/{a,b}-000000.tar]" out=data/joined

All sources:
  out=data/mine     folder of the shards {train,val,test}-*.tar and of manifest.json
  shard_size=500    clips in one shard
  workers=2         processes; the result does not depend on them
  overwrite=false   replace a data set that was made with other settings
  val=0.05 test=0.05 seed=0   shares of the sources drawn for these splits (a column `split` of the captions decides)
  preview=0         clips to draw for a look, in out/preview

synthetic: people who walk, wave, sit down, ... drawn before plain backgrounds, with captions
  train=4000 val=128 test=256   clips
  seed=0            another seed, other clips

openpose: folders of OpenPose's --write_json (COCO-18 or BODY_25), one folder a video
  poses=FOLDER      the JSON files
  captions=FILE     CSV with a header, or JSONL: name, caption; optional label, split, group, fps, start, end (seconds)
  captioner=FILE.py instead: a Python file that defines caption(scene, frames)
  videos=FOLDER     {name}.mp4, ...: they say the frame rate and the canvas, and appear in the preview
  video=false       put the videos into the shards, too; side=512: longer side of their canvas
  fps=, width=, height=    where no video says it
  keep.people=all   clips with everybody of a stretch of time; each: a clip for each person
  keep.max_people=4 keep.min_seconds=1 keep.max_frames=240 keep.min_size=0.1 keep.min_mean_confidence=0.4
  keep.min_visible=0.5   what is kept; the manifest counts the rest by reason
  track.max_gap=0.5 seconds that a person may be lost; bridge=true fills such gaps by interpolation
  min_confidence=0.1     a joint is seen above it

bvh: motion capture of any rig, seen by virtual cameras
  motions=FOLDER    .bvh files; captions=FILE as above, named by their paths below it, without the suffix
  cameras=4         views of each clip;  width=1280 height=720   canvas;  stature=1.72   of the person, metres
  joints.l_hip=NAME a joint of the rig that is not found by its name
  min_seconds=1 max_frames=240

video: videos through a pose estimator; needs `pip install 'pose-director[video]'` (rtmlib)
  videos=FOLDER     and captions, keep, track, ... as for openpose
  detector=FILE pose_model=FILE   ONNX weights (YOLOX, RTMPose); without them rtmlib downloads its own
  device=cpu        or cuda

shards: existing tars, joined or re-sharded; the samples are copied as they are and checked on the way
  tars=[PATTERN,...]  with braces or wildcards; parallel tars (pose-, caption-, video-000000.tar) by their pose tars
  layout=joined     one tar; parallel: {split}/pose-, caption- and video-000000.tar, so that new captions need new
                    caption tars alone;  video=true   keep the videos
  captions=FILE     other captions, by key;  split=train   of all samples, else by the names of the tars
  skip_bad=false    leave damaged samples out, counted

latents: what a frozen base makes of videos and captions, so that `model.cached=true` trains without either encoder
  data=data/sample base=assets/demo_base   shards with videos, and the export of stage `base`
  every=1           keep every n-th frame (strides in training are then multiples of it);  video=false   keep the videos
  batch=32 device=auto precision=32   frames at once; auto: bfloat16 where the hardware has it

An interrupted run goes on where it stopped; a complete data set is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from configs.cli import run_script, split_arguments
from configs.loader import load_typed
from datamodules.sources.latents import Encoders, LatentsConfig, build_latents
from datamodules.sources.mocap import BvhConfig, build_bvh
from datamodules.sources.openpose import OpenPoseConfig, build_openpose
from datamodules.sources.reshard import ShardsConfig, build_shards
from datamodules.sources.staging import tell
from datamodules.sources.video import VideoConfig, build_video
from datamodules.synthetic.build import SyntheticConfig, build
from modules.errors import UserError


def load_base(config: LatentsConfig) -> Encoders:
    """The encoders of the base that `config` names; loaded only where this source is asked for."""
    from modules.rendering.encoders import load_encoders

    options = {"batch": config.batch, "device": config.device, "precision": config.precision}
    return Encoders(**load_encoders(config.base, **options))


# Settings and builder of each source.
SOURCES: dict[str, tuple[type, Callable[[Any], dict[str, Any]]]] = {
    "synthetic": (SyntheticConfig, build),
    "openpose": (OpenPoseConfig, build_openpose),
    "video": (VideoConfig, build_video),
    "bvh": (BvhConfig, build_bvh),
    "shards": (ShardsConfig, build_shards),
    "latents": (LatentsConfig, functools.partial(build_latents, load_base)),
}


def main(arguments: list[str]) -> None:
    """Dispatch by the name of the source.

    Raises:
        UserError: no source or an unknown one is named, or its settings are wrong.
    """
    names, items, _ = split_arguments(arguments)
    known = ", ".join(SOURCES)
    example = "for example: python prepare.py synthetic out=data/sample"
    if len(names) != 1:
        got = " ".join(names) if names else "none"
        raise UserError(f"one source must be named, got {got}; known: {known}; {example}")
    if names[0] not in SOURCES:
        raise UserError(f"source {names[0]!r} is unknown; known: {known}; {example}")
    schema, make = SOURCES[names[0]]
    config = load_typed(schema, [], items)
    manifest = make(config)
    counts = ", ".join(f"{count} {split}" for split, count in manifest["samples"].items())
    print(f"{config.out}: {counts} clips in {len(manifest['shards'])} shards")
    if rejected := manifest.get("rejected"):
        print(f"left out: {tell(rejected)}")


if __name__ == "__main__":
    run_script(main, __doc__)
