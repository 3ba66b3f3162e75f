"""The action classifier: what it may depend on, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from modules.checkpoint import load_frozen
from modules.errors import UserError
from modules.evaluation.evaluator import evaluate
from modules.evaluator.config import EvaluatorConfig, EvaluatorNetworkConfig
from modules.evaluator.data import Encode, collate, person_item, resample
from modules.evaluator.module import EvaluatorModule
from modules.evaluator.network import Evaluator, body_features
from modules.pose.actors import clip_actors
from modules.pose.scene import Clip, Scene, make_person

MakeScene = Callable[..., Scene]


def small(labels: list[str] | None = None) -> EvaluatorNetworkConfig:
    return EvaluatorNetworkConfig(width=16, layers=2, max_labels=8, dropout=0.0, labels=labels or ["nod", "shake"])


def batch_of(scene: Scene) -> dict[str, torch.Tensor]:
    return collate([person_item(person, scene.times, 10.0) for person in scene.persons])


def logits(network: Evaluator, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return network(batch["poses"], batch["visibility"], batch["frame_mask"]).logits


def test_resampling_is_exact_on_straight_lines_and_at_the_given_times() -> None:
    times = np.array([0.0, 1 / 3, 2 / 3, 1.0])
    joints = np.repeat((times * 6)[:, None, None], 18, axis=1).repeat(2, axis=2).astype(np.float32)
    visible = np.ones((4, 18), bool)
    visible[1, 0] = False
    found, seen = resample(joints, visible, times, 10.0)
    assert len(found) == 11
    np.testing.assert_allclose(found[:, 1, 0], np.arange(11) * 0.6, atol=1e-5)
    # Unseen at the second time: only frames that do not need it are seen.
    assert seen[:, 0].tolist() == [True, *[False] * 6, *[True] * 4]


def test_a_single_pose_can_be_judged() -> None:
    joints, visible = np.ones((1, 18, 2), np.float32), np.ones((1, 18), bool)
    assert len(resample(joints, visible, np.zeros(1), 10.0)[0]) == 1


def test_features_do_not_change_with_place_and_size(make_scene: MakeScene) -> None:
    batch = batch_of(make_scene(frames=40))
    moved = 3.0 * batch["poses"] + torch.tensor([5.0, -2.0])
    a, b = (body_features(poses, batch["visibility"], batch["frame_mask"]) for poses in (batch["poses"], moved))
    torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_padding_and_unseen_joints_do_not_count(make_scene: MakeScene) -> None:
    torch.manual_seed(0)
    network = Evaluator(small()).eval()
    short, long = batch_of(make_scene(frames=30, persons=1)), make_scene(seed=1, frames=90, persons=1)
    alone = logits(network, short)
    items = [
        {name: short[name][0].numpy() for name in ("poses", "visibility")},
        person_item(long.persons[0], long.times, 10.0),
    ]
    torch.testing.assert_close(logits(network, collate(items))[:1], alone)
    unseen = torch.where(short["visibility"][..., None], short["poses"], torch.full_like(short["poses"], 9.0))
    torch.testing.assert_close(logits(network, {**short, "poses": unseen}), alone)


def test_people_of_clips_without_actors_have_the_label_of_the_clip(make_scene: MakeScene) -> None:
    clip = Clip("a", make_scene(persons=2), "Two people run.", label="run")
    assert [actor.action for actor in clip_actors(clip)] == ["run", "run"]
    clip.meta = {"actors": [{"action": "walk", "direction": "left", "side": "none"}, {"action": "run"}]}
    assert [actor.action for actor in clip_actors(clip)] == ["walk", "run"]


def moving(action: str, seed: int) -> Clip:
    """A clip in which the head moves up and down, or from side to side."""
    rng = np.random.default_rng(seed)
    figure = np.random.default_rng(0).uniform(10, 50, (18, 2))
    swing = 6 * np.sin(2 * np.pi * (np.arange(60) / 30 + rng.random()))
    joints = np.repeat(figure[None], 60, 0) + rng.normal(0, 0.1, (60, 18, 2))
    joints[:, :, 1 if action == "nod" else 0] += swing[:, None] * (np.arange(18) % 2)
    scene = Scene(64, 64, 30.0, np.arange(60) / 30, [make_person(joints, np.ones((60, 18), bool), 64, 64)])
    return Clip(f"{action}{seed}", scene, f"A person does {action}.", label=action)


@pytest.fixture(scope="module")
def trained() -> EvaluatorModule:
    torch.manual_seed(0)
    clips = [moving(action, seed) for seed in range(8) for action in ("shake", "nod")]
    module = EvaluatorModule(EvaluatorConfig(network=small([])), max_steps=60)
    module.setup_data(lambda: clips)
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    for step in range(60):
        module.training_step(
            collate([item for clip in clips for item in module.encode(clip, rng, True)]), step
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.eval()


def test_it_learns_and_judges_dense_and_key_poses_alike(trained: EvaluatorModule) -> None:
    held_out = [moving(action, seed) for seed in range(100, 106) for action in ("shake", "nod")]
    table = evaluate(trained.network, held_out, stride=10)[0]
    ours = table.rows[-1].values
    assert ours["dense poses"] == 1.0
    assert ours["key poses"] >= 0.9
    assert table.rows[0].values["dense poses"] == 0.5


def test_an_export_gives_the_same_answers(trained: EvaluatorModule, tmp_path: Path) -> None:
    trained.export(tmp_path / "export", {"step": 60})
    network = load_frozen(tmp_path / "export", "evaluator")
    assert isinstance(network, Evaluator)
    scenes = [moving(action, 7).scene for action in ("nod", "shake")]
    assert network.labels == ["nod", "shake"]
    assert network.classify(scenes) == trained.network.classify(scenes) == [["nod"], ["shake"]]


def test_the_labels_are_part_of_a_checkpoint(trained: EvaluatorModule) -> None:
    checkpoint: dict[str, object] = {}
    trained.on_save_checkpoint(checkpoint)
    fresh = EvaluatorModule(EvaluatorConfig(network=small([])), max_steps=1)
    fresh.on_load_checkpoint(checkpoint)
    assert fresh.network.labels == ["nod", "shake"]
    encoded = Encode(fresh.config)(moving("shake", 0), np.random.default_rng(0), False)
    assert encoded[0]["label"] == 1


def test_an_action_that_was_never_trained_on_is_a_miss_and_no_error(trained: EvaluatorModule) -> None:
    clip = moving("nod", 0)
    clip.label = "fly"
    batch = trained.collate(trained.encode(clip, np.random.default_rng(0), False))
    loss, right = trained.model_step(batch)
    assert right.tolist() == [0.0]
    assert torch.isfinite(loss)


def test_data_with_one_action_is_refused() -> None:
    module = EvaluatorModule(EvaluatorConfig(network=small([])), max_steps=1)
    with pytest.raises(UserError, match="has 1 different actions, at least 2"):
        module.setup_data(lambda: [moving("nod", 0)])


def test_too_many_actions_are_refused() -> None:
    module = EvaluatorModule(EvaluatorConfig(network=small([])), max_steps=1)
    clips = [moving("nod", 0) for _ in range(9)]
    for number, clip in enumerate(clips):
        clip.label = str(number)
    with pytest.raises(UserError, match="raise network.max_labels"):
        module.setup_data(lambda: clips)
