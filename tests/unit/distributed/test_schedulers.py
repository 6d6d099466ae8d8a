"""Test that the processes of srun and mpirun find their places in one job."""

import shutil
import subprocess
import sys

import pytest

from ds_distill.distributed.schedulers import (
    find_scheduler,
    first_host,
    job_port,
    processes_per_host,
    rank_variables,
    starts_nodes,
)
from ds_distill.utils.errors import UserError
from tests.start import environment_of

# as Slurm 22.05 sets them for the last of four tasks on two nodes
SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "127.0.0.[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-vm-1@1",
}


def test_a_task_of_slurm_is_a_rank():
    place = rank_variables(SLURM)
    assert place == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": job_port("71", "0"),
    }
    assert (
        1024 < int(place["MASTER_PORT"]) < 32768
        and len({job_port("71", "0"), job_port("71", "1"), job_port("72", "0")}) == 3
    )
    assert rank_variables(SLURM | {"SLURM_STEP_NUM_NODES": "1"})["MASTER_ADDR"] == "127.0.0.1"
    unresolved = rank_variables(SLURM | {"SLURM_STEP_NODELIST": "no.such.host.invalid"})
    assert unresolved["MASTER_ADDR"] == "10.0.0.9"
    given = {"MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "29500"}
    assert rank_variables(SLURM | given).items() >= given.items()


def test_the_script_of_a_batch_job_is_one_process():
    assert rank_variables({"SLURM_JOB_ID": "71", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == {}
    assert find_scheduler(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_a_process_of_mpirun_is_a_rank_where_the_first_one_can_be_found():
    assert rank_variables(OPEN_MPI) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": job_port("prterun-vm-1@1"),
    }
    apart = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(UserError, match=r"OMPI_COMM_WORLD_SIZE = 2 .*no MASTER_ADDR.*mpirun -x MASTER_ADDR="):
        rank_variables(apart)
    assert rank_variables(apart | {"MASTER_ADDR": "10.0.0.5"})["MASTER_ADDR"] == "10.0.0.5"
    assert rank_variables({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"})["RANK"] == "0"


def test_the_ranks_of_mvapich_meet_at_one_port():
    """Its PMI_ID is the number of the rank, and MPIRUN_ID that of the job."""
    name = "MV2_COMM_WORLD"
    places = []
    for rank in "01":
        job = {"PMI_ID": rank, "MPIRUN_ID": "4711", f"{name}_RANK": rank, f"{name}_SIZE": "2"}
        places.append(rank_variables(job | {f"{name}_LOCAL_RANK": rank, f"{name}_LOCAL_SIZE": "2"}))
    assert [place["RANK"] for place in places] == ["0", "1"]
    assert {place["MASTER_PORT"] for place in places} == {job_port("4711")}


def test_two_jobs_of_mpich_on_one_host_meet_at_two_ports(tmp_path):
    """A process tells them apart: the proxy that has started the ranks, be it through a shell."""
    proxy = tmp_path / "hydra_pmi_proxy"
    shutil.copy("/bin/sh", proxy)
    program = "from ds_distill.distributed.schedulers import rank_variables; print(rank_variables()['MASTER_PORT'])"
    script = (
        'for rank in 0 1; do PMI_RANK=$rank MPI_LOCALRANKID=$rank /bin/sh -c \'"$0" -c "$1"; true\' "$0" "$1"; done'
    )
    variables = environment_of(PMI_SIZE="2", MPI_LOCALNRANKS="2")
    ports = [
        subprocess.run([proxy, "-c", script, sys.executable, program], env=variables, capture_output=True, text=True)
        for _ in range(2)
    ]
    (first, again), (other, _) = ([port for port in done.stdout.split()] for done in ports)
    assert first == again != other


# mpiexec of MPICH, in a job of Slurm on two nodes: its proxy, a task of srun, hands on its own variables
HYDRA = SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
HYDRA |= {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_the_innermost_launcher_counts():
    given = {"MASTER_ADDR": "10.0.0.5"}
    for inner, job in ((HYDRA, ""), (HYDRA | OPEN_MPI, OPEN_MPI["PMIX_NAMESPACE"])):
        place, expected = rank_variables(inner | given), ("3", "4") if inner is HYDRA else ("1", "2")
        assert (place["RANK"], place["WORLD_SIZE"]) == expected and place["LOCAL_RANK"] == "1"
        assert place["MASTER_PORT"] == job_port(job), "a process beside mpirun itself is in no step"
        assert not starts_nodes(inner)
    assert find_scheduler(HYDRA | {"PMI_SIZE": "1", "PMI_RANK": "0", "MPI_LOCALRANKID": "0"}) is None
    pmi2 = SLURM | {"PMI_RANK": "3", "PMI_SIZE": "4"}  # srun --mpi=pmi2
    assert rank_variables(pmi2) == rank_variables(SLURM)


@pytest.mark.parametrize("name", ["SLURM_LOCALID", "SLURM_PROCID"])
def test_a_number_that_is_none_is_named(name):
    with pytest.raises(UserError, match=f"{name} = two in the environment: must be a whole number"):
        rank_variables(SLURM | {name: "two"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node[1-2]", "node1"),
        ("node[03-05,9],gpu1", "node03"),
        ("gpu1,node[1-2]", "gpu1"),
        ("rack[2-3]node[007,9]-ib,x", "rack2node007-ib"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize("listed, host, count", [("8", 0, 8), ("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("", 0, None)])
def test_processes_of_a_host_are_counted(listed, host, count):
    place = SLURM | {"SLURM_STEP_TASKS_PER_NODE": listed, "SLURM_NODEID": str(host)}
    assert processes_per_host(place) == count


def test_one_process_per_host_starts_the_ranks_there():
    assert not starts_nodes(SLURM) and not starts_nodes(OPEN_MPI) and not starts_nodes({})
    assert starts_nodes(SLURM | {"SLURM_STEP_NUM_TASKS": "2"})
    assert starts_nodes(OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
