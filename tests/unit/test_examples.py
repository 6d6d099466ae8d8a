"""The files in examples/ that a user copies to a cluster are valid, and say what this program takes."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from ds_distill.cli.parser import build_parser
from ds_distill.distributed.nodes import Node, find_node, pop_options
from ds_distill.utils.errors import StoppedError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent


def documents() -> dict[str, dict]:
    return {each["kind"]: each for each in yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())}


@pytest.mark.parametrize(
    "command", [["shellcheck", "slurm.sbatch"], ["hadolint", "Dockerfile"]], ids=lambda each: each[0]
)
def test_linters_find_nothing(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=EXAMPLES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_takes_its_file():
    for document in documents().values():
        kubernetes_validate.validate(document, "1.37", strict=True)
    broken = documents()["Job"] | {"spec": documents()["Job"]["spec"] | {"completionmode": "Indexed"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_a_pod_finds_its_place_and_its_arguments_are_known():
    job, service = documents()["Job"]["spec"], documents()["Service"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["args"]]
    options, rest = pop_options(words)
    # the first pod's name is that of the Job with its number, below that of the Service
    first = f"{documents()['Job']['metadata']['name']}-0.{service['metadata']['name']}"
    assert find_node(options, {}) == Node(job["completions"], 3, first, "29500")
    assert job["parallelism"] == job["completions"] and pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= job["template"]["metadata"]["labels"].items()
    assert build_parser().parse_args(["run", *rest]).run.teacher == ["/data/teacher"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_a_run_that_has_saved_is_started_again():
    codes = [
        rule["onExitCodes"]["values"]
        for rule in documents()["Job"]["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert codes == [[StoppedError.STATUS]]
    assert f"status == {StoppedError.STATUS}" in (EXAMPLES / "slurm.sbatch").read_text()


def test_losses_in_a_row_are_counted_and_not_requests_to_end(tmp_path):
    tools = {"srun": "exit $STATUS", "scontrol": 'echo "$*"'}
    for name, line in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    place = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "1"}
    place |= {"SLURM_RESTART_COUNT": "99", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def again(status: int) -> bool:
        done = subprocess.run(
            ["bash", EXAMPLES / "slurm.sbatch"], env=place | {"STATUS": str(status)}, capture_output=True, text=True
        )
        assert done.returncode == status and done.stderr == "" and done.stdout in ("", "requeue 7\n")
        return bool(done.stdout)

    assert all(again(status) for status in (75, 3, 143, 3, 3, 75, 3, 3, 3, 3, 137)) and not again(3)
    assert not any(again(status) for status in (0, 1, 2)) and not list(tmp_path.glob("*.losses"))


def test_the_image_copies_what_there_is():
    text = (EXAMPLES / "Dockerfile").read_text().replace("\\\n", " ")
    copied = [line.split()[1:-1] for line in text.splitlines() if re.match("COPY (?!--from)", line)]
    names = {name for line in copied for name in line}
    assert {"launch.sh", "ds_distill", "ds_configs"} <= names and all((ROOT / name).exists() for name in names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["license-files"]) <= names and "readme" not in project, "what the package is built from"
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    assert shlex.split(entry.strip("[]").replace(",", " "))[-1].endswith("/launch.sh")
    assert text.rindex("USER 1000") < text.index(entry), "it does not run as root"
