"""What the benchmarks compute from their measurements, and that contenders are processes of their own."""

import os
from types import SimpleNamespace

import pytest

from benchmarks.arena import Contender, ratio, take_turns
from benchmarks.race import at_minute, verdict
from benchmarks.scaling import bytes_moved


def make(setting, device):
    """A contender whose step takes what the setting says."""
    if setting.broken:
        raise ValueError("no such shape")
    return lambda: setting.seconds, {"rank": os.environ["RANK"], "world": os.environ["WORLD_SIZE"], "pages": os.environ["PAGES"], "pid": os.getpid()}


def test_contenders_are_processes_with_an_environment_of_their_own():
    setting = SimpleNamespace(threads=1, seconds=0.25, broken=False)
    contender = Contender("two", make, setting, ranks=2, environment={"PAGES": "small"})
    try:
        take_turns([contender], 3)
        assert contender.seconds == [0.25] * 3 and contender.said == {"rank": "0", "world": "2", "pages": "small", "pid": contender.processes[0].pid}
        assert contender.said["pid"] != os.getpid() and "PAGES" not in os.environ
    finally:
        contender.stop()
    assert not any(process.is_alive() for process in contender.processes)


def test_a_contender_that_fails_is_named_with_its_reason():
    contender = Contender("odd", make, SimpleNamespace(threads=1, broken=True))
    try:
        with pytest.raises(RuntimeError, match="odd.*(?s:.*)no such shape"):
            take_turns([contender], 1)
    finally:
        contender.stop()


def test_ratios_are_within_a_round():
    assert ratio([2.0, 4.0, 60.0], [1.0, 2.0, 20.0]) == 2.0
    assert ratio([6.0], [1.0, 2.0, 3.0]) == 3.0


def test_bytes_that_a_rank_sends():
    assert bytes_moved(100, 0, 4, 1) == 0  # alone
    assert bytes_moved(100, 0, 4, 2) == 400  # half of the gradients to the other and half of the sums back
    assert bytes_moved(100, 1, 2, 4) == 0.75 * (2 * 400 + 200)


def test_the_race_is_read_off_its_curves():
    rows = lambda *figures: [[minute, 0, {"": [loss, loss, 1 - loss / 10]}] for minute, loss in figures]  # noqa: E731
    plain, engine = rows((0, 9.0), (10, 7.0), (20, 5.0)), rows((0, 9.0), (5, 6.0), (10, 4.0), (20, 3.0))
    assert at_minute(plain, 15, "", 0) == 6.0 and at_minute(plain, 25, "", 0) == 5.0
    found = verdict({"plain": {"rows": plain}, "engine": {"rows": engine}}, [""])
    assert found == {"plain": {"ahead_at": "3 of 3", "share_of_its_time": {"corpus": 0.375}}}  # 5.0 between 6.0 at 5 and 4.0 at 10: 7.5 of 20
    slower = verdict({"plain": {"rows": engine}, "engine": {"rows": plain}}, [""])
    assert slower == {"plain": {"ahead_at": "0 of 2", "share_of_its_time": {"corpus": None}}}
