"""One worker for all visitors, with a queue of limited length, progress and cancelling."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from modules.errors import UserError

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Raised inside of a job that was cancelled."""


class Busy(UserError):
    """The queue is full."""


class Job:
    """Something to compute for one side of one visitor's desk.

    Args:
        title: what it does first.
        run: called with this job on the worker's thread.
        changed: called whenever there is something new to show.
    """

    def __init__(self, title: str, run: Callable[[Job], None], changed: Callable[[], None]) -> None:
        self.title, self._run, self._changed = title, run, changed
        self.state = "waiting"  # waiting | running | done | failed | cancelled
        self.stage, self.done, self.total = title, 0, 0
        self.error = ""
        self.started = time.monotonic()
        self.times: dict[str, float] = {}  # seconds after it was asked for, by what could be shown then
        self._cancelled = threading.Event()
        self.finished = threading.Event()

    def cancel(self) -> None:
        """Stop at the next step; a job that waits does not start."""
        self._cancelled.set()

    def report(self, stage: str, done: int, total: int) -> None:
        """Progress.

        Raises:
            Cancelled: somebody cancelled the job.
        """
        if self._cancelled.is_set():
            raise Cancelled
        self.stage, self.done, self.total = stage, done, total
        self._changed()

    def note(self, what: str) -> None:
        """`what` can be shown from now on."""
        self.times.setdefault(what, round(time.monotonic() - self.started, 3))

    def execute(self) -> None:
        """Run it; whatever happens becomes its state."""
        try:
            self.state = "running"
            self.report(self.title, 0, 0)
            self._run(self)
            self.state = "done"
        except Cancelled:
            self.state = "cancelled"
        except UserError as error:
            self.state, self.error = "failed", str(error)
        except Exception:  # the worker must live on, and details are for the log alone
            log.exception("job failed: %s", self.title)
            self.state, self.error = "failed", "something went wrong on the server; its log has the details"
        finally:
            self.finished.set()
            self._changed()


class JobQueue:
    """First come, first served; one job at a time, because each uses all cores.

    Args:
        max_waiting: jobs that may wait.
    """

    def __init__(self, *, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._waiting: list[Job] = []
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="desk-worker", daemon=True)
        self._thread.start()

    def submit(
        self, job: Job, *, replaces: Job | None = None, before: Callable[[], None] | None = None
    ) -> None:
        """Append a job.

        Args:
            replaces: is cancelled.
            before: called when there is room; where it raises, nothing has happened.

        Raises:
            Busy: the queue is full.
        """
        with self._ready:
            waiting = [other for other in self._waiting if other is not replaces and not other._cancelled.is_set()]
            if len(waiting) >= self.max_waiting:
                raise Busy(f"{len(waiting)} scenes are waiting, as many as the queue holds; try again in a minute")
            if before is not None:
                before()
            if replaces is not None:
                replaces.cancel()
            self._waiting.append(job)
            self._ready.notify()

    def position(self, job: Job) -> int:
        """How many waiting jobs are before this one."""
        with self._ready:
            ahead = self._waiting[: self._waiting.index(job)] if job in self._waiting else []
            return sum(not other._cancelled.is_set() for other in ahead)

    def close(self) -> None:
        """Cancel everything and end the worker."""
        with self._ready:
            self._closed = True
            for job in self._waiting:
                job.cancel()
            self._ready.notify()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._closed:
                    self._ready.wait()
                if self._closed and not self._waiting:
                    return
                job = self._waiting.pop(0)
            job.execute()
