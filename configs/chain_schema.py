"""Configuration of the chain: what `generate.py` and `eval.py configs/chain/...` read."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema import DataConfig
from modules.errors import UserError
from modules.pipeline import PipelineConfig


@dataclass
class ChainConfig:
    """The chain: exports by stage, sampling settings, data for the evaluation."""

    stage: str = "chain"
    name: str = "demo"
    seed: int = 0
    run_dir: str = "runs"
    data: DataConfig = field(default_factory=DataConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)


@dataclass
class GenerateConfig(ChainConfig):
    """What to generate: one of `prompt`, `prompts`, `plan`, `poses` (with a prompt) and `session`."""

    prompt: str = ""
    prompts: str = ""  # text file, one prompt a line
    plan: str = ""  # plan.json to render
    poses: str = ""  # OpenPose JSON or .npy to render
    session: str = ""  # session file of the page
    edits: str = ""  # edits.json, applied to every plan
    n: int = 1  # scenes a prompt, with the seeds seed, seed + 1, ...
    out: str = "outputs"
    scale: int = 0  # pixels of the video file per rendered pixel; 0: as many as make the shorter side 256 or more
    people: int | None = None  # number of people; None: as the prompt says
    seconds: float | None = None  # duration; None: as the prompt says

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"n is {self.n}; it must be at least 1")
        if self.scale < 0:
            raise UserError(f"scale is {self.scale}; it must be 0 (chosen for you) or more")
