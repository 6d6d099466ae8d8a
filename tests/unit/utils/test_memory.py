"""Test the figures of memory."""

import subprocess
import sys

import pytest

from tests.start import ROOT

OWN = (
    "import sys; from types import SimpleNamespace; from ds_distill.utils.memory import peak_memory; "
    "held = b'x' * int(sys.argv[1]); del held; print(peak_memory(SimpleNamespace(type='cpu')))"
)
OF_A_CHILD = (
    "import subprocess, sys; held = b'x' * 10**9; "
    "raise SystemExit(subprocess.run([sys.executable, '-c', sys.argv[1], *sys.argv[2:]]).returncode)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc has a process's own peak")
@pytest.mark.parametrize("started_by_a_large_process", [False, True])
def test_the_peak_is_that_of_the_process_itself(started_by_a_large_process):
    words = ["-c", OF_A_CHILD, OWN] if started_by_a_large_process else ["-c", OWN]
    done = subprocess.run(
        [sys.executable, *words, str(3 * 10**8)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 3 * 10**8 < int(done.stdout) < 8 * 10**8
