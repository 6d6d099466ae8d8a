"""A single process has a watch for progress too.

distributed/test_heartbeat.py tests the ranks of a job.
"""

import sys

from ds_distill.utils.progress import ProgressWatch, note_progress
from tests.streams import ThreadStream


def test_a_lone_process_that_stands_still_says_where_it_is(monkeypatch):
    stderr = ThreadStream()
    monkeypatch.setattr(sys, "stderr", stderr)
    with ProgressWatch(stalled=0.05, every=0.01):
        stderr.wait()
        note_progress()
        text = stderr.wait()
    assert text.count("ds-distill: no progress for") == 2, "once each time"
    assert text.count("the process is in ") == 2
