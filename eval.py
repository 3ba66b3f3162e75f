"""Score an export, or the whole chain, on a split: python eval.py CONFIG.yaml [OVERLAY.yaml ...] [key=value ...]

  python eval.py configs/vqvae/demo.yaml                        runs/vqvae/demo/export on the test split
  python eval.py configs/interp/demo.yaml export=runs/interp/first/export split=val data.path=data/mine
  python eval.py configs/chain/demo.yaml name=first             the chain of runs/<stage>/first/export

  split=test       which shards of data.path
  export=          the export; empty: runs/<stage>/<name>/export
  evaluator=       export that judges plans; empty: runs/evaluator/<name>/export; none (llm): plans are not judged
  chain=           config with the sampling settings of director, interpolator and renderer (configs/chain/demo.yaml)
  pictures=0       how many clips' true and found poses are drawn beside the report (vqvae, interp, llm)
  samples=1 details=false   interp: samples a person, and tables of cost, text, spectrum, long motion, bad keys
  details=true paraphrases=FILE   llm: tables of the loss beside bigrams, of text, of the grammar
  clips= videos=64 how many clips of the split (all), how many of them are rendered (chain: 0 needs no renderer)
  ablations=true   chain: rows with each stage replaced by the truth
  claim=0          chain: captions rendered with and without the director, and a page of blind pairs to vote on
  fvd= clip=       chain: weights for FVD (TorchScript) and CLIPScore (folder of transformers)
  estimator=       chain, controlnet: TorchScript that finds the joints of people in frames
  rivals=[]        chain: exports of stage rivals, rows of the same tables;  repeats=8: captions of Multimodality
  ranks=1          processes that score together (chain, llm, evaluator, rivals), with the same figures; or torchrun
  out=             folder of the report; empty: eval/ beside the export
  reuse=false      keep a report of the same export, data and settings

Writes <split>.json, <split>.md and the page <split>.html, logs to TensorBoard, and prints the tables.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.chain_schema import ChainConfig
from configs.cli import run_script, split_arguments
from configs.eval_schema import EvalOptions, split_options
from configs.loader import load_config, load_typed
from configs.schema import DataConfig
from datamodules.fingerprint import data_fingerprint
from datamodules.folds import Folds
from datamodules.webdataset import iter_clips
from modules.checkpoint import fingerprint, load_frozen, read_export
from modules.errors import UserError
from modules.evaluation.page import write_page
from modules.evaluation.ranks import Ranks, joined
from modules.evaluation.tensorboard import log_report
from modules.pipeline import DENSE_STAGES, PLAN_STAGES, RENDER_STAGES, Pipeline
from modules.pose.scene import Clip
from modules.progress import Progress
from modules.reports import Report, Table, read_report, write_report

if TYPE_CHECKING:
    from modules.evaluation.shown import Shown


@dataclass
class Job:
    """All that an evaluation needs."""

    stage: str
    data: DataConfig
    options: EvalOptions
    seed: int
    exports: dict[str, str]  # stage -> folder, of all that the evaluation reads
    chain: ChainConfig  # sampling settings, and the exports by which a pipeline is built

    def clips(self, split: str, *columns: str, limit: int | None = None) -> list[Clip]:
        data = self.data
        found = iter_clips(
            data.path, split, ("pose", *columns), data.num_frames, limit, data.min_confidence,
            train_split=data.train_split, val_split=data.val_split, folds=Folds(data.group, data.folds, data.fold),
        )  # fmt: skip
        return list(found)

    def held_out(self, *columns: str) -> list[Clip]:
        return self.clips(self.options.split, *columns, limit=self.options.clips)

    def pipeline(self) -> Pipeline:
        stages = [stage for stage in self.exports if not stage.startswith("rival ")]
        return Pipeline.from_exports(self.chain.pipeline, stages=stages)


def make_job(paths: list[str], items: list[str]) -> Job:
    """What the command line asks for."""
    options, rest = split_options(items)
    if not paths:
        raise UserError("no config file is named; for example: python eval.py configs/chain/demo.yaml split=test")
    if Path(paths[0]).parent.name == "chain":
        chain = load_typed(ChainConfig, paths, rest)
        if options.export:
            raise UserError("export= names one stage's export; for the chain give pipeline.exports.<stage>=...")
        stage, data, seed, name, run_dir = "chain", chain.data, chain.seed, chain.name, chain.run_dir
    else:
        cfg = load_config(paths, rest)
        # Rivals are named after the chain that they are beside: demo-diffusion, demo-autoregressive.
        beside = cfg.name.removesuffix(f"-{cfg.model.kind}") if cfg.stage == "rivals" else cfg.name
        chain = load_typed(ChainConfig, [options.chain], [f"name={beside}"])
        stage, data, seed, name, run_dir = cfg.stage, cfg.data, cfg.seed, cfg.name, cfg.run_dir
    known = chain.pipeline.exports
    known.evaluator = options.evaluator or known.evaluator
    if stage != "chain":
        export = options.export or f"{run_dir}/{stage}/{name}/export"
        if hasattr(known, stage):
            setattr(known, stage, export)
        if stage == "llm":
            known.vqvae = read_export(export, "llm").config["vqvae"]["path"]
        exports = {stage: export}
        tokenizer = read_export(export, "interp").config["vqvae"] if stage == "interp" and options.details else None
        if tokenizer is not None:
            exports["vqvae"] = known.vqvae = tokenizer
    else:
        exports = {}
    exports |= {f"rival {number}": path for number, path in enumerate(options.rivals)} if stage == "chain" else {}
    judged = ("vqvae", "evaluator") if options.evaluator != "none" else ("vqvae",)
    rendered = RENDER_STAGES if options.videos or options.claim else ()
    chained = (*PLAN_STAGES, *DENSE_STAGES, *rendered, "evaluator")
    also = {"chain": chained, "llm": judged, "rivals": ("evaluator",)}.get(stage, ())
    exports |= {other: getattr(known, other) for other in also}
    home = Path(exports[stage]).parent if stage != "chain" else Path(run_dir) / "chain" / name
    options.out = options.out or str(home / "eval")
    return Job(stage, data, options, seed, exports, chain)


def evaluate(job: Job) -> Report:
    """Score, write the report and give it back; with `reuse`, a report of the same inputs is kept."""
    for stage, path in job.exports.items():
        read_export(path, "rivals" if stage.startswith("rival ") else stage)
    inputs = describe(job)
    path = Path(job.options.out) / f"{job.options.split}.json"
    if job.options.reuse and path.is_file() and (report := read_report(path)).inputs == inputs:
        return report
    started, ranks = time.perf_counter(), Ranks.current()
    clips, tables, *shown = SCORERS[job.stage](job)
    report = Report(job.stage, job.options.split, inputs, clips, tables, time.perf_counter() - started)
    if ranks.first:
        write_report(job.options.out, report)
        log_report(job.options.out, report)
        if job.options.page:
            write_page(job.options.out, report, shown[0] if shown else (), histories(job))
    return report


def histories(job: Job) -> dict[str, Path]:
    """Stage -> the validation scores of the run that made its export, where there are some."""
    found = {stage: Path(path).parent / "history.jsonl" for stage, path in job.exports.items()}
    return {stage: path for stage, path in found.items() if path.is_file()}


def describe(job: Job) -> dict[str, str]:
    """What is scored: a report with the same description would have the same figures."""
    held_aside = job.data.folds and job.options.split == job.data.val_split
    split = job.data.train_split if held_aside else job.options.split
    data = data_fingerprint([(job.data.path, split)])
    settings = {"chain": asdict(job.chain.pipeline), "data": asdict(job.data), "seed": job.seed}
    names = ("clips", "videos", "samples", "details", "pictures", "paraphrases", "repeats", "ablations", "claim")
    settings |= {name: getattr(job.options, name) for name in (*names, "fvd", "clip", "estimator")}
    return {
        **{stage: f"{path} sha256:{fingerprint(path)[:16]}" for stage, path in job.exports.items()},
        "data": f"{job.data.path} sha256:{_digest(data)}",
        "settings": f"sha256:{_digest(settings)}",
    }


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def score_vqvae(job: Job) -> tuple[int, list[Table]]:
    from modules.evaluation.pictures import write_comparisons
    from modules.evaluation.vqvae import evaluate, pairs

    path = job.exports["vqvae"]
    config, network = read_export(path, "vqvae").config, load_frozen(path, "vqvae")
    train, clips = job.clips(job.data.train_split), job.held_out()
    rate: dict[str, Any] = {"stride": config["stride"], "num_keys": config["num_keys"]}
    tables = evaluate(network, train, clips, **rate)  # type: ignore[arg-type]
    chosen = clips[:: max(len(clips) // max(job.options.pictures, 1), 1)][: job.options.pictures]
    folder = Path(job.options.out) / "pictures"
    write_comparisons(folder, pairs(network, chosen, **rate, fps=config["fps"]))  # type: ignore[arg-type]
    return len(clips), tables


def score_llm(job: Job) -> tuple[int, list[Table]]:
    from modules.evaluation.llm import evaluate
    from modules.evaluation.llm_details import details, read_paraphrases
    from modules.evaluation.pictures import write_comparisons, written

    options, pipeline = job.options, job.pipeline()
    train, clips = job.clips(job.data.train_split), job.held_out()
    words = read_paraphrases(options.paraphrases)
    tables = []
    if "evaluator" in job.exports:
        with Progress(Ranks.current().share(len(clips)), "plans") as progress:
            tables = evaluate(pipeline, train, clips, seed=job.seed, progress=progress)
    if options.details:
        sampling: Any = {"sampling": pipeline.token_sampling, "seed": job.seed, "paraphrases": words}
        tables += details(pipeline.director, pipeline.tokenizer, train, clips, **sampling)
    if Ranks.current().first:
        write_comparisons(Path(options.out) / "pictures", written(pipeline, clips, options.pictures, job.seed))
    return len(clips), tables


def score_interp(job: Job) -> tuple[int, list[Table]]:
    from modules.evaluation.interp import STRIDES, compared, evaluate, gather
    from modules.evaluation.interp_details import details
    from modules.evaluation.pictures import write_comparisons

    clips, sampling, options = job.held_out(), job.chain.pipeline.interp, job.options
    trained, pipeline = read_export(job.exports["interp"], "interp").config["strides"], job.pipeline()
    network = pipeline.interpolator
    people = sum(len(clip.scene.persons) for clip in clips)
    with Progress(len(STRIDES) * options.samples * people, "people") as progress:
        more = {"samples": options.samples, "trained": trained, "progress": progress}
        tables = evaluate(network, clips, sampling=sampling, seed=job.seed, **more)
    if options.details:
        coded = ()
        if "vqvae" in job.exports:
            coded = pipeline.tokenizer, read_export(job.exports["vqvae"], "vqvae").config["stride"]
        tables += details(network, functools.partial(gather, clips), sampling, STRIDES, *coded)
    chosen = clips[:: max(len(clips) // max(options.pictures, 1), 1)][: options.pictures]
    for stride in STRIDES if chosen else ():
        write_comparisons(Path(options.out) / "pictures", compared(network, chosen, stride, sampling, job.seed))
    return len(clips), tables


def score_controlnet(job: Job) -> tuple[int, list[Table]]:
    from modules.evaluation.controlnet import evaluate
    from modules.evaluation.foreign import PoseEstimator
    from modules.rendering.pipeline import PoseVideoPipeline

    estimator = PoseEstimator(job.options.estimator) if job.options.estimator else None
    if (count := job.options.videos) < 2:
        raise UserError(f"videos is {count}; stage controlnet renders at least 2")
    clips = job.held_out("video")
    renderer = job.pipeline().renderer
    if not isinstance(renderer, PoseVideoPipeline):
        raise UserError("stage controlnet is scored with pipeline.backend=controlnet")
    with Progress(3 * min(count, len(clips)), "videos") as progress:
        tables = evaluate(
            renderer, clips, count=count, settings=job.chain.pipeline.render, seed=job.seed,
            estimator=estimator, progress=progress,
        )  # fmt: skip
    return min(count, len(clips)), tables


def score_evaluator(job: Job) -> tuple[int, list[Table]]:
    from modules.evaluation.evaluator import evaluate

    train, clips = job.clips(job.data.train_split), job.held_out()
    with Progress(Ranks.current().share(len(clips)), "clips") as progress:
        tables = evaluate(
            job.pipeline().evaluator, train, clips, stride=job.data.stride, seed=job.seed, progress=progress
        )
    return len(clips), tables


def score_rivals(job: Job) -> tuple[int, list[Table]]:
    from modules.evaluation.rivals import evaluate

    train, clips, path = job.clips(job.data.train_split), job.held_out(), job.exports["rivals"]
    name, judge = rival_name(path), load_frozen(job.exports["evaluator"], "evaluator")
    with Progress(Ranks.current().share(len(clips)), "clips") as progress:
        more = {"name": name, "stride": job.data.stride, "seed": job.seed, "progress": progress}
        tables = evaluate(load_frozen(path, "rivals"), judge, train, clips, **more)  # type: ignore[arg-type]
    return len(clips), tables


def rival_name(path: str) -> str:
    """The row of a rival."""
    return f"rival: {read_export(path, 'rivals').config['kind']}"


def score_chain(job: Job) -> tuple[int, list[Table], list[Shown]]:
    from modules.evaluation.chain import Settings, evaluate
    from modules.evaluation.foreign import FrechetVideoDistance, PoseEstimator, VideoFeatures, clip_score

    options = job.options
    fvd = FrechetVideoDistance(VideoFeatures(options.fvd)) if options.fvd else None
    scored = clip_score(options.clip) if options.clip else None
    estimator = PoseEstimator(options.estimator) if options.estimator else None
    columns = ("video",) if fvd is not None or options.claim else ()
    train, clips = job.clips(job.data.train_split), job.held_out(*columns)
    count = min(options.videos, len(clips))
    settings = Settings(count, job.seed, options.repeats, options.ablations, fvd, scored, estimator)
    rivals = {rival_name(path): load_frozen(path, "rivals") for path in options.rivals}
    pipeline = job.pipeline()
    with Progress(Ranks.current().share(len(clips)), "clips") as progress:
        tables, shown = evaluate(pipeline, train, clips, settings, rivals, progress)  # type: ignore[arg-type]
    if options.claim:
        from modules.evaluation.claim import evaluate as evaluate_claim
        from modules.evaluation.votes import write_votes

        with Progress(options.claim, "captions with and without the director") as progress:
            table, pairs = evaluate_claim(
                pipeline, train, clips, count=options.claim, seed=job.seed, progress=progress
            )
        tables.append(table)
        if Ranks.current().first:
            fps = clips[0].scene.fps / pipeline.config.render.frame_stride
            write_votes(options.out, options.split, pairs, fps, job.seed)
    return len(clips), tables, shown


SHARED = ("chain", "llm", "evaluator", "rivals")  # stages that several processes can score together
SCORERS: dict[str, Callable[[Job], tuple[Any, ...]]] = {
    "vqvae": score_vqvae,
    "llm": score_llm,
    "interp": score_interp,
    "controlnet": score_controlnet,
    "evaluator": score_evaluator,
    "rivals": score_rivals,
    "chain": score_chain,
}


def main(arguments: list[str]) -> None:
    paths, items, _ = split_arguments(arguments)
    job = make_job(paths, items)
    if job.stage not in SCORERS:
        raise UserError(f"stage {job.stage!r} has no evaluation of its own; known: {', '.join(SCORERS)}")
    if max(job.options.ranks, int(os.environ.get("WORLD_SIZE", "1"))) > 1 and job.stage not in SHARED:
        raise UserError(f"stage {job.stage} is scored by one process; ranks is for {', '.join(SHARED)}: leave it out")
    with joined(job.options.ranks, arguments):
        report = evaluate(job)
        if not Ranks.current().first:
            return
    for table in report.tables:
        print("\n".join(["", *table.lines(), *table.notes]))
    suffixes = ".json, .md and .html" if job.options.page else ".json and .md"
    print(f"\n{report.clips} clips, {report.seconds:.0f} s; {Path(job.options.out) / report.split}{suffixes}")


if __name__ == "__main__":
    run_script(main, __doc__)
