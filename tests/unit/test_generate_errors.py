"""generate.py: bad input gives one line with the next step and nothing half-written; good input gives whole folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import generate
from modules.checkpoint import save_export
from modules.errors import UserError
from modules.outputs import enlarge, sheet, slug, write_result
from modules.pipeline import Result
from modules.pose.io import Plan, read_openpose, read_plan, write_plan
from modules.pose.scene import Scene
from modules.pose.video import read_frames

ROOT = Path(__file__).parents[2]
MakeScene = Callable[..., Scene]


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a config of the chain."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "chain.yaml"
    config.write_text((ROOT / "configs/chain/demo.yaml").read_text())
    return config


def result_of(scene: Scene, seed: int = 3) -> Result:
    frames = np.zeros((-(-scene.num_frames // 4), 64, 64, 3), np.uint8)
    frames[..., 0] = 200
    frames[..., 1] = 8 * np.arange(len(frames))[:, None, None]  # no two alike: a GIF joins those that are
    return Result(Plan(scene.keys(10), seed, 10), scene, frames, 7.5)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["prompt="], "The prompt is empty"),
        (["prompt=   "], "The prompt is empty"),
        ([], "The prompt is empty"),
        (["prompt=" + "a" * 10_000], "The prompt has 10000 characters"),
        (["prompt=a man: walks, {slowly} [left]"], "`make train-vqvae` makes one"),
        (["prompts=missing.txt"], "missing.txt cannot be read"),
        (["plan=missing.json"], "missing.json: cannot be read"),
        (["plan=a.json", "prompt=a"], "only one of prompt=, prompts= and plan="),
        (["plan=a.json", "poses=b.npy"], "only one of plan=, poses= and session="),
        (["edits=missing.json", "prompt=a"], "missing.json: cannot be read"),
        (["poses=missing.npy", "prompt=a"], "missing.npy: is not a .npy file"),
        (["session=missing.json"], "missing.json: cannot be read"),
        (["prompt=a", "n=0"], "n is 0"),
        (["prompt=a", "sede=1"], "did you mean seed"),
    ],
)
def test_messages(chain: Path, items: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        generate.main([str(chain), *items])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (chain.parent / "outputs").exists()


def test_a_prompts_file_names_the_line(chain: Path) -> None:
    Path("prompts.txt").write_text("A man walks.\n\n" + "b" * 2000 + "\n")
    with pytest.raises(UserError, match="prompts.txt, prompt 2: The prompt has 2000 characters"):
        generate.main([str(chain), "prompts=prompts.txt"])
    Path("prompts.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no prompts"):
        generate.main([str(chain), "prompts=prompts.txt"])


def test_an_export_of_another_stage_is_refused(chain: Path) -> None:
    save_export("runs/vqvae/demo/export", stage="interp", config={}, state=None, info={})
    with pytest.raises(UserError, match="is an export of stage 'interp', but one of stage 'vqvae' is needed"):
        generate.main([str(chain), "prompt=a man walks"])


def test_a_broken_plan_is_refused_before_anything_is_loaded(chain: Path, make_scene: MakeScene) -> None:
    write_plan("plan.json", Plan(make_scene().keys(10), 0, 10))
    data = json.loads(Path("plan.json").read_text())
    del data["persons"][1]["keys"][2]["joints"][17]
    Path("short.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"short.json: person 1, key 2, joint 17 \(l_ear\): is missing"):
        generate.main([str(chain), "plan=short.json"])
    data = json.loads(Path("plan.json").read_text())
    data["persons"][0]["box"][2] = 99
    Path("wide.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="outside of the frame"):
        generate.main([str(chain), "plan=wide.json"])


def test_the_script_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "generate.py"), f"{ROOT}/configs/chain/demo.yaml", "prompt="]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: The prompt is empty")
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_result_folder_holds_everything(tmp_path: Path, make_scene: MakeScene) -> None:
    scene = make_scene(frames=45)
    folder = tmp_path / "outputs" / "two-people-3"
    write_result(folder, result_of(scene))
    names = {"plan.json", "poses.json", "poses.npy", "poses.mp4", "video.mp4", "video.gif", "sheet.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in folder.parent.iterdir()] == ["two-people-3"]
    poses = np.load(folder / "poses.npy", allow_pickle=False)
    assert poses.shape == (2, 45, 18, 3)
    np.testing.assert_array_equal(poses[..., :2], scene.joints)
    assert read_plan(folder / "plan.json").scene_keys.num_frames == 5
    assert read_openpose(folder / "poses.json").num_frames == 45
    assert read_frames(folder / "poses.mp4").shape == (45, 256, 256, 3)
    video = read_frames(folder / "video.mp4")
    assert video.shape == (12, 256, 256, 3)
    assert abs(int(video[..., 0].mean()) - 200) < 8
    assert Image.open(folder / "sheet.png").width > 5 * 160
    animated = Image.open(folder / "video.gif")
    assert (animated.n_frames, animated.size) == (12, (256, 256))
    assert animated.info["duration"] == 130


def test_a_failed_result_leaves_the_old_one(
    tmp_path: Path, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a-0"
    write_result(folder, result_of(make_scene()))
    before = (folder / "plan.json").read_text()
    monkeypatch.setattr("modules.outputs.sheet", lambda result: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_result(folder, result_of(make_scene(seed=1)))
    assert (folder / "plan.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a-0"]


def test_videos_grow_by_whole_factors() -> None:
    frames = np.zeros((2, 64, 96, 3), np.uint8)
    assert enlarge(frames).shape == (2, 256, 384, 3)
    assert enlarge(frames, 1).shape == frames.shape
    assert enlarge(frames, 2).shape == (2, 128, 192, 3)
    assert enlarge(np.zeros((1, 320, 512, 3), np.uint8)).shape == (1, 320, 512, 3)


def test_a_sheet_of_any_prompt(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.prompt = "Ein Mann läuft \N{WAVING HAND SIGN} " * 30
    assert sheet(result_of(scene)).dtype == np.uint8


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A man walks.", "a-man-walks"),
        ("../../etc/passwd", "etc-passwd"),
        ("Él corre rápido", "el-corre-rapido"),
        ("走る", "prompt"),
        ("a" * 300, "a" * 48),
        ("word " * 40, "word-" * 9 + "wor"),
    ],
)
def test_slugs_are_plain_and_short(prompt: str, name: str) -> None:
    found = slug(prompt)
    assert len(found) <= 48
    assert found == name or found == name.rpartition("-")[0]
