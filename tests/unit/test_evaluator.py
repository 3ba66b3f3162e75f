"""The evaluator: what it may depend on, and that it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modules.checkpoint import load_frozen, save_export
from modules.errors import UserError
from modules.evaluation.evaluator import evaluate, shuffled
from modules.evaluator.config import EvaluatorConfig, EvaluatorNetworkConfig
from modules.evaluator.data import Encode, collate, resample, scene_item
from modules.evaluator.module import EvaluatorModule, contrast
from modules.evaluator.network import Evaluator, body_features
from modules.pose.actors import clip_actors
from modules.pose.scene import Clip, Scene, make_person
from modules.text import TextConfig

MakeScene = Callable[..., Scene]


def small(labels: list[str] | None = None) -> EvaluatorNetworkConfig:
    text = TextConfig(width=16, layers=1, max_vocabulary=50)
    labels = ["nod", "shake"] if labels is None else labels
    return EvaluatorNetworkConfig(width=16, layers=2, embedding=4, max_labels=8, dropout=0.0, labels=labels, text=text)


def batch_of(*scenes: Scene) -> dict[str, torch.Tensor]:
    return collate([scene_item(scene, 10.0) for scene in scenes])


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


def test_padding_other_scenes_and_unseen_joints_do_not_count(make_scene: MakeScene) -> None:
    torch.manual_seed(0)
    network = Evaluator(small()).eval()
    short, long = make_scene(frames=30, persons=2), make_scene(seed=1, frames=90, persons=1)
    alone, together = network(batch_of(short)), network(batch_of(short, long))
    torch.testing.assert_close(together.logits[:2], alone.logits)
    torch.testing.assert_close(together.embedding[:1], alone.embedding)
    batch = batch_of(short)
    unseen = torch.where(batch["visibility"][..., None], batch["poses"], torch.full_like(batch["poses"], 9.0))
    torch.testing.assert_close(network({**batch, "poses": unseen}).embedding, alone.embedding)


@pytest.mark.parametrize("frames", [1, 2, 900])
def test_any_length_and_nobody(make_scene: MakeScene, frames: int) -> None:
    network = Evaluator(small()).eval()
    scene = make_scene(frames=max(frames, 45), persons=2).at(range(frames))
    empty = dataclasses.replace(scene, persons=[])
    found = network.embed_scenes([empty, scene, empty])
    assert found.norm(dim=1).tolist() == pytest.approx([0, 1, 0], abs=1e-5)
    assert [len(names) for names in network.classify([empty, scene])] == [0, 2]


def test_the_order_of_the_people_in_the_scene_does_not_matter_and_their_places_do(make_scene: MakeScene) -> None:
    torch.manual_seed(0)
    network = Evaluator(small()).eval()
    scene = make_scene(persons=2)
    turned = dataclasses.replace(scene, persons=scene.persons[::-1])
    torch.testing.assert_close(network.embed_scenes([scene]), network.embed_scenes([turned]))
    assert network.classify([turned])[0] == network.classify([scene])[0][::-1]
    left, right = scene.persons
    exchanged = [dataclasses.replace(left, box=right.box), dataclasses.replace(right, box=left.box)]
    other = network.embed_scenes([dataclasses.replace(scene, persons=exchanged)])
    assert (other - network.embed_scenes([scene])).abs().max() > 1e-3


def test_equal_captions_are_no_negatives() -> None:
    motion = nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    text = motion[[0, 0, 2, 3]]
    captions = ["a", "a", "b", "c"]
    loss, first = contrast(motion, text, captions, torch.tensor(3.0))
    assert first.tolist()[2:] == [1.0, 1.0]
    # With one caption alone there is nothing to tell apart.
    nothing, all_right = contrast(motion, text, ["a"] * 4, torch.tensor(0.0))
    assert all_right.tolist() == [1.0] * 4
    _, worse = contrast(motion, text[[2, 2, 0, 0]], ["a", "a", "b", "b"], torch.tensor(3.0))
    assert worse.sum() <= first.sum()
    assert torch.isfinite(loss + nothing)


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
    train = [moving(action, seed) for seed in range(8) for action in ("shake", "nod")]
    held_out = [moving(action, seed) for seed in range(100, 106) for action in ("shake", "nod")]
    tables = {table.title: table for table in evaluate(trained.network, train, held_out, stride=10)}
    always, ours = (row.values for row in tables["action classifier"].rows)
    assert ours["dense poses"] == 1.0
    assert ours["key poses"] >= 0.9
    assert always["dense poses"] == 0.5
    matching = {row.name: row.values for row in tables["text-motion matching"].rows}
    assert matching["real"]["R@1"] == 1.0  # of two captions, the right one
    assert matching["frozen"]["R@1"] <= 0.75
    assert matching["frozen"]["KID"] > 2 * abs(matching["real"]["KID"])
    assert matching["shuffled captions"]["R@1"] <= 0.75
    assert any(note.startswith("No FID: 12 independent windows") for note in tables["text-motion matching"].notes)
    assert tables["kinematics"].rows[0].values["acceleration"] > 0


def test_captions_alone_are_enough(tmp_path: Path) -> None:
    module = EvaluatorModule(EvaluatorConfig(network=small([])), max_steps=1)
    clips = [Clip(c.key, c.scene, c.caption) for c in (moving(a, s) for s in range(2) for a in ("nod", "shake"))]
    module.setup_data(lambda: clips)
    assert module.network.labels == []
    batch = module.collate([item for clip in clips for item in module.encode(clip, np.random.default_rng(0), True)])
    assert set(module.model_step(batch)) == {"matching", "loss", "first"}
    module.export(tmp_path / "export", {})
    network = load_frozen(tmp_path / "export", "evaluator")
    assert network.classify([clips[0].scene]) == [[""]]  # type: ignore[operator]
    assert len(evaluate(network, clips, clips, stride=10)) == 2  # type: ignore[arg-type]


def test_an_export_of_the_time_before_captions_is_refused(tmp_path: Path) -> None:
    save_export(tmp_path / "export", stage="evaluator", config={"network": {"width": 8}}, state=None, info={})
    with pytest.raises(UserError, match="reads no captions; `make train-evaluator` anew"):
        load_frozen(tmp_path / "export", "evaluator")


@pytest.mark.parametrize("captions", [["a b", "a b", "c"], ["a", "b", "c", "d"]])
def test_shuffled_captions_are_the_same_ones(captions: list[str]) -> None:
    found = shuffled(captions, 0)
    assert sorted(found) == sorted(captions)
    assert sum(a == b for a, b in zip(found, captions, strict=True)) <= (1 if len(set(captions)) == 2 else 0)


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
    assert encoded[0]["labels"] == [1]


def test_an_action_that_was_never_trained_on_is_a_miss_and_no_error(trained: EvaluatorModule) -> None:
    clip = moving("nod", 0)
    clip.label = "fly"
    batch = trained.collate(trained.encode(clip, np.random.default_rng(0), False))
    found = trained.model_step(batch)
    assert found["right"].tolist() == [0.0]
    assert torch.isfinite(found["loss"])


def test_data_with_one_caption_are_refused() -> None:
    module = EvaluatorModule(EvaluatorConfig(network=small([])), max_steps=1)
    with pytest.raises(UserError, match="has 1 different captions, at least 2"):
        module.setup_data(lambda: [moving("nod", 0)])


def test_too_many_actions_are_refused() -> None:
    module = EvaluatorModule(EvaluatorConfig(network=small([])), max_steps=1)
    clips = [moving("nod", 0) for _ in range(9)]
    for number, clip in enumerate(clips):
        clip.label = clip.caption = str(number)
    with pytest.raises(UserError, match="raise network.max_labels"):
        module.setup_data(lambda: clips)
