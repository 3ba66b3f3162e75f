"""Progress of long loops: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts up to `total`; a context manager. Lines look like those of training: `step 12/64  scenes`."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        self._bar = tqdm(total=total, desc=what, dynamic_ncols=True) if sys.stderr.isatty() else None
        self._shown = 0

    def __call__(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        # A line for each twentieth.
        elif self.done * 20 // max(self.total, 1) > self._shown:
            self._shown = self.done * 20 // self.total
            print(f"step {self.done}/{self.total}  {self.what}", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
