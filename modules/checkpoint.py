"""Exports: self-contained folders that hand a trained stage to its consumers.

An export holds `export.json` (stage, configuration, where it comes from) and, for our own networks, one
`model.safetensors`; Hugging Face models add their own files beside it. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modules.errors import UserError

FORMAT_VERSION = 1
INFO_FILE = "export.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass
class ExportInfo:
    """What `export.json` says."""

    directory: Path
    stage: str
    config: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)  # step, metrics, data, code
    format_version: int = FORMAT_VERSION

    def load_state(self, dtype: torch.dtype | None = torch.float32) -> dict[str, Tensor]:
        """The weights on the CPU; floating-point tensors as `dtype` (None: as stored)."""
        path = self.directory / WEIGHTS_FILE
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); {_how_to_make(self.stage)}") from None
        if dtype is None:
            return state
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def save_export(
    directory: str | Path,
    *,
    stage: str,
    config: dict[str, Any],
    state: dict[str, Tensor] | None,
    info: dict[str, Any],
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write an export folder, all of it or nothing; an older export at the same place is replaced.

    Args:
        config: plain dict from which `modules.<stage>.network.from_export` builds the network.
        state: tensors of `model.safetensors`; None where `extra` writes the weights (Hugging Face models).
        extra: called with the unfinished folder, to add files to it.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = directory.with_name(f".{directory.name}.new-{os.getpid()}")
    stale = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    fresh.mkdir()
    try:
        if state is not None:
            save_file(_savable(state), fresh / WEIGHTS_FILE, metadata={"format": "pt"})
        if extra is not None:
            extra(fresh)
        content = {"stage": stage, "format_version": FORMAT_VERSION, "config": config, "info": info}
        (fresh / INFO_FILE).write_text(json.dumps(content, indent=2) + "\n")
        if directory.exists():
            directory.rename(stale)
        fresh.rename(directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory} could not be written ({error}); start the same command again when there is room"
        ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def _savable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them (tied weights are stored twice)."""
    seen: set[int] = set()
    result = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        if address in seen or value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone()
        seen.add(address)
        result[name] = value
    return result


def read_export(directory: str | Path, stage: str | None = None) -> ExportInfo:
    """Read and check `export.json`.

    Raises:
        UserError: no export there (lists those that exist), an unreadable one, or one of another stage than `stage`.
    """
    directory = Path(directory)
    path = directory / INFO_FILE
    if not path.is_file():
        raise UserError(_missing(directory, stage))
    try:
        content = json.loads(path.read_text())
        found = ExportInfo(directory, content["stage"], content["config"], content["info"], content["format_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an export description ({error!r}); make the export again") from None
    if found.format_version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {found.format_version}, this code reads {FORMAT_VERSION}; "
            f"{_how_to_make(found.stage)}"
        )
    if stage is not None and found.stage != stage:
        raise UserError(
            f"{directory} is an export of stage '{found.stage}', but one of stage '{stage}' is needed; "
            f"{_list_exports(stage)}{_how_to_make(stage)}"
        )
    return found


def find_exports(stage: str | None = None) -> list[Path]:
    """Exports under `runs/` and `assets/` of the current folder, of one stage or of all."""
    found = []
    for path in sorted([*Path("runs").glob(f"*/*/export/{INFO_FILE}"), *Path("assets").glob(f"*/{INFO_FILE}")]):
        try:
            of_stage = json.loads(path.read_text())["stage"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if stage in (None, of_stage):
            found.append(path.parent)
    return found


def _missing(directory: Path, stage: str | None) -> str:
    what = "no such folder" if not directory.exists() else f"it has no {INFO_FILE}"
    kind = f"{stage} export" if stage else "export"
    return f"{directory} is not a {kind}: {what}; {_list_exports(stage)}{_how_to_make(stage)}"


def _list_exports(stage: str | None) -> str:
    found = [str(path) for path in find_exports(stage)]
    return f"exports that exist: {', '.join(found)}; " if found else ""


def _how_to_make(stage: str | None) -> str:
    return f"`make train-{stage}` makes one" if stage else "`make train` makes them"


@contextmanager
def misfit_explained(export: ExportInfo) -> Iterator[None]:
    """Where a network is built from an export: keys or shapes that do not fit become one line.

    Raises:
        UserError: the configuration or the weights are not those that this code knows.
    """
    try:
        yield
    except (RuntimeError, TypeError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = textwrap.shorten(lines[min(1, len(lines) - 1)], 160)  # the first only says whose weights they are
        by = f" ({export.info['code']})" if "code" in export.info else ""
        raise UserError(
            f"{export.directory} does not fit this version of the code ({reason}): it is damaged or was made by "
            f"another version{by}; {_how_to_make(export.stage)}"
        ) from error


def load_frozen(directory: str | Path, stage: str) -> nn.Module:
    """The network of an export, in eval mode, without gradients.

    A module that holds one must keep it in eval mode in its own `train()`.

    Raises:
        UserError: no such export, one of another stage, or one whose configuration or weights are not those that this
            code knows.
    """
    with misfit_explained(read_export(directory, stage)):
        network: nn.Module = importlib.import_module(f"modules.{stage}.network").from_export(Path(directory))
    return network.eval().requires_grad_(False)


def fingerprint(directory: str | Path) -> str:
    """SHA-256 over the configuration and the weights of an export: names the exact upstream model a run used."""
    found = read_export(directory)
    digest = hashlib.sha256(json.dumps([found.stage, found.config], sort_keys=True).encode())
    for path in sorted(found.directory.rglob("*.safetensors")):
        digest.update(path.relative_to(found.directory).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def code_version() -> str:
    """Commit of the code, where git knows it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
