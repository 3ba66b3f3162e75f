"""VideoCrafter2's checkpoint to a base that the ControlNet is trained on: make convert CHECKPOINT=model.ckpt

  python scripts/convert.py checkpoint=model.ckpt                  into assets/videocrafter2
  python scripts/convert.py checkpoint=other.ckpt config=other.yaml out=assets/other

Settings, all as key=value:
  checkpoint=FILE   .ckpt of VideoCrafter2 (Lightning or DeepSpeed) or .safetensors; of a pickle, tensors alone are read
  config=FILE       the checkpoint's YAML or JSON; without it, VideoCrafter2's at 512 x 320
  out=assets/videocrafter2   folder of the export
  overwrite=false   replace weights that are there

Every weight is accounted for: one that is missing, left over or of another shape is an error that names it. The base
takes 3.8 GB at half precision; converting takes about 16 GB of memory.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from modules.base.convert import convert, convert_to, read_checkpoint, read_config, write_base  # noqa: E402
from modules.base.network import file_sha256, network_config  # noqa: E402
from modules.checkpoint import WEIGHTS_FILE, read_export  # noqa: E402
from modules.errors import UserError  # noqa: E402


@dataclass
class ConvertConfig:
    """What to convert, and where to."""

    checkpoint: str = "???"
    config: str = ""
    out: str = "assets/videocrafter2"
    overwrite: bool = False


def main(arguments: list[str]) -> None:
    """Raises:
    UserError: unreadable files, weights that do not fit, or an export that is there already.
    """
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(ConvertConfig, [], items)
    out = Path(cfg.out)
    if (out / WEIGHTS_FILE).exists() and not cfg.overwrite:
        raise UserError(f"{out} has weights already; name another out=, or add overwrite=true")
    config = read_config(cfg.config) if cfg.config else None
    shape = network_config(read_export(ROOT / "assets/videocrafter2", "base").config["network"])
    state = read_checkpoint(cfg.checkpoint)
    network = convert_to(state, shape) if config is None else convert(state, config)
    source = {"checkpoint": Path(cfg.checkpoint).name, "sha256": file_sha256(Path(cfg.checkpoint))}
    write_base(network, out, {"converted_from": source})
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{out}: all {len(state)} weights converted, {parameters / 1e6:,.1f} M parameters")


if __name__ == "__main__":
    run_script(main, __doc__)
