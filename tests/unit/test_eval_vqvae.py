"""The report on the pose tokenizer: by camera, with hidden joints, and its pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from modules.evaluation.pictures import write_comparisons
from modules.evaluation.tokenizer_conditions import view_of
from modules.evaluation.vqvae import batches, evaluate, pairs
from modules.llm.scenes import scene_from_plan
from modules.llm.tokens import ScenePlan
from modules.pose.boxes import box_to_tokens
from modules.pose.scene import Clip, Scene
from modules.pose.video import read_frames
from modules.reports import Table
from modules.vqvae.config import NetworkConfig
from modules.vqvae.network import PoseTokenizer

STRIDE, KEYS = 5, 8


@pytest.fixture
def clips(make_scene: Callable[..., Scene]) -> list[Clip]:
    azimuths = (10, -100, 170, 350)
    return [
        Clip(f"clip{i}", make_scene(i, persons=1), "A person.", meta={"camera_azimuth_deg": azimuth})
        for i, azimuth in enumerate(azimuths)
    ]


@pytest.fixture
def network(clips: list[Clip]) -> PoseTokenizer:
    torch.manual_seed(0)
    network = PoseTokenizer(NetworkConfig(num_quantizers=2, codebook_size=8, latent_dim=8, width=16, dilations=[1]))
    for batch in batches(clips, STRIDE, KEYS):
        network(batch["poses"], batch["visibility"], batch["key_mask"])
    return network.eval()


def cell(table: Table, row: str, column: str) -> float:
    return next(r for r in table.rows if r.name == row).values[column]


@pytest.mark.parametrize(
    ("azimuth", "name"),
    [
        (0, "from the front"),
        (-44, "from the front"),
        (359, "from the front"),
        (100, "from the side"),
        (-181, "from behind"),
    ],
)
def test_views(azimuth: float, name: str) -> None:
    assert view_of(azimuth) == name


def test_the_errors_by_camera_add_up(network: PoseTokenizer, clips: list[Clip]) -> None:
    tables = {table.title: table for table in evaluate(network, clips, clips, stride=STRIDE, num_keys=KEYS)}
    views = tables["by camera"]
    assert {row.name: row.values["people"] for row in views.rows} == {
        "from the front": 2, "from the side": 1, "from behind": 1,
    }  # fmt: skip
    ours = next(row for row in tables["reconstruction"].rows if row.name == "ours")
    low, high = ours.intervals["MPJPE"]
    each = [cell(evaluate(network, clips, [clip], stride=STRIDE, num_keys=KEYS)[0], "ours", "MPJPE") for clip in clips]
    assert min(each) <= low < ours.values["MPJPE"] < high <= max(each)
    alone = evaluate(network, clips, [clips[1]], stride=STRIDE, num_keys=KEYS)[0]
    assert cell(views, "from the side", "MPJPE") == pytest.approx(cell(alone, "ours", "MPJPE"), rel=1e-5)


def test_hidden_joints_are_scored_by_themselves(network: PoseTokenizer, clips: list[Clip]) -> None:
    tables = {table.title: table for table in evaluate(network, clips, clips, stride=STRIDE, num_keys=KEYS)}
    table = tables["visibility"]
    assert cell(table, "as they are", "MPJPE hidden") is None
    assert cell(table, "as they are", "MPJPE visible") == pytest.approx(
        cell(tables["reconstruction"], "ours", "MPJPE"), rel=1e-5
    )
    assert cell(table, "20% of the joints hidden", "MPJPE hidden") > 0


def test_data_without_a_camera_have_no_such_table(network: PoseTokenizer, clips: list[Clip]) -> None:
    clips[0].meta = {}
    titles = [table.title for table in evaluate(network, clips, clips, stride=STRIDE, num_keys=KEYS)]
    assert titles == ["reconstruction", "codebooks", "visibility"]


def test_pictures_of_true_and_found_poses(tmp_path: Path, network: PoseTokenizer, clips: list[Clip]) -> None:
    found = pairs(network, clips[:2], stride=STRIDE, num_keys=KEYS, fps=30)
    write_comparisons(tmp_path, found)
    names = [f"clip{i}-0.{end}" for i in (0, 1) for end in ("mp4", "png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    real = found[0][1]["real"]
    assert len(read_frames(tmp_path / "clip0-0.mp4")) == real.num_frames
    # What is not seen is not drawn, and the true poses are those of the clip.
    true, keys = real.persons[0], clips[0].scene.keys(STRIDE).persons[0]
    shown = keys.visibility[:KEYS]
    assert (true.visibility == shown).all()
    assert true.joints[shown] == pytest.approx(keys.joints[:KEYS][shown], abs=1e-3)


def test_the_round_trip_to_pixels_loses_what_the_tokenizer_loses(network: PoseTokenizer, clips: list[Clip]) -> None:
    """Pixels -> box tokens and codes -> pixels: the error in the table is the distance between the two pictures."""
    total = count = 0.0
    for clip in clips:
        [batch] = batches([clip], STRIDE, KEYS)
        plan = ScenePlan("", box_to_tokens(batch["boxes"].numpy(), 64, 64), network.encode(*shown(batch)).numpy())
        found = scene_from_plan(plan, network, width=64, height=64, fps=30, stride=STRIDE).persons[0]
        true = clip.scene.keys(STRIDE).persons[0]
        both = true.visibility[:KEYS] & found.visibility  # a joint that is called unseen has no place
        total += float(np.linalg.norm(true.joints[:KEYS] - found.joints, axis=-1)[both].sum())
        count += int(both.sum())
    table = evaluate(network, clips, clips, stride=STRIDE, num_keys=KEYS)[0]
    assert total / count == pytest.approx(cell(table, "ours", "MPJPE px"), rel=0.05)


def shown(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return batch["poses"], batch["visibility"], batch["key_mask"]
