"""Which package may import which: the arrows of the architecture, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("modules", "datamodules", "callbacks", "configs", "training", "app")
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
SOURCES = sorted([*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))])
STAGES = {"vqvae", "llm", "interp", "base", "controlnet", "evaluator", "rivals"}
# `base` is the network that `controlnet` steers: one UNet, in one place.
SHARED_STAGES = {"base": {"controlnet"}}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports when it runs, inside functions as well; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def wrong_arrows(path: Path) -> list[str]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return [name for name in imports(path) if not allowed(parts, name)]


def allowed(parts: tuple[str, ...], name: str) -> bool:
    """May the file `parts` (its path without suffix) import `name`?"""
    if len(parts) == 1:  # a root script
        return not under(name, *SCRIPTS)
    if under(name, *SCRIPTS):
        return False
    package, file = parts[0], parts[-1]
    if package == "training":
        return not under(name, "app")
    if package == "app":  # a thin layer over the chain: what it can do, the command line can do
        return not under(name, "datamodules", "callbacks", "lightning", "torch")
    if under(name, "app", "training", "fastapi", "starlette", "uvicorn"):
        return False
    if package == "configs":
        return not under(name, "datamodules", "callbacks")
    if package in ("datamodules", "callbacks"):
        return not under(name, "configs", *({"datamodules", "callbacks"} - {package})) and (
            not under(name, "modules") or under(name, "modules.pose", "modules.errors", "modules.files")
        )
    if under(name, "configs", "callbacks", "datamodules", "omegaconf", "webdataset"):
        return False
    if under(name, "lightning"):
        return file == "module" or parts in (("modules", "strategy"), ("modules", "zero"))
    if parts[1] == "pose" and under(name, "modules"):
        return under(name, "modules.pose", "modules.errors", "modules.files")
    if parts[1] in STAGES:
        others = STAGES - {parts[1]} - SHARED_STAGES.get(parts[1], set())
        return not under(name, *(f"modules.{stage}" for stage in others))
    return True


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    assert wrong_arrows(path) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("modules/vqvae/network", "lightning"),
        ("modules/pose/scene", "modules.text"),
        ("modules/llm/module", "configs.schema"),
        ("modules/llm/module", "modules.vqvae.network"),
        ("datamodules/webdataset", "modules.llm.tokens"),
        ("callbacks/ema", "modules.vqvae.module"),
        ("modules/pipeline", "lightning"),
        ("configs/loader", "train"),
        ("configs/run", "training.trainer"),
        ("training/trainer", "train"),
        ("modules/session", "app.desk"),
        ("app/desk", "torch"),
    ],
)
def test_wrong_arrows_are_found(file: str, name: str) -> None:
    assert not allowed(tuple(file.split("/")), name)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path: Path) -> None:
    assert not [name for name in imports(path) if under(name, "pickle", "cloudpickle", "dill", "joblib")]
    # Checkpoints that DeepSpeed wrote can be read in no other way than by its own code.
    if path != ROOT / "modules/strategy.py":
        assert unsafe_loads(path) == []


def unsafe_loads(path: Path) -> list[int]:
    """Lines that call `torch.load` or `np.load` without refusing pickles."""
    safe = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if (wanted := safe.get(ast.unparse(call.func))) and wanted not in map(ast.unparse, call.keywords)
    ]
