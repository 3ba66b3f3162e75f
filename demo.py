"""The whole chain from nothing: sample data, training of all stages, scores, a video from a prompt.

  python demo.py [size=demo|smoke] [name=SIZE] [data=FOLDER] [prompt="..."]

  size=demo      smoke: the same in a few steps, to see that everything runs
  name=          name of the runs: runs/<stage>/<name>
  data=          folder of shards; empty: sample data, made first
  prompt=        what to generate at the end

Programs run side by side, one for each half of the cores. What is there is used again: a second run is quick, an
interrupted one goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from configs.cli import run_script, split_arguments
from configs.loader import load_typed
from modules.errors import UserError
from modules.evaluation.summary import summarise
from modules.jobs import Job, JobRunner, clock
from modules.outputs import slug
from modules.reports import Column, Table, read_report

# In the order in which a free core takes them; the longest path, vqvae -> llm -> chain, goes first.
STAGES = {"vqvae": (), "controlnet": (), "llm": ("vqvae",), "evaluator": (), "interp": ()}
EVALUATIONS = {
    "chain": ("train llm", "train interp", "train controlnet", "train evaluator"),
    "controlnet": ("train controlnet",),
    "vqvae": ("train vqvae",),
    "interp": ("train interp",),
    "evaluator": ("train evaluator",),
}
# Data and evaluation of each size.
SAMPLE_DATA = {
    "demo": ("data/sample", []),
    "smoke": ("data/smoke", ["train=48", "val=8", "test=8", "shard_size=16"]),
}
EVALUATION = {"demo": ["videos=64"], "smoke": ["clips=6", "videos=2"]}
CHAIN_VIDEOS = {"demo": ["videos=8", "repeats=0", "ablations=false"], "smoke": ["clips=6", "videos=2", "repeats=1"]}
PROMPT = (
    "Two people in front of a white wall for 5 seconds seen from the front: on the left a woman in a red shirt and "
    "blue trousers waves her right hand, on the right a man in a green shirt and black trousers does squats."
)


@dataclass
class DemoConfig:
    """What `demo.py` is told."""

    size: str = "demo"
    name: str = ""
    data: str = ""
    prompt: str = PROMPT

    def __post_init__(self) -> None:
        if self.size not in SAMPLE_DATA:
            raise UserError(
                f"size is {self.size!r}; allowed: {', '.join(SAMPLE_DATA)} (larger ones are trained stage by stage)"
            )
        self.name = self.name or self.size


def demo(cfg: DemoConfig) -> None:
    """Make what is missing and show all of it."""
    # Like Ctrl-C: the programs that it started are stopped, and nothing is lost.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    cores = os.cpu_count() or 1
    workers = min(2, cores)
    runner = JobRunner(workers=workers, threads=max(1, cores // workers))
    data = cfg.data or SAMPLE_DATA[cfg.size][0]
    seconds = {}
    if not cfg.data:
        seconds["sample data"] = call(
            "sample data", ["prepare.py", "synthetic", f"out={data}", *SAMPLE_DATA[cfg.size][1]]
        )
    print(f"training and evaluation, {workers} programs at a time; all they print is in runs/logs/")
    jobs = make_jobs(cfg, data)
    runner.run(jobs)
    seconds |= {job.name: job.seconds for job in jobs}
    out = make_video(cfg, seconds)
    show(cfg, seconds, runner.peak_memory, time.monotonic() - started, out)


def make_jobs(cfg: DemoConfig, data: str) -> list[Job]:
    """All trainings and evaluations, those on the longest path first."""

    def job(name: str, script: str, stage: str, after: tuple[str, ...], *items: str) -> Job:
        config = f"configs/{stage}/{cfg.size}.yaml"
        command = [sys.executable, script, config, f"name={cfg.name}", f"data.path={data}", *items]
        return Job(name, command, Path(f"runs/logs/{name.replace(' ', '-')}-{cfg.name}.log"), after)

    trainings = [
        job(f"train {stage}", "train.py", stage, tuple(f"train {other}" for other in after))
        for stage, after in STAGES.items()
    ]
    evaluations = []
    for stage, after in EVALUATIONS.items():
        own = (
            CHAIN_VIDEOS[cfg.size]
            if stage == "chain"
            else [*EVALUATION[cfg.size], f"chain=configs/chain/{cfg.size}.yaml"]
        )
        evaluations.append(job(f"eval {stage}", "eval.py", stage, after, "split=test", "reuse=true", *own))
    return trainings + evaluations


def call(name: str, command: list[str]) -> float:
    """Run a script whose output is shown; gives the seconds it took."""
    started = time.monotonic()
    print(f"{name}:", flush=True)
    code = subprocess.run([sys.executable, *command]).returncode
    if code != 0:
        raise UserError(f"{name} failed with exit status {code}; run it alone with: python {' '.join(command)}")
    return time.monotonic() - started


def make_video(cfg: DemoConfig, seconds: dict[str, float]) -> Path:
    """The video of the prompt, made again where an export or the settings are newer."""
    out = Path("outputs") / f"{slug(cfg.prompt)}-0"
    config = f"configs/chain/{cfg.size}.yaml"
    made_from = [Path(config), *(Path(f"runs/{stage}/{cfg.name}/export/export.json") for stage in STAGES)]
    sheet = out / "sheet.png"
    if not sheet.is_file() or sheet.stat().st_mtime < max(path.stat().st_mtime for path in made_from):
        seconds["a video"] = call("a video", ["generate.py", config, f"name={cfg.name}", f"prompt={cfg.prompt}"])
    return out


def show(cfg: DemoConfig, seconds: dict[str, float], memory: int, total: float, out: Path) -> None:
    """Scores, times, memory, and where things are."""
    reports = {stage: read_report(f"runs/{stage}/{cfg.name}/eval/test.json") for stage in EVALUATIONS}
    scores = summarise(reports)
    times = Table("seconds", [Column("now", "text"), Column("training", "text"), Column("per step", "text")])
    for name, value in seconds.items():
        stage = name.removeprefix("train ")
        metrics = Path(f"runs/{stage}/{cfg.name}/metrics.json")
        if name.startswith("train ") and metrics.is_file():
            trained = json.loads(metrics.read_text())
            times.add(
                name,
                now=f"{value:.0f}",
                training=f"{trained['seconds']:.0f}",
                per_step=f"{trained['seconds_per_step']:.3f}",
            )
        else:
            times.add(name, now=f"{value:.0f}")
    for table in (scores, times):
        print("\n".join(["", *table.lines()]))
    print(f"\n{clock(total)} in all; peak memory {memory / 2**30:.2f} GiB over all processes")
    print(f"video and poses   {out}/ (look at sheet.png, video.mp4)")
    print(f"reports           runs/<stage>/{cfg.name}/eval/test.md")
    print('next              make generate PROMPT="a man in a blue shirt and black trousers kicks with his left leg"')
    print("curves            make tensorboard")


def main(arguments: list[str]) -> None:
    paths, items, _ = split_arguments(arguments)
    if paths:
        raise UserError(f"{paths[0]!r} is not key=value; for example: python demo.py size=smoke")
    prompts = [item.partition("=")[2] for item in items if item.startswith("prompt=")]
    cfg = load_typed(DemoConfig, [], [item for item in items if not item.startswith("prompt=")])
    cfg.prompt = prompts[-1] if prompts else cfg.prompt
    try:
        demo(cfg)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_script(main, __doc__)
