"""A corpus is prepared by jobs of Slurm, which datatrove submits."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.start import ROOT, ds_distill, wait_for


@pytest.mark.long
@pytest.mark.promise("A corpus prepared in parts by Slurm's jobs is, byte for byte, what one call makes")
def test_slurm_makes_what_one_call_makes(world, slurm, tmp_path):
    pytest.importorskip("datatrove", reason="needs the extra executors")
    arguments = [
        *("prepare", "--teacher", world / "teacher", "--corpus", world / "text.txt", "--data.sequence_length", 32),
        *("--data.drop_duplicates", "true"),
    ]
    assert ds_distill(*arguments, "--output", tmp_path / "one").returncode == 0
    options = "{partition: all, time: '01:00:00', mem_per_cpu_gb: 1, cpus_per_task: 1}"
    executor = ["--executor", "slurm", "--parts", 2, "--executor_options", options, "--output", tmp_path / "many"]
    done = subprocess.run(
        [sys.executable, "-m", "ds_distill", *map(str, [*arguments, *executor])],
        cwd=ROOT,
        env=slurm.environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = tmp_path / "many" / "manifest.json"
    wait_for(lambda: manifest.is_file() or not slurm.ask("squeue", "-h"), *slurm.daemons, pause=0.5)
    one, many = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "one", tmp_path / "many")
    )
    one.pop(Path("summary.json"))  # The other call has ended before there is something to sum up.
    assert one == many
