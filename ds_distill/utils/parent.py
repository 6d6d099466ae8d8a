"""The end of a process with the one that started it, also where that is killed and can tell nobody."""

import os
import signal
import threading
import time
from collections.abc import Callable

STUDY = "DS_DISTILL_STUDY"  # in the environment of a study's jobs: the study's process id
LOOK = 0.5  # seconds between two looks


def watch_parent(gone: Callable[[], None]) -> None:
    """Call `gone` in a thread of its own once the process that started this one has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        gone()

    threading.Thread(target=watch, daemon=True).start()


def end_with_study() -> None:
    """Have this process, if a study has started it, ask itself to save and end once the study is gone.

    The variable also reaches the processes that a job starts; these end with the job.
    """
    if os.environ.get(STUDY) == str(os.getppid()):
        watch_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
