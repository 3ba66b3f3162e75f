"""The whole chain, tiny: every stage trained for two steps, then generated, edited and scored."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eval as eval_script
import generate as generate_script
import train as train_script
from configs.loader import load_config
from datamodules.synthetic.build import SyntheticConfig, build
from modules.errors import UserError
from modules.pose.io import read_plan
from modules.pose.video import read_frames
from modules.reports import read_report

ROOT = Path(__file__).parents[2]
# What makes each stage smaller than its smoke.yaml.
TINY = {
    "vqvae": ["model.network.codebook_size=16", "model.network.width=16"],
    "llm": [
        "model.architecture.hidden_size=32",
        "model.architecture.intermediate_size=32",
        "model.text_vocabulary=300",
    ],
    "interp": ["model.network.width=16", "model.network.layers=1"],
    "base": ["model.network.unet.block_out_channels=[16,16]", "model.network.vae.block_out_channels=[8,8,8]"],
    "controlnet": [],
    "evaluator": ["model.network.width=16"],
}
STEPS = [
    "trainer.max_steps=2", "trainer.val_every=2", "trainer.limit_val_batches=1", "trainer.sample_every=0",
    "trainer.log_every=1", "trainer.precision=32-true", "trainer.accelerator=cpu",
]  # fmt: skip
# Losses of these runs. After a change that means to change them: UPDATE_GOLDEN=1 make test ARGS="-k golden"
GOLDEN = Path(__file__).parent / "golden.json"
PROMPT = "A man in a red shirt and blue trousers walks to the left for 2 seconds in front of a white wall."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data and an export of every stage."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build(SyntheticConfig(out="data", train=8, val=2, test=4, shard_size=4, workers=1), progress=False)
        for stage in ("vqvae", "llm", "interp", "base", "controlnet", "evaluator"):
            train_script.train(
                load_config(
                    [str(ROOT / f"configs/{stage}/smoke.yaml")], [*COMMON, *STEPS, *TINY[stage], *UPSTREAM[stage]]
                )
            )
    return folder


COMMON = ["name=tiny", "data.path=data", "data.batch_size=2"]
UPSTREAM = dict.fromkeys(TINY, list[str]()) | {"controlnet": ["model.base=runs/base/tiny/export"]}


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


CHAIN = [str(ROOT / "configs/chain/smoke.yaml"), "name=tiny"]
SETTINGS = f"chain={ROOT / 'configs/chain/smoke.yaml'}"


@pytest.mark.parametrize("stage", TINY)
def test_golden_losses(stage: str) -> None:
    """A change that should not change what is learned does not: the losses of the first steps and of a validation."""
    events = EventAccumulator(f"runs/{stage}/tiny/logs").Reload()
    found = {name: [event.value for event in events.Scalars(name)] for name in ("train/loss", "val/loss")}
    assert len(found["train/loss"]) == 2
    known = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**known, stage: found}, indent=1, sort_keys=True) + "\n")
        return
    for name, values in found.items():
        # Other processors round in other ways; a real change is far larger.
        assert values == pytest.approx(known[stage][name], rel=2e-3), name


def test_a_prompt_becomes_a_video() -> None:
    generate_script.main([*CHAIN, f"prompt={PROMPT}", "seconds=2", "people=2", "seed=5"])
    (out,) = Path("outputs").iterdir()
    assert out.name.endswith("-5")
    plan = read_plan(out / "plan.json")
    assert plan.scene_keys.prompt == PROMPT
    assert (len(plan.scene_keys.persons), plan.scene_keys.num_frames) == (2, 6)
    assert plan.codes is not None
    assert np.load(out / "poses.npy", allow_pickle=False).shape == (2, 60, 18, 3)
    assert read_frames(out / "video.mp4").shape == (15, 256, 256, 3)
    assert (out / "sheet.png").is_file()


def test_an_edited_plan_is_rendered_beside_the_first_and_only_its_surroundings_change() -> None:
    generate_script.main([*CHAIN, f"prompt={PROMPT}", "seconds=4", "people=1", "out=first"])
    (out,) = Path("first").iterdir()
    data = json.loads((out / "plan.json").read_text())
    data["persons"][0]["keys"][6]["joints"][4] = [1.0, 2.0, 1]
    Path("edited.json").write_text(json.dumps(data))
    generate_script.main([*CHAIN, "plan=edited.json", "out=first"])
    edited = out.with_name(f"{out.name}-edited")
    assert (edited / "video.mp4").is_file()
    assert read_plan(edited / "plan.json").codes is None
    before, after = (np.load(path / "poses.npy", allow_pickle=False)[0] for path in (out, edited))
    changed = np.flatnonzero((before != after).any((1, 2)))
    assert changed.size
    assert changed.min() > 40
    assert changed.max() < 80


def test_prompts_of_a_file_with_several_seeds() -> None:
    Path("prompts.txt").write_text(f"{PROMPT}\nTwo people dance.\n")
    generate_script.main([*CHAIN, "prompts=prompts.txt", "n=2", "seconds=1", "people=1", "out=many"])
    sheets = [Image.open(path) for path in Path("many").glob("*/sheet.png")]
    assert len(sheets) == 4
    assert Image.open("many/overview.png").height == sum((sheet.height + 1) // 2 + 4 for sheet in sheets)


@pytest.mark.parametrize("stage", ["vqvae", "llm", "interp", "controlnet", "evaluator"])
def test_a_stage_is_scored_beside_its_baseline(stage: str) -> None:
    config = str(ROOT / f"configs/{stage}/smoke.yaml")
    eval_script.main([config, *COMMON, SETTINGS, "clips=3", "videos=2", "split=test"])
    report = read_report(f"runs/{stage}/tiny/eval/test.json")
    assert report.stage == stage
    assert len(report.tables[0].rows) >= 2
    assert f"runs/{stage}/tiny/export sha256:" in report.inputs[stage]
    assert (Path(f"runs/{stage}/tiny/eval") / "test.md").read_text().startswith(f"# {stage} on test")


def test_the_chain_is_scored_and_a_report_is_used_again() -> None:
    arguments = [*CHAIN, "data.path=data", "clips=2", "videos=1", "split=test"]
    eval_script.main(arguments)
    path = Path("runs/chain/tiny/eval/test.json")
    report = read_report(path)
    assert [row.name for row in report.tables[0].rows][0] == "real (dense)"
    ours = report.tables[0].rows[-2].values
    assert ours["valid"] == 1.0
    first = path.stat().st_mtime_ns
    eval_script.main([*arguments, "reuse=true"])
    assert path.stat().st_mtime_ns == first
    eval_script.main([*arguments, "reuse=true", "seed=1"])
    assert path.stat().st_mtime_ns > first


def test_exports_that_do_not_belong_together_are_refused() -> None:
    config = load_config(
        [str(ROOT / "configs/vqvae/smoke.yaml")], [*COMMON, *STEPS, *TINY["vqvae"], "name=other", "seed=1"]
    )
    train_script.train(config)
    with pytest.raises(UserError, match="trained with another pose tokenizer"):
        generate_script.main([*CHAIN, f"prompt={PROMPT}", "pipeline.exports.vqvae=runs/vqvae/other/export"])


def test_a_renderer_without_its_base_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/base/tiny/export").rename("runs/base/tiny/away")
    try:
        with pytest.raises(UserError, match="is not a base export"):
            generate_script.main([*CHAIN, f"prompt={PROMPT}", "out=nothing"])
    finally:
        Path("runs/base/tiny/away").rename("runs/base/tiny/export")
    assert not Path("nothing").exists()
