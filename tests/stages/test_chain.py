"""The whole chain, tiny: every stage trained for two steps, then generated, edited and scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eval as eval_script
import generate as generate_script
import train as train_script
from configs.chain_schema import GenerateConfig
from configs.loader import load_config, load_typed
from modules.editing import apply_edits, check_edits
from modules.errors import UserError
from modules.evaluation.chain import ABLATIONS, ROWS
from modules.evaluation.claim import ROWS as CLAIM_ROWS
from modules.evaluation.names import INTERPOLATED, OURS, PCHIP, PLAN, REAL
from modules.pipeline import PLAN_STAGES, Pipeline
from modules.pose.io import Plan, read_plan, write_plan
from modules.pose.video import read_frames
from modules.reports import Report, read_report
from modules.session import Session, write_session
from tests.tiny import COMMON, ROOT, STEPS, TINY

# Losses of these runs. After a change that means to change them: UPDATE_GOLDEN=1 make test ARGS="-k golden"
GOLDEN = Path(__file__).parent / "golden.json"
PROMPT = "A man in a red shirt and blue trousers walks to the left for 2 seconds in front of a white wall."


@pytest.fixture(autouse=True)
def inside(tiny_chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_chain)


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
        assert values == pytest.approx(known[stage][name], rel=1e-2), name


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


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline.from_exports(load_typed(GenerateConfig, CHAIN[:1], CHAIN[1:]).pipeline, stages=PLAN_STAGES)


def edited(pipeline: Pipeline, plan: Plan, **edit: object) -> Plan:
    return apply_edits(plan, check_edits([edit]), pipeline)


def test_somebody_more_leaves_the_others_as_they_were(pipeline: Pipeline) -> None:
    (plan,) = pipeline.plan([PROMPT], [2], num_people=1, num_keys=9)
    before = pipeline.dense(plan).joints
    more = edited(pipeline, plan, op="add_person", box=[2, 10, 20, 60])
    assert more.ids == [0, 1]
    np.testing.assert_allclose(more.scene_keys.boxes[1], [2, 10, 20, 60], atol=64 / 255)
    np.testing.assert_array_equal(more.scene_keys.joints[:1], plan.scene_keys.joints)
    both = pipeline.dense(more).joints
    np.testing.assert_array_equal(both[:1], before)
    # The first goes: the second is still as it was.
    less = edited(pipeline, more, op="delete_person", person=0)
    np.testing.assert_array_equal(pipeline.dense(less).joints[0], both[1])
    free = edited(pipeline, plan, op="add_person", seed=5)
    assert free.scene_keys.joints.shape[:2] == (2, 9)
    while len(free.scene_keys.persons) < pipeline.director.grammar.max_people:
        free = edited(pipeline, free, op="add_person")
    with pytest.raises(UserError, match="as many as the director knows"):
        edited(pipeline, free, op="add_person")


def test_from_here_on_with_another_prompt(pipeline: Pipeline) -> None:
    (plan,) = pipeline.plan([PROMPT], [0], num_people=2, num_keys=12)
    other = "Two people in red shirts and blue trousers clap in front of a white wall."
    after = edited(pipeline, plan, op="continue", key=7, prompt=other, seed=9)
    assert after.scene_keys.later == ((7 * 10 / 30, other),)
    assert after.scene_keys.prompt == PROMPT
    np.testing.assert_array_equal(after.scene_keys.joints[:, :7], plan.scene_keys.joints[:, :7])
    assert (after.scene_keys.joints[:, 7:] != plan.scene_keys.joints[:, 7:]).any()
    changed = np.flatnonzero((pipeline.dense(after).joints != pipeline.dense(plan).joints).any((0, 2, 3)))
    assert changed.min() > 50
    with pytest.raises(UserError, match="nothing to go on from"):
        edited(pipeline, plan, op="continue", key=0, prompt=other)
    longer = edited(pipeline, plan, op="continue", key=12, prompt=other, seconds=5)
    assert pipeline.dense(longer).num_frames == 150


def test_key_poses_are_shown_while_they_are_written(pipeline: Pipeline) -> None:
    seen: list[Plan] = []
    (plan,) = pipeline.plan([PROMPT], [1], num_people=2, num_keys=4, on_key=seen.append)
    assert [preview.scene_keys.num_frames for preview in seen] == [1, 2, 3, 4]
    np.testing.assert_array_equal(seen[-1].scene_keys.joints, plan.scene_keys.joints)

    def stop(_: Plan) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.plan([PROMPT], [1], num_keys=4, on_key=stop)


def test_edits_poses_and_sessions_from_the_command_line(pipeline: Pipeline) -> None:
    (plan,) = pipeline.plan([PROMPT], [1], num_people=1, num_keys=2)
    write_plan("small.json", plan)
    Path("edits.json").write_text('[{"op": "move_joint", "person": 0, "key": 1, "joint": "nose", "x": 30, "y": 9}]')
    generate_script.main([*CHAIN, "plan=small.json", "edits=edits.json", "out=small"])
    (out,) = Path("small").iterdir()
    assert out.name.endswith("-1-edited")
    joints = read_plan(out / "plan.json").scene_keys.joints
    assert joints[0, 1, 0].tolist() == [30, 9]
    generate_script.main([*CHAIN, f"poses={out}/poses.npy", f"prompt={PROMPT}", "out=again"])
    (again,) = Path("again").iterdir()
    assert read_plan(again / "plan.json").scene_keys.num_frames == 2
    session = Session()
    session.push(read_plan(out / "plan.json"), "from the prompt")
    write_session("session.json", session)
    generate_script.main([*CHAIN, "session=session.json", "out=restored"])
    (restored,) = Path("restored").iterdir()
    assert (restored / "video.mp4").read_bytes() == (out / "video.mp4").read_bytes()


def test_another_prompt_later_changes_the_video_from_there_on(pipeline: Pipeline) -> None:
    (plan,) = pipeline.plan([PROMPT], [1], num_people=1, num_keys=12)
    dense = pipeline.dense(plan)
    told: list[list[str]] = []
    encode = pipeline.renderer.base.encode_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.renderer.base, "encode_text", lambda texts: told.append(list(texts)) or encode(texts))
        dense.later = ((2.0, "A man claps."),)
        steps: list[tuple[int, int]] = []
        pipeline.render([dense], [1], on_step=lambda *step: steps.append(step))
    assert [PROMPT] in told
    assert ["A man claps."] in told
    assert steps == [(1, 2), (2, 2)]


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
    if stage == "llm":
        _the_next_token_is_scored_by_kind(report)


def _the_next_token_is_scored_by_kind(report: Report) -> None:
    table = next(table for table in report.tables if table.title == "next token")
    rows = {row.name: row.values for row in table.rows}
    assert set(rows) == {"mark", "duration", "box", *(f"depth{q}" for q in range(4))}
    assert rows["box"]["of guessing"] == 256
    assert rows["depth0"]["perplexity"] == pytest.approx(np.exp(rows["depth0"]["cross-entropy"]))


def test_the_chain_is_scored_and_a_report_is_used_again() -> None:
    arguments = [*CHAIN, "data.path=data", "clips=2", "videos=1", "split=test"]
    eval_script.main(arguments)
    path = Path("runs/chain/tiny/eval/test.json")
    report = read_report(path)
    tables = {table.title: {row.name: row for row in table.rows} for table in report.tables}
    assert tuple(tables["chain"]) == ROWS
    assert tables["chain"][PLAN].values["valid"] == 1.0
    assert tables["chain"][REAL].values["box IoU"] == 1.0
    assert tables["kinematics"][INTERPOLATED].values["at keys"] == pytest.approx(0, abs=1e-3)
    assert tables["kinematics"][PCHIP].values["PCK"] > 0.5
    assert tables["text and motion"][OURS].values["FID"] is None  # of two clips
    assert tables["videos of generated scenes"]["ours"].values["videos"] == 1
    page = path.with_suffix(".html").read_text()
    assert page.count("<video") == 1
    assert page.count("data:image/png") >= 2 * 4
    first = path.stat().st_mtime_ns
    eval_script.main([*arguments, "reuse=true"])
    assert path.stat().st_mtime_ns == first
    eval_script.main([*arguments, "reuse=true", "seed=1"])
    assert path.stat().st_mtime_ns > first


def test_without_videos_no_renderer_is_needed() -> None:
    few = ["clips=1", "videos=0", "repeats=0", "ablations=false", "page=false", "out=unseen"]
    eval_script.main([*CHAIN, "data.path=data", *few, "pipeline.exports.controlnet=nowhere"])
    titles = [table.title for table in read_report("unseen/test.json").tables]
    assert titles[:3] == ["chain", "text and motion", "kinematics"]
    assert "videos of generated scenes" not in titles


def test_rivals_and_the_claim_are_further_rows() -> None:
    for kind in ("diffusion", "autoregressive"):
        config = [str(ROOT / f"configs/rivals/{kind}-smoke.yaml")]
        train_script.train(load_config(config, [*COMMON, *STEPS, f"name=tiny-{kind}", "model.network.text.width=16"]))
    rivals = "rivals=[runs/rivals/tiny-diffusion/export,runs/rivals/tiny-autoregressive/export]"
    out = "out=runs/chain/tiny/rivals"
    few = ["clips=2", "videos=1", "claim=1", "repeats=1", "ablations=false"]
    eval_script.main([*CHAIN, "data.path=data", *few, rivals, out])
    report = read_report("runs/chain/tiny/rivals/test.json")
    tables = {table.title: {row.name: row.values for row in table.rows} for table in report.tables}
    assert set(tables["chain"]) == {*ROWS, "rival: diffusion", "rival: autoregressive"} - set(ABLATIONS)
    assert tables["text and motion"]["rival: diffusion"]["Multimodality"] > 0
    assert tables["text and motion"]["real"]["Multimodality"] is None
    claim = tables["the renderer with and without the director"]
    assert {name: values["captions"] for name, values in claim.items()} == dict.fromkeys(CLAIM_ROWS, 1)
    assert report.inputs["rival 0"].startswith("runs/rivals/tiny-diffusion/export sha256:")
    assert Path("runs/chain/tiny/rivals/test-votes.html").read_text().count("<video") == 2
    eval_script.main([*config, *COMMON, SETTINGS, "name=tiny-autoregressive", "clips=2", "out=alone"])
    alone = {row.name: row.values for row in read_report("alone/test.json").tables[0].rows}
    assert alone["rival: autoregressive"] == pytest.approx(tables["chain"]["rival: autoregressive"], abs=1e-6)
    with pytest.raises(UserError, match="fvd=none.pt: no such file"):
        eval_script.main([*CHAIN, "data.path=data", "clips=2", "fvd=none.pt"])


def test_two_processes_score_like_one() -> None:
    """By the command itself; the second of them has no clip at all."""
    config = str(ROOT / "configs/evaluator/smoke.yaml")
    command = [sys.executable, str(ROOT / "eval.py"), config, *COMMON, SETTINGS, "split=test", "page=false"]
    _score([*command, "out=one"])
    _score([*command, "out=two", "ranks=2"])
    reports = [read_report(f"{run}/test.json") for run in ("one", "two")]
    for first, second in zip(reports[0].tables, reports[1].tables, strict=True):
        assert first.notes == second.notes
        for row, twin in zip(first.rows, second.rows, strict=True):
            assert row.values == pytest.approx(twin.values, abs=1e-6)
            assert row.intervals.keys() == twin.intervals.keys()


def _score(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| text-motion matching") == 1  # the first process alone prints


def test_stages_that_one_process_scores_say_so() -> None:
    config = str(ROOT / "configs/vqvae/smoke.yaml")
    with pytest.raises(UserError, match="stage vqvae is scored by one process; ranks is for chain, llm, evaluator"):
        eval_script.main([config, *COMMON, SETTINGS, "split=test", "ranks=2"])


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
