"""A run that is told to stop, wherever it is, goes on to the same bits; bad batches stay out of the weights."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

import train as script
from callbacks.checkpoints import CheckpointError, Checkpoints, find_checkpoints, newest_readable
from callbacks.guard import BadStepsError, Guard
from callbacks.requeue import Requeue, RunStopped
from configs.schema import RunConfig
from datamodules.streams import make_loader
from datamodules.synthetic.build import SyntheticConfig, build
from modules import strategy
from modules.evaluator.module import EvaluatorModule
from modules.vqvae.quantizer import ResidualQuantizer
from tests.tiny import newest_checkpoint as newest
from tests.tiny import short_run

# A validation of 2 batches every 3 steps.
RARE = ("trainer.val_every=3", "trainer.sample_every=0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    build(SyntheticConfig(out=str(out), train=16, val=8, test=0, shard_size=8, workers=1), progress=False)
    return out


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def make(*items: str) -> RunConfig:
        return short_run(shards, tmp_path / "runs", *RARE, *items)

    return make


@pytest.fixture(scope="module")
def unbroken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    runs = tmp_path_factory.mktemp("unbroken")
    script.train(short_run(shards, runs, *RARE))
    return runs / "evaluator/smoke"


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def call_at(monkeypatch: pytest.MonkeyPatch, method: str, number: int, action: Callable[[Any], Any]) -> None:
    """Calls `action(batch)` at the start of one call of a method of the module."""
    original = getattr(EvaluatorModule, method)
    calls = 0

    def patched(self: EvaluatorModule, batch: Any, batch_idx: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action(batch)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(EvaluatorModule, method, patched)


def kill(number: int) -> Callable[[Any], None]:
    return lambda batch: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("method", "number", "sent", "saved"),
    [
        ("training_step", 1, signal.SIGUSR1, 1),  # amid accumulation: the step is completed
        ("training_step", 4, signal.SIGTERM, 2),  # the end of an epoch
        ("training_step", 6, signal.SIGUSR1, 3),  # a validation follows
        ("validation_step", 1, signal.SIGTERM, 3),
        ("validation_step", 2, signal.SIGUSR1, 3),
        ("training_step", 9, signal.SIGTERM, 5),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_signal_loses_no_step_and_changes_no_bit(
    config: Callable[..., RunConfig], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    method: str, number: int, sent: int, saved: int,
) -> None:  # fmt: skip
    handlers = [signal.getsignal(value) for value in (signal.SIGUSR1, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        call_at(patch, method, number, kill(sent))
        with pytest.raises(RunStopped, match=f"stopped by SIG.* step {saved} of 6"):
            script.train(config())
    assert handlers == [signal.getsignal(value) for value in (signal.SIGUSR1, signal.SIGTERM)]
    folder = tmp_path / "runs/evaluator/smoke"
    assert newest(folder)["global_step"] == saved
    metrics, _ = script.train(config())
    whole, parts = newest(unbroken), newest(folder)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_states"):
        assert same(whole[key], parts[key]), key
    assert same(whole["callbacks"]["EMA"], parts["callbacks"]["EMA"])
    assert (folder / "history.jsonl").read_text() == (unbroken / "history.jsonl").read_text()
    exports = [path / "export/model.safetensors" for path in (folder, unbroken)]
    assert exports[0].read_bytes() == exports[1].read_bytes()


def test_a_signal_at_the_start_and_in_the_last_validation(
    config: Callable[..., RunConfig], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(EvaluatorModule, "on_fit_start", lambda self: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(RunStopped, match="at step 0 of 6; the same command goes on"):
            script.train(config())
    with monkeypatch.context() as patch:
        call_at(patch, "validation_step", 3, kill(signal.SIGTERM))
        script.train(config())  # all is done: it ends as it would have
    assert same(newest(unbroken)["state_dict"], newest(tmp_path / "runs/evaluator/smoke")["state_dict"])


def test_other_processes_do_not_note_signals(tmp_path: Path) -> None:
    requeue = Requeue(Checkpoints(tmp_path, ("val/loss", "min")))
    child = os.fork()
    if child == 0:
        requeue._note(signal.SIGUSR1, None)
        os._exit(0 if requeue.received is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    requeue._note(signal.SIGUSR1, None)
    assert requeue.received == "SIGUSR1"


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        yield from itertools.count()


def test_readers_end_with_their_parent_alone() -> None:
    iterator = iter(make_loader(Endless(), num_workers=1))  # type: ignore[arg-type]
    assert next(iterator) == 0
    (reader,) = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", str(reader.pid)], check=True)
    assert list(itertools.islice(iterator, 10)) == list(range(1, 11))
    assert reader.is_alive()
    reader.terminate()
    reader.join(30)
    assert reader.exitcode == 0


def test_a_requeued_job_does_not_start_afresh(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        call_at(patch, "training_step", 4, kill(signal.SIGTERM))
        with pytest.raises(RunStopped):
            script.train(config("fresh=true"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    call_at(monkeypatch, "training_step", 9, lambda batch: pytest.fail("it trained more than what was left"))
    assert script.train(config("fresh=true"))[0]["steps"] == 6


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if how == "truncated" else b"" if how == "empty" else data)


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_put_aside(
    config: Callable[..., RunConfig], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, how: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        call_at(patch, "training_step", 9, kill(signal.SIGTERM))
        with pytest.raises(RunStopped):
            script.train(config())
    folder = tmp_path / "runs/evaluator/smoke"
    damage(folder / "checkpoints/step-00000005.ckpt", how)
    half = folder / "checkpoints/.new-step-00000004.ckpt"
    half.write_bytes(b"half of it")  # as if it had been killed while it wrote that
    _, objects = script.train(config())
    assert "step-00000005.ckpt is damaged" in caplog.text
    assert (folder / "checkpoints/damaged-step-00000005.ckpt").exists()
    assert not half.exists()
    assert same(newest(unbroken)["state_dict"], newest(folder)["state_dict"])
    for path in find_checkpoints(folder / "checkpoints"):
        damage(path, how)
    with pytest.raises(CheckpointError, match="none of the checkpoints in .* can be read"):
        newest_readable(folder / "checkpoints")


def test_checkpoints_that_are_kept(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    script.train(config("trainer.save_every=1", "trainer.keep_checkpoints=2"))
    folder = tmp_path / "runs/evaluator/smoke"
    best = json.loads((folder / "metrics.json").read_text())["best_step"]
    steps = {int(path.stem[5:]) for path in (folder / "checkpoints").iterdir()}
    assert steps == {5, 6, best, 3}  # 3 was the best when 5 was saved


def test_saving_in_the_background_saves_the_same(
    config: Callable[..., RunConfig], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is slow: the next save waits for it, and a stop and the end do, too."""
    write, busy = strategy._write, []

    def slowly(checkpoint: dict[str, Any], path: Any) -> None:
        busy.append(path)
        assert len(busy) == 1
        time.sleep(0.1)
        write(checkpoint, path)
        busy.remove(path)

    monkeypatch.setattr(strategy, "_write", slowly)
    background = config("trainer.background_save=true", "trainer.save_every=1")
    folder = tmp_path / "runs/evaluator/smoke"
    with monkeypatch.context() as patch:
        call_at(patch, "training_step", 9, kill(signal.SIGTERM))
        with pytest.raises(RunStopped):
            script.train(background)
    assert newest(folder)["global_step"] == 5
    script.train(background)
    assert find_checkpoints(folder / "checkpoints")[0].name == "step-00000006.ckpt"
    assert not list((folder / "checkpoints").glob(".new-*"))
    for key in ("state_dict", "optimizer_states", "random_states"):
        assert same(newest(unbroken)[key], newest(folder)[key]), key


