"""A standard error that another thread writes to."""

import io
import threading


class ThreadStream(io.StringIO):
    """Keep what a thread writes, and wait for it.

    `capsys.readouterr` cannot be asked again and again: it reads its buffer, then empties it, and a line that is
    written between the two is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flushes = threading.Semaphore(0)

    def flush(self) -> None:
        self._flushes.release()

    def wait(self) -> str:
        """Wait for the next flush, and return all that has been written."""
        assert self._flushes.acquire(timeout=600), "nothing was written"
        return self.getvalue()
