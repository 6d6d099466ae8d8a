"""Test that the benchmark of starts finds the bar that it waits for."""

import io

from benchmarks.startup import BAR
from ds_distill.utils.console import ProgressBar


def test_the_bar_of_the_steps_is_found():
    bar = ProgressBar(total=40, desc="distill", unit="step", file=io.StringIO())
    assert BAR.search(str(bar).encode())
    assert not BAR.search(b"distill: finished before")