@pytest.mark.parametrize("background", ["false", "true"])
def test_a_full_disk_leaves_the_older_checkpoints(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: str
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    folder = tmp_path / "runs/evaluator/smoke/checkpoints"

    def fill(batch: Any) -> None:  # no file may grow larger than that: the system says so as it does of a full disk
        while not (folder / "step-00000003.ckpt").exists():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))

    call_at(monkeypatch, "training_step", 7, fill)
    try:
        with pytest.raises(CheckpointError, match=r"written \(File too large\); the checkpoints before it are intact"):
            script.train(config(f"trainer.background_save={background}"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in folder.iterdir()] == ["step-00000003.ckpt"]
    assert newest_readable(folder) == folder / "step-00000003.ckpt"


def poison(batch: Any) -> None:
    batch["poses"].fill_(float("nan"))


def test_a_bad_step_changes_nothing_and_is_counted(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states = []
    end = Guard.on_train_batch_end

    def note(self: Guard, trainer: Any, module: Any, *rest: Any) -> None:
        optimizer = trainer.optimizers[0].state_dict()["state"]
        states.append([value.clone() for value in module.state_dict().values()]
                      + [value.clone() for entry in optimizer.values() for value in entry.values()])  # fmt: skip
        end(self, trainer, module, *rest)

    monkeypatch.setattr(Guard, "on_train_batch_end", note)
    call_at(monkeypatch, "training_step", 6, poison)
    metrics, objects = script.train(config())
    assert metrics["skipped_steps"] == 1
    assert same(states[5], states[3])  # step 3 did nothing
    assert not same(states[7], states[5])
    assert "step 3 is skipped: the loss is nan; samples: " in caplog.text


def test_many_bad_steps_end_the_run_and_name_the_samples(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = EvaluatorModule.training_step
    seen: list[str] = []

    def step(self: EvaluatorModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step >= 3:
            poison(batch)
            seen.extend(batch["sample_keys"])
        return original(self, batch, batch_idx)

    monkeypatch.setattr(EvaluatorModule, "training_step", step)
    with pytest.raises(BadStepsError, match="2 steps in a row were skipped, the loss is nan at step 5") as caught:
        script.train(config("trainer.max_skipped=2"))
    assert all(key in str(caught.value) for key in seen)
    saved = newest(tmp_path / "runs/evaluator/smoke")
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values() if value.is_floating_point())


def test_spikes_are_measured_against_the_steps_before() -> None:
    guard = Guard(spike_sigma=6.0)
    values = torch.randn(128, generator=torch.Generator().manual_seed(0)) + 10
    for value in values.tolist():
        assert guard._problem(value, value) is None
        guard._losses.append(value)
        guard._norms.append(1.0 + value)
    high = (values.mean() + 6.5 * values.std(correction=0)).item()
    assert guard._problem(high - 1, 11.0) is None
    assert "the loss is" in (guard._problem(high, 11.0) or "")
    assert "the gradient norm is" in (guard._problem(10.0, high + 1) or "")
    assert Guard()._problem(1e9, 1e9) is None


def test_latents_that_are_not_finite_stay_out_of_the_codebooks() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(num_quantizers=2, codebook_size=4, dim=3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    quantizer(torch.randn(2, 5, 3), mask)
    before = {name: value.clone() for name, value in quantizer.named_buffers() if name != "steps"}
    quantizer(torch.full((2, 5, 3), float("nan")), mask)
    assert all(torch.equal(value, dict(quantizer.named_buffers())[name]) for name, value in before.items())


def test_deterministic_runs_are_the_same_bits(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    try:
        for name in ("a", "b"):
            script.train(config(f"name={name}", "trainer.deterministic=true"))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    root = tmp_path / "runs/evaluator"
    assert same(newest(root / "a")["state_dict"], newest(root / "b")["state_dict"])
