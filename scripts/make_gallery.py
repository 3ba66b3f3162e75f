"""The examples of the page: python scripts/make_gallery.py [CONFIG.yaml] [key=value ...]

For each prompt of `prompts` its plan and a strip of rendered frames go to app/gallery; what is there is replaced.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

from configs.chain_schema import ChainConfig
from configs.cli import run_script, split_arguments
from configs.loader import load_typed
from modules.files import atomic_path, atomic_write
from modules.outputs import slug
from modules.pipeline import DENSE_STAGES, PLAN_STAGES, RENDER_STAGES, Pipeline
from modules.pose.io import plan_to_dict

GALLERY = Path(__file__).parents[1] / "app" / "gallery"
_FRAMES = 6


@dataclass
class GalleryConfig(ChainConfig):
    """The chain, and which prompts."""

    prompts: str = "configs/chain/prompts.txt"


def main(arguments: list[str]) -> None:
    paths, items, _ = split_arguments(arguments)
    config = load_typed(GalleryConfig, paths or ["configs/chain/demo.yaml"], items)
    prompts = [line.strip() for line in Path(config.prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    pipeline = Pipeline.from_exports(config.pipeline, stages=(*PLAN_STAGES, *DENSE_STAGES, *RENDER_STAGES))
    plans = pipeline.plan(prompts, [config.seed] * len(prompts))
    for number, (prompt, plan) in enumerate(zip(prompts, plans, strict=True), 1):
        (frames,) = pipeline.render([pipeline.dense(plan)], [plan.seed])
        chosen = frames[np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)]
        name = f"{number}-{slug(prompt)[:40].rpartition('-')[0]}"
        plan.codes = None  # they belong to the weights of one training
        with atomic_path(GALLERY / f"{name}.webp") as path:
            Image.fromarray(np.concatenate(list(chosen), axis=1)).save(path, lossless=True)
        with atomic_write(GALLERY / f"{name}.json") as file:
            data = plan_to_dict(plan)
            for person in data["persons"]:
                for key in person["keys"]:
                    key["joints"] = [[round(x, 2), round(y, 2), seen] for x, y, seen in key["joints"]]
            json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
        print(name)


if __name__ == "__main__":
    run_script(main, __doc__)
