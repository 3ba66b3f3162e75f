"""What the root scripts share: telling files from `key=value`, and errors of a line instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from modules.errors import UserError


def split_arguments(arguments: list[str], flags: tuple[str, ...] = ()) -> tuple[list[str], list[str], set[str]]:
    """Config files, `key=value` items and flags of a command line.

    Raises:
        UserError: for an option that is not in `flags`.
    """
    paths, items, given = [], [], set()
    for argument in arguments:
        if argument in flags:
            given.add(argument)
        elif argument.startswith("-"):
            known = f"known: {', '.join(flags)}; " if flags else ""
            raise UserError(f"option {argument} is unknown; {known}settings are given as key=value")
        elif "=" in argument:
            items.append(argument)
        else:
            paths.append(argument)
    return paths, items, given


def run_script(main: Callable[[list[str]], None], help_text: str | None = None) -> NoReturn:
    """Call `main(arguments)` and exit: 0, or after a `UserError`, whose lines go to stderr, its status (2)."""
    if help_text and {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text.strip())
        sys.exit(0)
    try:
        main(sys.argv[1:])
    except UserError as error:
        start = "error: " if error.exit_status == UserError.exit_status else ""
        for line in str(error).splitlines():  # none on ranks that leave it to the first
            print(f"{start}{line}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
    sys.exit(0)
