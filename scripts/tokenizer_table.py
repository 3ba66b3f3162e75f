"""What each idea brings the pose tokenizer: python scripts/tokenizer_table.py data=FOLDER [steps=1000] [rows=[default]]

Trains variants of configs/vqvae/cmu.yaml for the same number of steps and prints their errors on groups of the training
split that were held aside (by which settings are chosen) and on the validation split (which is only reported). Rows
that are in `out` already are not trained again. The rows `library ...` need `pip install vector-quantize-pytorch`.

  data=             folder of shards with {train,val}-*.tar; its json must have the field `group`
  group=subject folds=5   a fifth of the subjects is held aside
  steps=1000 batch_size=128 seed=0
  rows=[]           names of rows; empty: all
  out=runs/tokenizer_table.json
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script  # noqa: E402
from configs.loader import load_config  # noqa: E402
from configs.schema import RunConfig  # noqa: E402
from datamodules.folds import Folds  # noqa: E402
from datamodules.webdataset import iter_clips  # noqa: E402
from modules.errors import UserError  # noqa: E402
from modules.evaluation.vqvae import batches  # noqa: E402
from modules.metrics.pose import PoseError  # noqa: E402
from modules.vqvae.module import VQVAEModule  # noqa: E402
from modules.vqvae.quantizer import Quantized  # noqa: E402
from scripts.variants import VariantsConfig, fit, make_table, read_config  # noqa: E402

# Row -> items on top of configs/vqvae/cmu.yaml, and arguments of the library's quantiser where that takes the own one's
# place (to be held against `without depth dropout`).
ROWS: dict[str, tuple[list[str], dict[str, Any] | None]] = {
    "default": ([], None),
    "linear layers only": (["model.network.architecture=linear"], None),
    "width 96": (["model.network.width=96"], None),
    "width 384": (["model.network.width=384"], None),
    "codes of 8 numbers": (["model.network.latent_dim=8"], None),
    "codes of 16 numbers": (["model.network.latent_dim=16"], None),
    "codes of 64 numbers": (["model.network.latent_dim=64"], None),
    "AdamW instead of Muon": (["model.optim.muon_lr=0"], None),
    "without depth dropout": (["model.quantizer.dropout=0"], None),
    "depth dropout 0.5": (["model.quantizer.dropout=0.5"], None),
    "EMA 0.99": (["model.quantizer.decay=0.99"], None),
    "smooth L1": (["model.position_loss=smooth_l1"], None),
    "without velocity loss": (["model.velocity_weight=0"], None),
    "velocity loss 1": (["model.velocity_weight=1"], None),
    "bone loss 0.3": (["model.bone_weight=0.3"], None),
    "without mirror": (["model.mirror_share=0"], None),
    "without hiding": (["model.hide_share=0"], None),
    "turned by 10 degrees": (["model.rotate=10"], None),
    "stretched by 0.15": (["model.stretch=0.15"], None),
    "tempo 0.3": (["model.tempo=0.3"], None),
    "turned, stretched, tempo": (["model.rotate=10", "model.stretch=0.15", "model.tempo=0.3"], None),
    "commitment 0.02": (["model.commitment_weight=0.02"], None),
    "commitment 0.5": (["model.commitment_weight=0.5"], None),
    "library: EMA": (["model.quantizer.dropout=0"], {"rotation_trick": False}),
    "library: rotation trick": (["model.quantizer.dropout=0"], {"rotation_trick": True}),
    "library: cosine codes": (["model.quantizer.dropout=0"], {"use_cosine_sim": True}),
    "library: residual FSQ 8 x 8 x 8": (["model.quantizer.dropout=0"], {"levels": [8, 8, 8]}),
}


# The rows build on the recipe without these.
PLAIN = ["model.rotate=0", "model.stretch=0", "model.tempo=0"]


class LibraryQuantizer(nn.Module):
    """A residual quantiser of vector-quantize-pytorch, as the pose tokenizer calls its own one."""

    def __init__(self, own: Any, **options: Any) -> None:
        super().__init__()
        try:
            from vector_quantize_pytorch import ResidualFSQ, ResidualVQ  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError(f"rows `library ...` need `pip install vector-quantize-pytorch` ({error})") from None
        if "levels" in options:
            self.inner: nn.Module = ResidualFSQ(num_quantizers=own.num_quantizers, dim=own.dim, **options)
        else:
            self.inner = ResidualVQ(
                num_quantizers=own.num_quantizers, dim=own.dim, codebook_size=own.codebook_size, decay=own.decay,
                kmeans_init=True, threshold_ema_dead_code=1, **options,
            )  # fmt: skip

    def forward(self, latents: Tensor, mask: Tensor) -> Quantized:
        # Real keys alone, as one sequence: its masks zero padding but let it into the statistics.
        found, codes, *rest = self.inner(latents[mask][None])
        commitment = rest[0].sum() if rest else latents.new_zeros(())
        quantized = torch.zeros_like(latents).masked_scatter(mask[..., None], found[0])
        all_codes = codes.new_zeros(*mask.shape, codes.shape[-1])
        all_codes[mask] = codes[0]
        return Quantized(quantized, all_codes, commitment)


def main(arguments: list[str]) -> None:
    cfg = read_config(arguments, ROWS, out="runs/tokenizer_table.json")
    header = "| variant | held aside | val | val, 1 code | velocity error | codes unused | CPU ms a step |"
    make_table(cfg, ROWS, functools.partial(measure, cfg=cfg), header, row)


def row(name: str, f: dict[str, float]) -> str:
    shares = f"{f['held']:.4f} | {f['val']:.4f} | {f['val_1']:.4f} | {f['velocity']:.4f} | {f['dead']:.0%}"
    return f"| {name} | {shares} | {f['ms']:.0f} |"


def measure(name: str, cfg: VariantsConfig) -> dict[str, float]:
    """Train one variant and score it."""
    items, library = ROWS[name]
    run = load_config(
        [str(ROOT / "configs/vqvae/cmu.yaml")],
        [*PLAIN, *items, f"data.path={cfg.data}", f"data.group={cfg.group}", f"data.folds={cfg.folds}"],
    )
    L.seed_everything(cfg.seed, verbose=False)
    module = VQVAEModule(run.model, max_steps=cfg.steps)
    if library is not None:
        module.network.quantizer = LibraryQuantizer(module.network.quantizer, **library)  # type: ignore[assignment]
    seconds = fit(module, run, cfg, lambda batch: module.model_step(batch)[0])
    module.eval()
    folds = Folds(cfg.group, cfg.folds)
    return {
        "held": score(module, run, "val", folds)["mpjpe"],
        **_val_scores(module, run),
        "ms": 1000 * seconds / cfg.steps,
    }


def _val_scores(module: VQVAEModule, run: RunConfig) -> dict[str, float]:
    full = score(module, run, "val", None)
    own = hasattr(module.network.quantizer, "lookup")
    first = score(module, run, "val", None, depths=1)["mpjpe"] if own else float("nan")
    return {"val": full["mpjpe"], "val_1": first, "velocity": full["velocity_error"], "dead": full["dead"]}


@torch.inference_mode()
def score(
    module: VQVAEModule, run: RunConfig, split: str, folds: Folds | None, depths: int | None = None
) -> dict[str, float]:
    """MPJPE and velocity error in box units, and the share of the codes that are never used."""
    clips = list(iter_clips(run.data.path, split, num_frames=run.data.num_frames, folds=folds))
    config = module.config
    metric, used = PoseError(), torch.zeros(config.network.num_quantizers, config.network.codebook_size)
    for batch in batches(clips, config.stride, config.num_keys):
        mask = batch["key_mask"]
        output = module.network(batch["poses"], batch["visibility"], mask)
        poses = output.poses if depths is None else module.network.decode(output.codes, mask, depths).poses
        metric.update(poses, batch["poses"], batch["visibility"] & mask[..., None])
        for depth in range(used.shape[0]):
            used[depth, output.codes[mask][:, depth]] = 1
    figures = {name: float(value) for name, value in metric.compute().items()}
    return figures | {"dead": float((used == 0).float().mean())}


if __name__ == "__main__":
    run_script(main, __doc__)
