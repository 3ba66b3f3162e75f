"""One rival alone, by the judges and beside the baselines of the chain's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modules.evaluation.ablation import mean_pose, spline, stand_still
from modules.evaluation.chain import Rival
from modules.evaluation.names import MEAN_POSE, REAL, RETRIEVAL
from modules.evaluation.ranks import Ranks
from modules.evaluation.rows import Scoreboard, is_dense
from modules.evaluator.network import Evaluator
from modules.metrics.retrieval import CaptionRetrieval
from modules.pose.scene import Clip
from modules.reports import Table


def evaluate(
    rival: Rival,
    evaluator: Evaluator,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    *,
    name: str,
    stride: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Table]:
    """Captions, matching and kinematics; the figures of `name` are those that it has among the rows of the chain.

    Args:
        train: the training split, for retrieval, the mean pose and novelty.
        clips: the held-out clips.
        name: of the row.
        stride: dense frames per key pose.
        progress: called with the number of clips done, of those that this process scores.
    """
    board, still = Scoreboard(evaluator, train, clips, stride), mean_pose(train)
    retrieval = CaptionRetrieval([clip.caption for clip in train])
    board.open([REAL, MEAN_POSE, RETRIEVAL, name])
    for places in Ranks.current().chunks(len(clips)):
        part = [clips[place] for place in places]
        captions = [clip.caption for clip in part]
        board.add(REAL, places, [clip.scene for clip in part], novelty=True)
        board.add(MEAN_POSE, places, [stand_still(clip.scene, *still) for clip in part])
        board.add(RETRIEVAL, places, [train[retrieval.nearest(caption)].scene for caption in captions])
        made = rival.generate(captions, [seed + place for place in places])
        scenes = [scene if is_dense(scene, stride) else spline(scene, stride) for scene in made]
        board.add(name, places, scenes, novelty=True)
        if progress is not None:
            progress(len(places))
    return board.tables()
