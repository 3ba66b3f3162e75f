"""Cost of training each stage: python scripts/bench.py [size=demo] [data=data/sample] [steps=20] [stages=[vqvae,llm]]

Trains a few steps of every stage, one after another, as runs named `bench`, and prints a table; then the time in which
the pose tokenizer that came out encodes and decodes full clips (20 keys).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from modules.errors import UserError  # noqa: E402


@dataclass
class BenchConfig:
    size: str = "demo"
    data: str = "data/sample"
    steps: int = 20
    stages: list[str] = field(default_factory=lambda: ["vqvae", "llm", "interp", "controlnet", "evaluator", "base"])


def main(arguments: list[str]) -> None:
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(BenchConfig, [], items)
    rows = [measure(stage, cfg) for stage in cfg.stages]
    print(f"\n{'stage':<12}{'s/step':>10}{'memory, MiB':>14}{'GPU, MiB':>12}")
    for row in rows:
        gpu = row.get("peak_gpu_memory_mb", "-")
        print(f"{row['stage']:<12}{row['seconds_per_step']:>10.4f}{row['peak_memory_mb']:>14}{gpu:>12}")
    if "vqvae" in cfg.stages:
        print("\n".join(["", *tokenizer_speed(ROOT / "runs/vqvae/bench/export")]))


def measure(stage: str, cfg: BenchConfig) -> dict:
    """Train a stage in a process of its own, so that its memory is its own."""
    command = [
        sys.executable, "train.py", f"configs/{stage}/{cfg.size}.yaml", "name=bench", "fresh=true",
        f"data.path={cfg.data}", f"trainer.max_steps={cfg.steps}", f"trainer.val_every={cfg.steps}",
        "trainer.limit_val_batches=1", "trainer.sample_every=0", f"trainer.log_every={max(cfg.steps // 2, 1)}",
    ]  # fmt: skip
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f"stage {stage} did not run; leave it out with stages=[...], or mend what it says above")
    return json.loads((ROOT / f"runs/{stage}/bench/metrics.json").read_text())


def tokenizer_speed(export: Path, repeats: int = 30) -> list[str]:
    """Milliseconds a clip of 20 keys that encoding and decoding take, alone and in a batch."""
    import torch

    from modules.vqvae.network import PoseTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = PoseTokenizer.from_pretrained(export).to(device)
    lines = [f"{'tokenizer':<12}{'encode, ms':>12}{'decode, ms':>12}   a clip, {device}"]

    def milliseconds(call: Callable[[], object], batch: int) -> float:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return 1000 * sorted(times)[repeats // 2] / batch

    with torch.inference_mode():
        for batch in (1, 64):
            poses = torch.rand(batch, 20, 18, 2, device=device)
            visibility = torch.ones(batch, 20, 18, dtype=torch.bool, device=device)
            codes = tokenizer.encode(poses, visibility)
            encode = milliseconds(lambda p=poses, v=visibility: tokenizer.encode(p, v), batch)
            decode = milliseconds(lambda c=codes: tokenizer.decode(c), batch)
            lines.append(f"batch {batch:<6}{encode:>12.3f}{decode:>12.3f}")
    return lines


if __name__ == "__main__":
    run_script(main, __doc__)
