"""Requests to end a run: SIGTERM and SIGINT."""

import signal
from types import FrameType


class StopRequest:
    """While it is entered, SIGTERM and SIGINT ask for a save and an exit, instead of ending the process.

    Ranks agree on it by a flag in each step's all-reduce.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _request(self, signal_number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
