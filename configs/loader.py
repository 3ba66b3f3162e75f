"""Reads a run's configuration: an `extends` chain, overlays and `key=value`, all checked against the schema.

Every mistake is collected, so that one attempt shows them all, each with the file and the key it is in.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.schema import STAGES, RunConfig, stage_config
from modules.errors import UserError

COMMAND_LINE = "command line"
T = typing.TypeVar("T")


class ConfigError(UserError):
    """All that is wrong with a configuration, one line for each."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclasses.dataclass
class Source:
    """Values of one file or of the command line, and where they come from."""

    origin: str
    values: dict[str, Any]


def load_config(paths: list[str], dotlist: list[str] | None = None, model: type | None = None) -> RunConfig:
    """The checked configuration of a run.

    Args:
        paths: a config file and overlays, the later the stronger; each may name a file to start from as `extends`.
        dotlist: `key=value` items, the strongest of all.
        model: dataclass of the `model` section; None takes the one of the stage that the files name.

    Raises:
        ConfigError: with every mistake that was found.
    """
    problems: list[str] = []
    sources = [source for path in paths for source in _read_chain(Path(path), (), problems)]
    sources += [source for item in dotlist or [] for source in _read_item(item, problems)]
    if not paths:
        problems.append("no config file is named; for example: python train.py configs/vqvae/demo.yaml")
    stage = _find_stage(sources, problems)
    if stage is None:
        raise ConfigError(problems)

    config = OmegaConf.structured(RunConfig)
    config.name = Path(paths[0]).stem
    config.model = OmegaConf.structured(model or stage_config(stage))
    return cast(RunConfig, _fill(config, sources, problems))


def load_typed(schema: type[T], paths: list[str], dotlist: list[str] | None = None) -> T:
    """The checked configuration of something that is not a training run; arguments and errors as `load_config`.

    Args:
        schema: dataclass of the whole file.
    """
    problems: list[str] = []
    sources = [source for path in paths for source in _read_chain(Path(path), (), problems)]
    sources += [source for item in dotlist or [] for source in _read_item(item, problems)]
    return cast(T, _fill(OmegaConf.structured(schema), sources, problems))


def _fill(config: DictConfig, sources: list[Source], problems: list[str]) -> Any:
    """Instances of the schemas with the values of all sources; raises with all problems."""
    origins: dict[str, str] = {}
    for source in sources:
        _merge(config, source.values, "", source.origin, origins, problems)
    result = _build(config, "", origins, problems)
    if problems:
        raise ConfigError(problems)
    return result


def to_plain(config: Any) -> dict[str, Any]:
    """Nested dicts, lists and scalars: fit for YAML, JSON and `torch.load(weights_only=True)`."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _read_chain(path: Path, below: tuple[Path, ...], problems: list[str]) -> Iterator[Source]:
    """The file and what it extends, the base first."""
    if path.resolve() in below:
        problems.append(f"{path}: extends itself through {below[-1].name}")
        return
    values = _read_file(path, problems)
    base = values.pop("extends", None)
    if isinstance(base, str):
        yield from _read_chain(path.parent / base, (*below, path.resolve()), problems)
    elif base is not None:
        problems.append(f"{path}: extends is {base!r}; it must be the path of one file, relative to this one")
    yield Source(str(path), values)


def _read_file(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("configs").rglob("*.yaml")], n=1, cutoff=0.5)
        problems.append(f"{path}: no such file" + (f"; did you mean {near[0]}?" if near else ""))
        return {}
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        problems.append(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}")
        return {}
    if not isinstance(values, dict):
        problems.append(f"{path}: must hold `key: value` lines, found {type(values).__name__}")
        return {}
    return cast("dict[str, Any]", values)


def _read_item(item: str, problems: list[str]) -> Iterator[Source]:
    """One `key=value` of the command line, the value as YAML."""
    key, separator, _ = item.partition("=")
    if not separator or not key or key.startswith("-"):
        problems.append(f"{COMMAND_LINE}: '{item}' is not key=value")
        return
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problems.append(f"{COMMAND_LINE}: '{item}' cannot be read: {_first_line(error)}")
        return
    yield Source(COMMAND_LINE, cast("dict[str, Any]", values))


def _find_stage(sources: list[Source], problems: list[str]) -> str | None:
    named = [source for source in sources if "stage" in source.values]
    if not named:
        if not problems:
            problems.append(f"{sources[0].origin}: stage is missing; it is one of {', '.join(STAGES)}")
        return None
    origin, stage = named[-1].origin, named[-1].values["stage"]
    if stage not in STAGES:
        guess = _did_you_mean(stage, STAGES)
        problems.append(f"{origin}: stage is {stage!r}; it must be one of {', '.join(STAGES)}{guess}")
        return None
    return stage


def _merge(
    node: DictConfig, values: dict[str, Any], prefix: str, origin: str, origins: dict[str, str], problems: list[str]
) -> None:
    """Put `values` into the typed `node`, key by key, so that one mistake does not hide the next."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        origins[key] = origin
        typed = dataclasses.is_dataclass(OmegaConf.get_type(node))
        known = [str(entry) for entry in node]  # `name in node` would be False for a missing value
        if typed and name not in known:
            guess = _did_you_mean(name, known, prefix)
            problems.append(f"{origin}: {key} is unknown{guess}; known here: {', '.join(known)}")
            continue
        child = node._get_node(name) if name in known else None
        schema = _dataclass_of(child)
        if schema is not None and isinstance(value, dict):
            if child._is_none():  # type: ignore[union-attr]
                node[name] = OmegaConf.structured(schema)
            _merge(cast(DictConfig, node._get_node(name)), value, f"{key}.", origin, origins, problems)
            continue
        try:
            OmegaConf.update(node, str(name), value, merge=isinstance(value, dict), force_add=not typed)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            expected = _expected(OmegaConf.get_type(node), str(name)) or f": {_first_line(error)}"
            problems.append(f"{origin}: {key} is {value!r} ({type(value).__name__}){expected}")


