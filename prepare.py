"""Make a data set of shards: python prepare.py SOURCE [key=value ...]

  python prepare.py synthetic                       the sample data, in data/sample (one to two minutes on 2 cores)
  python prepare.py synthetic out=data/small train=200 val=32 test=32

synthetic: people who walk, wave, sit down, ... drawn before plain backgrounds, with captions
  out=data/sample   folder of the shards {train,val,test}-*.tar and of manifest.json
  train=4000 val=128 test=256   clips
  seed=0            another seed, other clips
  shard_size=100    clips in one shard
  workers=2         processes; the result does not depend on them
  overwrite=false   replace a data set that was made with other settings

An interrupted run goes on where it stopped; a complete data set is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from configs.cli import run_script, split_arguments
from configs.loader import load_typed
from datamodules.synthetic.build import SyntheticConfig, build
from modules.errors import UserError


def synthetic(items: list[str]) -> None:
    config = load_typed(SyntheticConfig, [], items)
    manifest = build(config)
    counts = ", ".join(f"{count} {split}" for split, count in manifest["samples"].items())
    print(f"{config.out}: {counts} clips in {len(manifest['shards'])} shards")


SOURCES: dict[str, Callable[[list[str]], None]] = {"synthetic": synthetic}


def main(arguments: list[str]) -> None:
    """Dispatch by the name of the source.

    Raises:
        UserError: no source or an unknown one is named, or its settings are wrong.
    """
    names, items, _ = split_arguments(arguments)
    known = ", ".join(SOURCES)
    example = "for example: python prepare.py synthetic out=data/sample"
    if len(names) != 1:
        got = " ".join(names) if names else "none"
        raise UserError(f"one source must be named, got {got}; known: {known}; {example}")
    if names[0] not in SOURCES:
        raise UserError(f"source {names[0]!r} is unknown; known: {known}; {example}")
    SOURCES[names[0]](items)


if __name__ == "__main__":
    run_script(main, __doc__)
