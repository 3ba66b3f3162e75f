"""What `eval.py` is told besides the configuration of a stage or of the chain."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from configs.loader import load_typed
from modules.errors import UserError


@dataclass
class EvalOptions:
    """How an export is scored."""

    split: str = "test"
    export: str = ""  # folder; empty: runs/<stage>/<name>/export
    evaluator: str = ""  # export that judges plans; empty: runs/evaluator/<name>/export; none: not judged (llm)
    chain: str = "configs/chain/demo.yaml"  # sampling settings of the director, the interpolator and the renderer
    clips: int | None = None  # of the split; None: all
    videos: int = 64  # clips or scenes that are rendered; chain: with 0 no renderer is needed
    pictures: int = 0  # clips of which vqvae, interp, llm draw true and found poses, in pictures/ beside the report
    samples: int = 1  # drawn by interp for every person; of more than one, the mean is scored as well
    details: bool = False  # interp: tables of cost, text, spectrum, long motion, bad keys; llm: loss, text, grammar
    paraphrases: str = ""  # llm, details: JSON file of {caption: the same in other words}
    repeats: int = 8  # chain: captions of which further motions are made, for Multimodality; 0: none
    ablations: bool = True  # chain: rows in which each stage is replaced by the truth in turn; they double its time
    claim: int = 0  # chain: captions of one person that are rendered with and without the director, for people, too
    fvd: str = ""  # chain: TorchScript file that makes features of videos; empty: no FVD
    estimator: str = ""  # chain, controlnet: TorchScript file that finds joints in frames; empty: silhouettes alone
    clip: str = ""  # chain: folder of a CLIP model of transformers; empty: no CLIPScore
    rivals: list[str] = field(default_factory=list)  # chain: exports of stage rivals, each a row of the tables
    ranks: int = 1  # processes that score together
    page: bool = True  # write the page <split>.html, too
    out: str = ""  # folder of the report; empty: eval/ beside the export
    reuse: bool = False  # keep a report of the same export, data and settings

    def __post_init__(self) -> None:
        if self.clips is not None and self.clips < 1:
            raise UserError(f"clips is {self.clips}; it must be at least 1, or left out for all")
        if self.evaluator == "none" and not self.details:
            raise UserError("evaluator=none leaves nothing to score; add details=true")
        if self.pictures < 0:
            raise UserError(f"pictures is {self.pictures}; it must be 0 or more")
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; it must be at least 1")
        for name in ("videos", "repeats", "claim"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("fvd", "clip", "estimator"):
            if getattr(self, name) and not self.videos:
                raise UserError(f"{name} looks at rendered videos, and videos is 0: make some, or leave {name} out")
        if self.ranks < 1:
            raise UserError(f"ranks is {self.ranks}; it must be at least 1")


def split_options(items: list[str]) -> tuple[EvalOptions, list[str]]:
    """The options among `key=value` items, and the items that are for the configuration."""
    names = {field.name for field in fields(EvalOptions)}
    own = [item for item in items if item.partition("=")[0] in names]
    return load_typed(EvalOptions, [], own), [item for item in items if item not in own]
