"""launch.sh is one file in two languages; the requirements are pinned."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import patience

ROOT = Path(__file__).resolve().parents[2]
STUB_CLI = """
import json, os

def main(argv=None):
    names = ["RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "HF_HUB_DISABLE_TELEMETRY"]
    print(json.dumps({"argv": argv, **{name: os.environ.get(name) for name in names}}))
    return 3
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of launch.sh beside a package that prints what it is called with and returns 3."""
    shutil.copy(ROOT / "launch.sh", tmp_path)
    package = tmp_path / "ds_distill"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(STUB_CLI)
    return tmp_path


def run(command: list, **variables: str) -> subprocess.CompletedProcess:
    ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "OMP_NUM_THREADS", "DS_DISTILL_RANKS", "DS_DISTILL_START"}
    env = {name: value for name, value in os.environ.items() if name not in ours} | variables
    return patience.run(command, env=env)


def test_is_valid_bash():
    done = run(["bash", "-n", ROOT / "launch.sh"])
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(ROOT / "launch.sh", os.X_OK)


@pytest.mark.filterwarnings("error")
def test_is_valid_python():
    compile((ROOT / "launch.sh").read_text(), "launch.sh", "exec")


def test_python_part_runs_one_rank(checkout: Path):
    done = run([sys.executable, checkout / "launch.sh", "--local_rank=1", "--config", "r.yaml"], RANK="1", LOCAL_SIZE="100000")
    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)
    assert said["argv"] == ["run", "--config", "r.yaml"]
    assert said["OMP_NUM_THREADS"] == "1"
    assert said["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_bash_part_under_the_launcher_becomes_the_rank(checkout: Path):
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_DISTILL_PYTHON": sys.executable}
    done = run([checkout / "launch.sh", "--local_rank=0", "--a.b", "1"], **rank)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["argv"] == ["run", "--a.b", "1"]


def test_help_starts_no_launcher(checkout: Path):
    done = run([checkout / "launch.sh", "--help"], DS_DISTILL_PYTHON=sys.executable)
    said = json.loads(done.stdout)
    assert (said["argv"], said["RANK"]) == (["run", "--help"], None)


def test_setup_only_prints_python(checkout: Path):
    done = run([checkout / "launch.sh", "--setup-only"], DS_DISTILL_PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n")


def test_starts_ranks_and_passes_their_failure_on(checkout: Path):
    options = {"DS_DISTILL_PYTHON": sys.executable, "DS_DISTILL_RANKS": "1", "DS_ACCELERATOR": "cpu"}
    done = run([checkout / "launch.sh", "--a.b", "x y"], **options)
    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)  # nothing of the launcher's on standard output
    assert said["argv"] == ["run", "--a.b", "x y"]
    assert (said["RANK"], said["WORLD_SIZE"]) == ("0", "1")


def test_an_interrupted_installation_is_not_built_upon(checkout: Path, tmp_path: Path):
    """pip may take what it had half installed for whole."""
    tools = tmp_path / "tools"  # no Python among them, so that it stops where it would make a new environment
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "flock", "grep", "ls", "rm", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    (checkout / "requirements.txt").write_text("torch==2.13.0\n")
    (checkout / "pyproject.toml").touch()
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installing").touch()
    done = run([checkout / "launch.sh", "--setup-only"], PATH=str(tools), VIRTUAL_ENV="", CONDA_PREFIX="", DS_DISTILL_PYTHON="")
    assert "an installation into .venv was interrupted" in done.stderr and "needs Python 3.11" in done.stderr, done.stderr
    assert done.returncode == 1 and not (checkout / ".venv").exists()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-deploy.txt", "requirements-dev.txt", "requirements-gpu.txt"])
def test_requirements_are_pinned(name: str):
    for line in (ROOT / name).read_text().splitlines():
        requirement = line.split("#")[0].strip()
        if requirement and not requirement.startswith("-r "):
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[0-9][A-Za-z0-9.]*", requirement), line
