"""ZeRO-3 on two ranks, on CPUs: the same code as on GPUs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from callbacks.checkpoints import find_checkpoints
from callbacks.requeue import EXIT_STATUS
from modules.strategy import read_checkpoint
from modules.zero import UNIVERSAL
from tests.zero.conftest import ZERO, Director, Result

ACCUMULATE = "trainer.accumulate=2"


def test_two_ranks_train_as_one_process_does(director: Director, unbroken: Callable[..., Result]) -> None:
    """Loading without a full copy, accumulation, clipping, weight decay, chunks of the head, packed rows."""
    plain, zero = unbroken(ACCUMULATE), unbroken(*ZERO, ACCUMULATE)
    assert len(plain.noted["losses"]) == len(zero.noted["losses"]) == 40
    assert plain.noted["start"].keys() == zero.noted["start"].keys()
    for name, value in plain.noted["start"].items():
        assert torch.equal(value, zero.noted["start"][name]), name
    loaded = load_file(director.path / "llama/model.safetensors")
    text = len(loaded["lm_head.weight"])
    for name, value in zero.noted["start"].items():
        before = loaded[name.removeprefix("network.")]
        if name.endswith(("lm_head.weight", "embed_tokens.weight")):
            assert torch.equal(value[:text], before)
            assert torch.equal(value[text:], before.mean(0).expand_as(value[text:]))
        else:
            assert torch.equal(value, before)
    assert max(zero.noted["norms"]) > 0.5  # there was something to clip
    difference = torch.tensor(plain.noted["losses"]) - torch.tensor(zero.noted["losses"])
    print("largest difference of losses:", difference.abs().max().item())
    assert difference.abs().max() < 1e-5


def tensors(run: Result, step: int) -> dict[str, torch.Tensor]:
    """Weights and optimiser state of all ranks in the checkpoint of a step, by file and place."""
    found = {}
    for path in sorted((run.checkpoints / f"step-{step:08d}.ckpt/checkpoint").glob("*_states.pt")):
        stack = [("", torch.load(path, weights_only=False))]
        while stack:
            place, value = stack.pop()
            if isinstance(value, torch.Tensor):
                found[f"{path.name}{place}"] = value
            elif isinstance(value, dict | list | tuple):
                entries = value.items() if isinstance(value, dict) else enumerate(value)
                stack += [(f"{place}/{key}", entry) for key, entry in entries if "callbacks" not in str(key)]
    return found


def assert_same_end(run: Result, wanted: Result) -> None:
    """Weights, optimiser state, random numbers, scores and export, bit by bit."""
    found, expected = tensors(run, 20), tensors(wanted, 20)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert (run.folder / "history.jsonl").read_bytes() == (wanted.folder / "history.jsonl").read_bytes()
    exports = [folder / "export/model.safetensors" for folder in (run.folder, wanted.folder)]
    assert exports[0].read_bytes() == exports[1].read_bytes()


@pytest.mark.zero
def test_a_rank_is_killed_and_the_run_goes_on_to_the_same_bits(
    director: Director, unbroken: Callable[..., Result]
) -> None:
    settings = (*ZERO, ACCUMULATE, "trainer.save_every=3")
    broken = director.train("killed", *settings, job={"kill": [1, 27]})
    assert broken.status != 0
    assert sorted(path.name for path in broken.checkpoints.iterdir()) == ["step-00000010.ckpt", "step-00000012.ckpt"]
    again = director.train("killed", *settings)
    assert "goes on from runs/llm/killed/checkpoints/step-00000012.ckpt on 2 ranks" in again.said
    assert len(again.noted["losses"]) == 16
    assert_same_end(again, unbroken(*ZERO, ACCUMULATE))


@pytest.mark.zero
def test_a_signal_stops_it_and_it_goes_on_to_the_same_bits(
    director: Director, unbroken: Callable[..., Result]
) -> None:
    stopped = director.train("stopped", *ZERO, ACCUMULATE, job={"signal": [1, 14]})
    assert stopped.status == EXIT_STATUS, stopped.said
    assert "stopped by a signal to another rank at step 8 of 20" in stopped.said
    again = director.train("stopped", *ZERO, ACCUMULATE)
    assert "goes on from runs/llm/stopped/checkpoints/step-00000008.ckpt on 2 ranks" in again.said
    assert_same_end(again, unbroken(*ZERO, ACCUMULATE))


@pytest.mark.zero
def test_damaged_checkpoints_are_put_aside(director: Director, unbroken: Callable[..., Result]) -> None:
    """A shard cut short, one with a wrong bit, and one that was being written."""
    settings = (*ZERO, ACCUMULATE, "trainer.save_every=2", "trainer.keep_checkpoints=3")
    assert director.train("damaged", *settings, job={"kill": [0, 37]}).status != 0
    folder = director.path / "runs/llm/damaged/checkpoints"
    assert [path.name for path in find_checkpoints(folder)][:3] == [f"step-000000{step}.ckpt" for step in (18, 16, 14)]
    shards = [sorted(folder.glob(f"step-000000{step}.ckpt/checkpoint/*_optim_states.pt")) for step in (18, 16)]
    shards[0][1].write_bytes(shards[0][1].read_bytes()[:-1000])
    data = bytearray(shards[1][0].read_bytes())
    data[len(data) // 2] ^= 1
    shards[1][0].write_bytes(data)
    shutil.copytree(folder / "step-00000014.ckpt/checkpoint", folder / ".new-step-00000019.ckpt/checkpoint")
    again = director.train("damaged", *settings)
    assert "step-00000018.ckpt is damaged (checkpoint/" in again.said
    assert "step-00000016.ckpt is damaged (wrong checksum of checkpoint/" in again.said
    assert "goes on from runs/llm/damaged/checkpoints/step-00000014.ckpt" in again.said
    assert not list(folder.glob(".new-*"))
    assert_same_end(again, unbroken(*ZERO, ACCUMULATE))


@pytest.mark.zero
@pytest.mark.parametrize("ranks", [(2, 1), (1, 2)], ids="{0[0]} to {0[1]}".format)
def test_it_goes_on_with_another_number_of_ranks(
    director: Director, unbroken: Callable[..., Result], ranks: tuple[int, int]
) -> None:
    name = f"from{ranks[0]}"
    before, after = ([*ZERO, ACCUMULATE, f"trainer.devices={n}", f"data.batch_size={4 // n}"] for n in ranks)
    assert director.train(name, *before, job={"kill": [0, 20]}).status != 0
    again = director.train(name, *after)
    assert again.status == 0, again.said
    assert "goes on from" in again.said
    assert len(again.noted["losses"]) == 20
    assert not list(again.checkpoints.glob(f"{UNIVERSAL}*"))
    difference = torch.tensor(again.noted["losses"]) - torch.tensor(unbroken(ACCUMULATE).noted["losses"][20:])
    print("largest difference of losses:", difference.abs().max().item())
    assert difference.abs().max() < 1e-5
    refused = director.train(name, *after, "data.batch_size=8")
    assert refused.status == 2
    assert "was started with other settings" in refused.said


@pytest.mark.zero
def test_weights_that_go_on_are_those_of_the_checkpoint_and_of_the_export(director: Director) -> None:
    assert director.train("goes-on", *ZERO, job={"kill": [0, 15]}).status != 0
    saved = read_checkpoint(director.path / "runs/llm/goes-on/checkpoints/step-00000010.ckpt")
    again = director.train("goes-on", *ZERO)
    for name, value in again.noted["start"].items():
        assert torch.equal(value, saved["state_dict"][name]), name
    network = AutoModelForCausalLM.from_pretrained(again.folder / "export")
    best = json.loads((again.folder / "metrics.json").read_text())["best_step"]
    exported = read_checkpoint(again.checkpoints / f"step-{best:08d}.ckpt")["state_dict"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, exported[f"network.{name}"]), name


@pytest.mark.zero
def test_a_loss_that_is_nan_on_one_rank_changes_no_weight(director: Director, unbroken: Callable[..., Result]) -> None:
    run = director.train("poisoned", *ZERO, ACCUMULATE, job={"poison": [1, 8]})
    assert run.status == 0, run.said
    assert "step 5 is skipped: the loss or its gradient is not finite; samples: " in run.said
    assert json.loads((run.folder / "metrics.json").read_text())["skipped_steps"] == 1
    losses, wanted = run.noted["losses"], unbroken(*ZERO, ACCUMULATE).noted["losses"]
    assert losses[:10] == wanted[:10]
    assert losses[10:] != wanted[10:]
    assert all(math.isfinite(loss) for loss in losses)
    assert abs(losses[-1] - wanted[-1]) < 0.3


@pytest.mark.zero
def test_nan_on_one_of_two_ranks_without_deepspeed(director: Director) -> None:
    run = director.train(
        "nan", "trainer.devices=2", "data.batch_size=2", "trainer.max_steps=4", job={"poison": [1, 2]}
    )
    assert run.status == 0, run.said
    assert "step 3 is skipped: the loss is nan; samples: " in run.said
    assert run.noted["steps"][-1] == [4, 1] or run.noted["steps"][-1] == (4, 1)


@pytest.mark.zero
def test_random_weights_are_those_of_transformers(director: Director) -> None:
    """Under ZeRO-3 they are drawn piece by piece; 16-bit weights, gradient checkpoints and offloading beside it."""
    run = director.train(
        "random", *ZERO, "model.pretrained=null", "model.tokenizer=llama", "model.embedding_init=codebook",
        "trainer.precision=bf16-mixed", "model.gradient_checkpointing=true", "trainer.offload=true",
        "model.architecture.hidden_size=32", "trainer.max_steps=10", "model.architecture.initializer_range=0.05",
    )  # fmt: skip
    assert run.status == 0, run.said
    start = run.noted["start"]
    assert torch.equal(start["network.model.norm.weight"], torch.ones(32))
    head = start["network.lm_head.weight"]
    assert abs(head[:300].std().item() - 0.05) < 0.005
    assert abs(head[-24:].std().item() - 0.05) < 0.01  # the pose tokens, by the codebooks
    losses = run.noted["losses"]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5


@pytest.mark.zero
def test_a_depth_head_trains_as_in_one_process(director: Director) -> None:
    """Its weights are shared out, too; the export is that of the last weights."""
    settings = ("model.depth_head.num_layers=1", "model.depth_head.width=16", "trainer.max_steps=10")
    plain, zero = director.train("plain-depth", *settings), director.train("zero-depth", *ZERO, *settings)
    assert (plain.status, zero.status) == (0, 0), plain.said + zero.said
    for name, value in plain.noted["start"].items():
        assert torch.equal(value, zero.noted["start"][name]), name
    difference = torch.tensor(plain.noted["losses"]) - torch.tensor(zero.noted["losses"])
    assert difference.abs().max() < 1e-5
    heads = [load_file(run.folder / "export/depth_head.safetensors") for run in (plain, zero)]
    for name, value in heads[0].items():
        torch.testing.assert_close(value, heads[1][name], rtol=1e-3, atol=1e-5)
