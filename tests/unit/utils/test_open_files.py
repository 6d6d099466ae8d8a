"""Test that the limit of open files is raised where it is too low, and never lowered."""

import subprocess
import sys

from ds_distill.utils.open_files import OTHERS
from tests.start import ROOT, environment_of


def soft_limit(soft: int, hard: int, needed: int) -> int:
    """Return the soft limit of a process that asks for so many open files."""
    program = (
        "import resource\n"
        "from ds_distill.utils.open_files import allow_open_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"allow_open_files({needed})\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment_of(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    limits = done.stdout.strip("() \n").split(", ")
    assert int(limits[1]) == hard
    return int(limits[0])


def test_the_limit_is_raised_as_far_as_it_may_be():
    assert soft_limit(300, 4000, 1000) == 1000 + OTHERS
    assert soft_limit(300, 2500, 1000) == 2500
    assert soft_limit(3500, 4000, 1000) == 3500
