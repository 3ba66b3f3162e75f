"""What each idea brings the interpolator: python scripts/interp_table.py data=FOLDER [steps=400] [rows=[default]]

Trains variants of configs/interp/cmu.yaml, with true keys alone, for the same number of steps and scores them on groups
of the training split that were held aside. Rows that are in `out` already are not trained again.

  data=             folder of shards with train-*.tar; its json must have the field `group`
  group=subject folds=5   a fifth of the subjects is held aside
  steps=400 batch_size=64 seed=0
  rows=[]           names of rows; empty: all
  out=runs/interp_table.json
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import lightning as L

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script  # noqa: E402
from configs.loader import load_config  # noqa: E402
from datamodules.folds import Folds  # noqa: E402
from datamodules.webdataset import iter_clips  # noqa: E402
from modules.evaluation.interp import gather, interpolate, mean_motion, measure, spline  # noqa: E402
from modules.interp.config import SamplingConfig  # noqa: E402
from modules.interp.module import InterpModule  # noqa: E402
from modules.interp.network import InterpNetwork  # noqa: E402
from modules.pose.scene import Clip  # noqa: E402
from scripts.variants import Figures, VariantsConfig, fit, make_table, read_config  # noqa: E402

# Row -> items on top of configs/interp/cmu.yaml.
ROWS: dict[str, list[str]] = {
    "PCHIP (no training)": [],
    "default": [],
    "linear layers only": ["model.network.architecture=linear"],
    "the pose itself, no spline, no outline": ["model.network.base=none"],
    "AdamW instead of Muon": ["model.optim.muon_lr=0"],
    "without velocity loss": ["model.velocity_weight=0"],
    "velocity loss 1": ["model.velocity_weight=1"],
    "tokens of 3 frames instead of 7": ["model.network.frames_per_token=3"],
    "outline 256 wide instead of 512": ["model.network.outline_width=256"],
    "without mirror, turn and stretch": ["data.augment.mirror=0", "model.rotate=0", "model.stretch=0"],
    "stride 10 alone": ["model.strides=[10]"],
}
CLEAN = ["model.vqvae=null", "model.key_noise=0"]
STRIDES, SAMPLES = (10, 30), 4


def main(arguments: list[str]) -> None:
    cfg = read_config(arguments, ROWS, out="runs/interp_table.json", steps=400, batch_size=64)
    header = (
        "| variant | stride 10 | mean of 4 | acceleration | jerk | stride 30 | mean of 4 | acceleration | jerk | "
        "CPU ms a step |"
    )
    make_table(cfg, ROWS, functools.partial(train, cfg=cfg), header, line)


def line(name: str, f: Figures) -> str:
    cells = []
    for stride in STRIDES:
        cells += [f"{f[f'one_{stride}']:.4f}", f"{f[f'mean_{stride}']:.4f}"]
        cells += [f"{f[f'{figure}_{stride}']:.2f}" for figure in ("acceleration", "jerk")]
    return f"| {name} | {' | '.join(cells)} | {f['ms']:.0f} |"


def train(name: str, cfg: VariantsConfig) -> Figures:
    """Train one variant and score it."""
    run = load_config(
        [str(ROOT / "configs/interp/cmu.yaml")],
        [*CLEAN, *ROWS[name], f"data.path={cfg.data}", f"data.group={cfg.group}", f"data.folds={cfg.folds}"],
    )
    folds = Folds(cfg.group, cfg.folds)
    held = list(iter_clips(run.data.path, "val", num_frames=run.data.num_frames, folds=folds))
    if name.startswith("PCHIP"):
        return score(None, held) | {"ms": 0.0}
    L.seed_everything(cfg.seed, verbose=False)
    module = InterpModule(run.model, max_steps=cfg.steps)
    module.setup_data(lambda: iter_clips(run.data.path, "train", num_frames=run.data.num_frames, folds=folds))
    seconds = fit(module, run, cfg, lambda batch: module.model_step(batch)["loss"])
    module.eval()
    return score(module.network, held) | {"ms": 1000 * seconds / cfg.steps}


def score(network: InterpNetwork | None, clips: list[Clip]) -> Figures:
    """Error of one sample and of the mean of some; acceleration and jerk of one as multiples of the real ones."""
    figures: Figures = {}
    for stride in STRIDES:
        motions = gather(clips, stride)
        real = measure(motions, [(motion.poses, motion.seen) for motion in motions])
        if network is None:
            drawn = [spline(motions, "pchip")]
        else:
            drawn = [interpolate(network, motions, SamplingConfig(), seed) for seed in range(SAMPLES)]
        one, mean = measure(motions, drawn[0]), measure(motions, mean_motion(drawn))
        figures |= {
            f"one_{stride}": float(one.position.mean()),
            f"mean_{stride}": float(mean.position.mean()),
            f"acceleration_{stride}": float(one.acceleration.mean() / real.acceleration.mean()),
            f"jerk_{stride}": float(one.jerk.mean() / real.jerk.mean()),
        }
    return figures


if __name__ == "__main__":
    run_script(main, __doc__)
