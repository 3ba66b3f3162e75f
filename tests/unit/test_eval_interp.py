"""The report on the interpolator: what the rows and the further tables say of known motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.evaluation.interp import Motion, compared, evaluate, gather, mean_motion, measure
from modules.evaluation.interp_details import BANDS, _power, by_keys, details
from modules.interp.config import NetworkConfig, SamplingConfig
from modules.interp.network import InterpNetwork
from modules.reports import Table
from modules.text import TextConfig
from modules.vqvae.config import NetworkConfig as TokenizerConfig
from modules.vqvae.network import PoseTokenizer
from tests.unit.test_interp import motion

CLIPS = [motion(length, seed) for seed, length in enumerate((90, 71, 100))]


@pytest.fixture(scope="module")
def network() -> InterpNetwork:
    torch.manual_seed(0)
    text = TextConfig(width=8, layers=1, heads=1)
    config = NetworkConfig(width=16, layers=1, heads=2, frames_per_token=5, outline_width=16, text=text)
    network = InterpNetwork.from_config(config)
    network.text.fit_vocabulary(["A person waves."])
    return network.eval()


def cell(table: Table, row: str, column: str) -> float:
    return next(r for r in table.rows if r.name == row).values[column]


def test_real_motion_has_no_error_and_its_own_jerk() -> None:
    motions = gather(CLIPS, 10)
    errors = measure(motions, [(m.poses, m.seen) for m in motions])
    assert errors.position.max() == errors.missed.max() == errors.acceleration_error.max() == 0
    assert (errors.jerk > 0).all()
    # A shift of everything is an error of its length everywhere, at keys and between them; motion stays the same.
    shifted = measure(motions, [(m.poses + np.float32(0.3), m.seen) for m in motions])
    for figures in (shifted.position, shifted.missed, shifted.all_joints):
        assert figures == pytest.approx(0.3 * 2**0.5, abs=1e-5)
    assert shifted.jerk == pytest.approx(errors.jerk, abs=1e-5)
    assert shifted.at_keys == pytest.approx(errors.at_keys, abs=1e-5)


def test_the_mean_of_samples_is_the_mean() -> None:
    a, b = (np.full((4, 18, 2), value, np.float32) for value in (0.0, 1.0))
    seen = np.ones((4, 18), bool)
    [(poses, visible)] = mean_motion([[(a, seen)], [(b, seen)], [(b, ~seen)]])
    assert poses == pytest.approx(2 / 3)
    assert visible.all()


def test_rows_of_the_main_table(network: InterpNetwork) -> None:
    first, second = evaluate(network, CLIPS, sampling=SamplingConfig(steps=2), samples=3, seed=0, trained=[10])
    assert [row.name for row in first.rows] == ["real", "linear", "PCHIP", "ours", "ours, mean of 3"]
    assert cell(first, "ours", "at keys") < 1e-4
    assert cell(first, "ours, mean of 3", "MPJPE") < cell(first, "ours", "MPJPE")
    assert "10 alone" in second.notes[-1]
    ours = first.rows[3]
    low, high = ours.intervals["MPJPE"]
    assert low < ours.values["MPJPE"] < high


def test_power_is_told_by_band() -> None:
    """A joint whose speed swings 6 times a second has its power between 4 and 8 Hz."""
    frames = np.arange(80)
    speed = 1 + 0.5 * np.sin(2 * np.pi * 6 * frames / 30)
    poses, seen = np.zeros((80, 18, 2), np.float32), np.ones((80, 18), bool)
    poses[..., 0] = np.cumsum(speed)[:, None]
    # A joint that is not seen for a while jumps to (0, 0) and back: it has no say.
    seen[20:40, 4], poses[20:40, 4] = False, 0
    power = _power([Motion(poses, seen, at := np.arange(0, 80, 10), poses[at], seen[at], 1.0, "", "a")], [poses], 30)
    assert power.argmax() == BANDS.index((4, 8))
    assert power.max() > 0.95 * power.sum()


def test_the_further_tables(network: InterpNetwork) -> None:
    tables = details(network, lambda stride: gather(CLIPS, stride), SamplingConfig(steps=2), [10])
    evaluations, text, spectrum, long, keys = tables
    assert [row.name for row in evaluations.rows][:3] == ["1", "2", "4"]
    assert cell(text, "right prompt", "spread") > 0
    assert cell(spectrum, "ours", "0.5-2 Hz") > 0
    assert 30 < cell(long, "ours", "frames changed by an edit") <= 41  # four segments of 10 frames, with the keys
    assert cell(long, "ours", "of them outside") == 0
    assert [row.name for row in keys.rows][:2] == ["noise of 0.02 keys, PCHIP", "noise of 0.02 keys, keys kept"]
    assert 0.015 < cell(keys, "noise of 0.02 keys, keys kept", "at keys") < 0.02


def test_keys_through_the_tokenizer(network: InterpNetwork) -> None:
    torch.manual_seed(0)
    tokenizer = PoseTokenizer(TokenizerConfig(width=16, num_quantizers=2, codebook_size=8)).eval()
    motions = gather(CLIPS, 10)
    table = by_keys(network, motions, SamplingConfig(steps=2), 10, tokenizer)
    kept, repaired = (cell(table, f"tokenizer's keys, {name}", "at keys") for name in ("keys kept", "keys repaired"))
    pchip = cell(table, "tokenizer's keys, PCHIP", "at keys")
    assert kept == pytest.approx(pchip, rel=0.2)  # of an untrained tokenizer: far off
    assert kept > 0.1
    assert repaired != kept


def test_scenes_to_look_at(network: InterpNetwork) -> None:
    [(name, scenes)] = compared(network, CLIPS[:1], 30, SamplingConfig(steps=2), 0)
    assert name == "clip0-stride30"
    assert list(scenes) == ["real", "interpolated", "PCHIP"]
    assert {scene.num_frames for scene in scenes.values()} == {90}
