"""What a process that reads data does before it reads."""

from __future__ import annotations

import os
import signal
import sys
import threading

import cv2


def init_worker(worker: int) -> None:
    """Called first in every reader."""
    del worker
    cv2.setNumThreads(0)  # its thread pool does not survive a fork
    if sys.platform != "linux":
        return
    # A job that SLURM stops signals every process. The run is still to save, and would fail if a reader went.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process at a SIGTERM of the one that started it, and of no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
