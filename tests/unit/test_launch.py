"""launch.sh is one file in two languages, and the requirements are pinned."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from packaging.requirements import Requirement

from ds_distill.utils.devices import visible_gpus
from tests import patience

ROOT = Path(__file__).resolve().parents[2]
STUB_CLI = """
import json, os

def main(argv=None):
    names = ["RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "HF_HUB_DISABLE_TELEMETRY", "PYTHONDONTWRITEBYTECODE"]
    print(json.dumps({"argv": argv, **{name: os.environ.get(name) for name in names}}))
    return 3
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a copy of launch.sh beside a package that prints its arguments and returns 3."""
    shutil.copy(ROOT / "launch.sh", tmp_path)
    shutil.copytree(
        ROOT / "ds_distill", tmp_path / "ds_distill", ignore=shutil.ignore_patterns("__pycache__", "app.py")
    )
    (tmp_path / "ds_distill" / "cli" / "app.py").write_text(STUB_CLI)
    return tmp_path


def run(command: list, **variables: str) -> subprocess.CompletedProcess:
    set_by_launcher = {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_SIZE",
        "OMP_NUM_THREADS",
        "DS_DISTILL_RANKS",
        "DS_DISTILL_START",
    }
    env = {name: value for name, value in os.environ.items() if name not in set_by_launcher} | variables
    return patience.run(command, env=env)


def test_is_valid_bash():
    done = run(["bash", "-n", ROOT / "launch.sh"])
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(ROOT / "launch.sh", os.X_OK)


@pytest.mark.filterwarnings("error")
def test_is_valid_python():
    compile((ROOT / "launch.sh").read_text(), "launch.sh", "exec")


def test_python_part_runs_one_rank(checkout: Path):
    done = run(
        [sys.executable, checkout / "launch.sh", "--local_rank=1", "--config", "r.yaml"], RANK="1", LOCAL_SIZE="100000"
    )
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert result["argv"] == ["run", "--config", "r.yaml"]
    assert result["OMP_NUM_THREADS"] == "1"
    assert result["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_bash_part_under_the_launcher_becomes_the_rank(checkout: Path):
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_DISTILL_PYTHON": sys.executable}
    done = run([checkout / "launch.sh", "--local_rank=0", "--a.b", "1"], **rank)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["argv"] == ["run", "--a.b", "1"]


def test_help_starts_no_launcher(checkout: Path):
    done = run([checkout / "launch.sh", "--help"], DS_DISTILL_PYTHON=sys.executable)
    result = json.loads(done.stdout)
    assert (result["argv"], result["RANK"]) == (["run", "--help"], None)


def test_setup_only_prints_python(checkout: Path):
    done = run([checkout / "launch.sh", "--setup-only"], DS_DISTILL_PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n")


def test_starts_ranks_and_passes_their_failure_on(checkout: Path):
    options = {"DS_DISTILL_PYTHON": sys.executable, "DS_DISTILL_RANKS": "1", "DS_ACCELERATOR": "cpu"}
    done = run([checkout / "launch.sh", "--a.b", "x y"], PYTHONDONTWRITEBYTECODE="1", **options)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)  # the launcher prints nothing to standard output
    assert result["argv"] == ["run", "--a.b", "x y"]
    assert (result["RANK"], result["WORLD_SIZE"]) == ("0", "1")
    assert result["PYTHONDONTWRITEBYTECODE"] is None, "else each start compiles all that it imports"


def test_a_task_of_a_scheduler_is_a_rank_and_one_per_node_starts_ranks(checkout: Path):
    options = {"DS_DISTILL_PYTHON": sys.executable, "DS_DISTILL_RANKS": "1", "DS_ACCELERATOR": "cpu"}
    place = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    done = run([checkout / "launch.sh", "--a.b", "1"], **options, **place, OMPI_COMM_WORLD_LOCAL_SIZE="2")
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert (result["argv"], result["RANK"]) == (["run", "--a.b", "1"], None), "the command takes its place itself"
    done = run([checkout / "launch.sh", "--nnodes=2", "--node_rank=1", "--master_addr=h", "--a.b", "1"], **options)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert (result["argv"], result["RANK"], result["WORLD_SIZE"]) == (["run", "--a.b", "1"], "1", "2")
    done = run([checkout / "launch.sh", "--nnodes=2"], **options)
    assert (done.returncode, done.stderr.count("\n"), "Traceback" in done.stderr) == (1, 1, False), done.stderr
    assert done.stderr.startswith("launch.sh: --nnodes 2: give --node_rank and --master_addr")


@pytest.mark.parametrize(
    "answers, status",
    [
        (["exit 75", "exit 75"], 75),
        (["trap - TERM; kill $$", "trap - TERM; kill $$"], 75),  # before the training and after it
        (["exit 0", "exit 0"], 0),  # the run was complete just then
        (["exit 3", "exit 0"], None),  # as DeepSpeed says it
    ],
)
def test_a_job_that_is_asked_to_end_has_the_status_of_its_ranks(monkeypatch, answers, status):
    from ds_distill import deepspeed_fixes

    launch = SimpleNamespace(terminate_process_tree=None)
    deepspeed_fixes.let_ranks_save(launch, len(answers))
    with contextlib.ExitStack() as started:
        ranks = []
        for answer in answers:
            script = f"trap '{answer}' TERM; echo; while :; do sleep 0.05; done"
            ranks.append(started.enter_context(subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)))
            started.callback(ranks[-1].kill)
            ranks[-1].stdout.readline()  # it listens from here on
        children = [psutil.Process(rank.pid) for rank in ranks]
        this = SimpleNamespace(children=lambda: children)  # which may have other children
        own = SimpleNamespace(**vars(psutil) | {"Process": lambda: this})
        monkeypatch.setattr(deepspeed_fixes, "psutil", own)
        ends = contextlib.nullcontext() if status is None else pytest.raises(SystemExit)
        with ends as end:
            launch.terminate_process_tree(ranks[0].pid)
        assert status is None or end.value.code == status


def test_an_interrupted_installation_is_not_built_upon(checkout: Path, tmp_path: Path):
    """pip may mistake a half-installed package for a whole one."""
    tools = tmp_path / "tools"  # without a Python, so that it stops before it makes a new environment
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "flock", "grep", "ls", "rm", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    (checkout / "requirements.txt").write_text("torch==2.13.0\n")
    (checkout / "pyproject.toml").touch()
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installing").touch()
    done = run(
        [checkout / "launch.sh", "--setup-only"], PATH=str(tools), VIRTUAL_ENV="", CONDA_PREFIX="", DS_DISTILL_PYTHON=""
    )
    assert "an installation into .venv was interrupted" in done.stderr and "needs Python 3.11" in done.stderr, (
        done.stderr
    )
    assert done.returncode == 1 and not (checkout / ".venv").exists()


@pytest.fixture
def environment(checkout: Path, tmp_path: Path):
    """Return what starts launch.sh with an environment that it has made and whose pip fails."""
    (checkout / "requirements.txt").write_text("torch==2.13.0\n")
    (checkout / "pyproject.toml").touch()
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >> "$0.log"\n[ "$1" != -m ] || [ "$3" = uninstall ]\n')
    python.chmod(0o755)
    sums = subprocess.run(["cksum"], input="torch==2.13.0\n", capture_output=True, text=True).stdout.strip()
    tools = tmp_path / "tools"
    tools.mkdir()

    def start(build: str, *words: str, driver: bool = False) -> tuple[subprocess.CompletedProcess, str]:
        stamp = checkout / ".venv" / ".requirements"
        if build:
            stamp.write_text(f"{build} {checkout} {sums}\n")
        nvidia_smi = tools / "nvidia-smi"
        nvidia_smi.touch(0o755) if driver else nvidia_smi.unlink(missing_ok=True)
        (python.parent / "python.log").write_text("")
        done = run(
            [checkout / "launch.sh", "--setup-only", *words],
            PATH=f"{tools}:{os.environ['PATH']}",
            VIRTUAL_ENV="",
            CONDA_PREFIX="",
            DS_DISTILL_PYTHON="",
        )
        return done, (python.parent / "python.log").read_text()

    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        pytest.skip("a machine with a driver always asks for CUDA's build")
    return start


def test_a_node_without_gpus_keeps_the_environment_of_one_that_has_them(environment, checkout: Path):
    ready = f"{checkout}/.venv/bin/python\n"
    for build, words, driver in (
        ("cuda", (), False),
        ("cuda", ("cuda",), False),
        ("cuda", (), True),
        ("cpu", (), False),
    ):
        done, calls = environment(build, *words, driver=driver)
        assert (done.returncode, done.stdout) == (0, ready), done.stderr
        assert "pip" not in calls


@pytest.mark.parametrize("words, driver", [((), True), (("cuda",), False)])
def test_an_environment_whose_build_could_not_be_changed_is_not_ready(environment, words, driver):
    done, calls = environment("cpu", *words, driver=driver)
    assert done.returncode == 1 and "the installation failed" in done.stderr and "pip uninstall" in calls
    done, calls = environment("")
    assert done.returncode == 1 and "the installation failed" in done.stderr, "it has no torch"


def test_another_kind_of_environment_is_refused(environment):
    done, calls = environment("cpu", "rocm")
    assert done.returncode == 1 and "--setup-only rocm: give nothing more, or cuda" in done.stderr and not calls


SHELLS = ["bash", "bash --posix", "sh", "dash", "zsh", "ksh", "mksh", "busybox sh", sys.executable]


@pytest.mark.parametrize("shell", SHELLS)
def test_any_shell_may_start_it(checkout: Path, shell: str):
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"no {shell} here")
    done = run([*shell.split(), checkout / "launch.sh", "--help", "a b", "", "*"], DS_DISTILL_PYTHON=sys.executable)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["argv"] == ["run", "--help", "a b", "", "*"]


def test_a_shell_without_bash_says_what_it_needs(checkout: Path):
    done = run([shutil.which("dash") or "sh", checkout / "launch.sh", "--help"], PATH="/nonexistent")
    if not done.stdout:  # if sh is bash, it continues
        assert (done.returncode, done.stderr) == (127, "launch.sh: needs bash, which is not installed\n")


def test_it_is_found_through_links_and_from_anywhere(checkout: Path, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("else where")
    (elsewhere / "link").symlink_to(checkout / "launch.sh")
    (elsewhere / "go").symlink_to("link")
    spaced = elsewhere / "a check out"
    shutil.copytree(checkout, spaced)
    # CDPATH sends `cd name` elsewhere and makes it print the folder.
    (elsewhere / "decoy" / "a check out").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    for command in (["bash", "go"], ["sh", "go"], ["./go"], [sys.executable, "go"], ["bash", "a check out/launch.sh"]):
        done = run([*command, "--help"], DS_DISTILL_PYTHON=sys.executable, CDPATH=str(elsewhere / "decoy"))
        assert done.returncode == 3, (command, done.stderr)
        assert json.loads(done.stdout)["argv"] == ["run", "--help"]


@pytest.mark.parametrize(
    "visible, sees",
    [("0", True), ("0,1,", True), (" 1", True), ("1,-1", True), ("GPU-8932f937", True), ("MIG-1/2", True)]
    + [("", False), ("-1", False), ("-1,0", False), (",0", False), ("NoDevFiles", False), ("none", False)],
)
def test_which_gpus_are_visible_is_read_as_cuda_reads_it(checkout: Path, visible: str, sees: bool):
    """The bash part, with a driver that shows GPUs, and Python must give the same answer."""
    tools = checkout / "tools"
    tools.mkdir()
    for name, lines in (("nvidia-smi", 'echo "GPU 0: A100"'), ("python", 'echo "${DS_ACCELERATOR:-GPUs}"')):
        (tools / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tools / name).chmod(0o755)
    places = {"PATH": f"{tools}:{os.environ['PATH']}", "DS_DISTILL_PYTHON": str(tools / "python")}
    done = run(["bash", checkout / "launch.sh"], **places, CUDA_VISIBLE_DEVICES=visible, DS_ACCELERATOR="")
    assert done.stdout.splitlines()[-1] == ("GPUs" if sees else "cpu"), done.stderr
    assert bool(visible_gpus(visible)) == sees


def test_the_gpus_that_cuda_sees():
    assert visible_gpus("0,-1,1") == ["0"] and visible_gpus(" 2 , 0") == ["2", "0"] and visible_gpus("0,,1") == ["0"]
    assert visible_gpus("3,1,") == ["3", "1"] and visible_gpus("0,x,1") == ["0"]
    assert visible_gpus("1,1") == [], "CUDA sees none where one is named twice"
    assert visible_gpus("GPU-ab,MIG-cd/1/0") == ["GPU-ab", "MIG-cd/1/0"]


@pytest.mark.parametrize(
    "name",
    ["requirements.txt", *(f"requirements-{extra}.txt" for extra in ("deploy", "trackers", "executors", "dev", "gpu"))],
)
def test_requirements_are_pinned(name: str):
    for line in (ROOT / name).read_text().splitlines():
        requirement = line.split("#")[0].strip()
        if requirement and not requirement.startswith("-r "):
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[0-9][A-Za-z0-9.]*", requirement), line


@pytest.mark.parametrize(
    "extras, name",
    [
        ([], "requirements.txt"),
        (["deploy"], "requirements-deploy.txt"),
        (["wandb", "trackio", "mlflow"], "requirements-trackers.txt"),
        (["executors"], "requirements-executors.txt"),
    ],
)
def test_the_pins_are_in_the_ranges_of_the_package(extras: list[str], name: str):
    """Each package has both, a range and a pin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    pins = {pin.name: pin for pin in map(Requirement, (line for line in lines if line and not line.startswith("-r ")))}
    ranges = [line for extra in extras for line in project["optional-dependencies"][extra]] or project["dependencies"]
    ranges = {wanted.name: wanted for wanted in map(Requirement, ranges)}
    assert pins.keys() == ranges.keys()
    for package, pin in pins.items():
        (version,) = (each.version for each in pin.specifier)
        assert ranges[package].specifier.contains(version) and ranges[package].extras == pin.extras, package