def _dataclass_of(node: Any) -> type | None:
    """The dataclass that a node holds or, where it is None, may hold."""
    if not isinstance(node, DictConfig):
        return None
    for kind in (OmegaConf.get_type(node), node._metadata.ref_type):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def _expected(schema: type | None, name: str) -> str:
    if schema is None or not dataclasses.is_dataclass(schema):
        return ""
    hint = typing.get_type_hints(schema)[name]
    if typing.get_origin(hint) is typing.Literal:
        return f", expected one of {', '.join(map(str, typing.get_args(hint)))}"
    if dataclasses.is_dataclass(hint):
        return ", expected `key: value` lines"
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return f", expected {text.replace('typing.', '')}"


def _build(node: Any, key: str, origins: dict[str, str], problems: list[str]) -> Any:
    """Plain objects and dataclass instances out of a node; `__post_init__` checks are collected."""
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    if isinstance(node, DictConfig) and node._is_none() or node is None:
        return None
    if isinstance(node, DictConfig):
        before = len(problems)
        values = {name: _build_child(node, name, f"{key}{name}", origins, problems) for name in list(node)}
        if not dataclasses.is_dataclass(schema):
            return values
        if len(problems) > before:
            return None
        try:
            return cast(type, schema)(**values)
        except UserError as error:
            problems.append(f"{_origin(key, origins)}: {error}")
            return None
    if isinstance(node, ListConfig):
        return [_build_child(node, index, f"{key}{index}", origins, problems) for index in range(len(node))]
    if isinstance(node, tuple):
        return tuple(node)
    return OmegaConf.to_object(node) if OmegaConf.is_config(node) else node


def _build_child(node: Any, name: Any, key: str, origins: dict[str, str], problems: list[str]) -> Any:
    raw = node._get_node(name)
    assert raw is not None
    if raw._is_missing():
        problems.append(f"{_origin(key, origins)}: {key} is missing; give it in a file or as {key}=...")
        return None
    try:
        value = node[name]
    except OmegaConfBaseException as error:
        problems.append(f"{_origin(key, origins)}: {key} is '{raw._value()}': {_first_line(error)}")
        return None
    return _build(value, f"{key}.", origins, problems)


def _origin(key: str, origins: dict[str, str]) -> str:
    """The source that last touched `key` or, for a default, what is around it."""
    parts = key.rstrip(".").split(".")
    for length in range(len(parts), 0, -1):
        if (found := origins.get(".".join(parts[:length]))) is not None:
            return found
    return next(iter(origins.values()), "defaults")


def _did_you_mean(name: Any, known: typing.Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
