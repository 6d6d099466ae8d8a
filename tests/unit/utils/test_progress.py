"""A single process has a watch for progress too.

distributed/test_heartbeat.py tests the ranks of a job.
"""

import os

from ds_distill.utils.progress import ProgressWatch, note_progress
from tests.patience import wait_until


def test_a_lone_process_that_stands_still_says_where_it_is(capfd):
    text = ""

    def reports() -> int:
        nonlocal text
        text += capfd.readouterr().err
        return text.count("ds-distill: no progress for")

    with ProgressWatch(stalled=0.05, every=0.01):
        assert wait_until(lambda: reports() == 1, [os.getpid()]) is None
        note_progress()
        assert wait_until(lambda: reports() == 2, [os.getpid()]) is None, "once each time"
    assert text.count("the process is in ") == 2
