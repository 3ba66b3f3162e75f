"""What eval.py and demo.py understand of their command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

import demo
import eval as eval_script
from configs.chain_schema import ChainConfig
from configs.eval_schema import split_options
from configs.loader import load_typed
from modules.checkpoint import save_export
from modules.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/chain").glob("*.yaml")), ids=lambda path: path.name)
def test_every_chain_config_loads(path: Path) -> None:
    cfg = load_typed(ChainConfig, [str(path)], ["name=mine"])
    assert cfg.pipeline.exports.llm == "runs/llm/mine/export"


def test_options_are_told_from_keys_of_the_config() -> None:
    options, rest = split_options(["split=val", "data.path=x", "clips=5", "seed=3"])
    assert (options.split, options.clips, rest) == ("val", 5, ["data.path=x", "seed=3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no config file is named"),
        (["configs/vqvae/demo.yaml", "name=nowhere"], "runs/vqvae/nowhere/export is not a vqvae export"),
        (["configs/chain/demo.yaml", "name=nowhere"], "is not a vqvae export"),
        (["configs/chain/demo.yaml", "export=x"], "names one stage's export"),
        (["configs/vqvae/demo.yaml", "splitt=val"], "splitt is unknown"),
        (["configs/vqvae/demo.yaml", "clips=0"], "clips is 0"),
    ],
)
def test_messages(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        eval_script.main(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_export_of_the_wrong_stage_and_a_split_without_shards(tmp_path: Path) -> None:
    save_export(tmp_path / "export", stage="interp", config={}, state=None, info={})
    with pytest.raises(UserError, match="is an export of stage 'interp', but one of stage 'vqvae' is needed"):
        eval_script.main(["configs/vqvae/demo.yaml", f"export={tmp_path / 'export'}"])


def test_the_jobs_of_the_demo_wait_for_what_they_read() -> None:
    jobs = {job.name: job for job in demo.make_jobs(demo.DemoConfig(size="smoke", name="mine"), "data/x")}
    assert jobs["train llm"].after == ("train vqvae",)
    assert set(jobs["eval chain"].after) == {"train llm", "train interp", "train controlnet", "train evaluator"}
    for job in jobs.values():
        assert set(job.after) <= set(jobs)
        assert {"name=mine", "data.path=data/x"} <= set(job.command)
        assert Path(job.command[1]).is_file()
        assert Path(job.command[2]).is_file()


def test_the_demo_refuses_other_sizes() -> None:
    with pytest.raises(UserError, match="size is 'paper'; allowed: demo, smoke"):
        demo.main(["size=paper"])
    with pytest.raises(UserError, match="'smoke' is not key=value"):
        demo.main(["smoke"])
