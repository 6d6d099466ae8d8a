"""Test that launch.sh, started on each node of a job, finds its place among them."""

import pytest

from ds_distill.distributed.nodes import Node, find_node, idle_nodes, pop_options
from ds_distill.distributed.schedulers import job_port
from ds_distill.utils.errors import UserError
from tests.unit.distributed.test_schedulers import OPEN_MPI, SLURM

SLURM_OF_ONE = SLURM | dict.fromkeys(("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_STEP_TASKS_PER_NODE"), "1")
SLURM_OF_ONE |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
OPTIONS = {"nnodes": "2", "node_rank": "1", "master_addr": "10.0.0.1"}


def test_options_of_a_node_are_taken_from_those_of_the_job():
    words = ["--config", "r.yaml", "--nnodes", "2", "--node-rank=1", "--master_addr", "10.0.0.1", "--a.b", "--nnodes_"]
    assert pop_options(words) == (OPTIONS, ["--config", "r.yaml", "--a.b", "--nnodes_"])
    with pytest.raises(UserError, match="--nnodes: needs a value"):
        pop_options(["--nnodes"])


def test_options_place_a_node():
    assert find_node(OPTIONS, {}) == Node(2, 1, "10.0.0.1", "29500")
    assert find_node(OPTIONS | {"master_port": "4000"}, {"MASTER_PORT": "5000"}).port == "4000"
    assert find_node({}, {}) is None and find_node({"nnodes": "1", "node_rank": "0"}, {}) is None


@pytest.mark.parametrize(
    "environment, node",
    [
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, Node(2, 1, "127.0.0.1", job_port("71", "0"))),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29400"},
            Node(2, 1, "h", "29400"),
        ),
        # Kubeflow's training operator: PyTorchJob without and with nprocPerNode, and its TrainJob
        (
            {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "job-0", "MASTER_PORT": "23456"},
            Node(4, 1, "job-0", "23456"),
        ),
        (
            {"RANK": "3", "WORLD_SIZE": "32", "PET_NNODES": "4", "MASTER_ADDR": "job-0", "MASTER_PORT": "23456"},
            Node(4, 3, "job-0", "23456"),
        ),
        (
            {"PET_NNODES": "4", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "job-0", "PET_MASTER_PORT": "29400"},
            Node(4, 2, "job-0", "29400"),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "job-0"}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "job-0"}, None),  # a rank's own
        (SLURM, None),  # each task is a rank
        (SLURM_OF_ONE, None),
        (SLURM_OF_ONE | OPEN_MPI, None),  # mpirun in a shell that srun has started
    ],
)
def test_what_starts_one_process_per_node_places_it(environment, node):
    assert find_node({}, environment) == node


@pytest.mark.parametrize(
    "options, words",
    [
        ({"nnodes": "2"}, "--nnodes 2: give --node_rank and --master_addr on each node"),
        ({"node_rank": "1"}, "--node_rank 1: give --nnodes"),
        (OPTIONS | {"node_rank": "2"}, "--nnodes 2 has the nodes 0 to 1"),
        (OPTIONS | {"nnodes": "two"}, "--nnodes two: must be a whole number"),
        (OPTIONS | {"nnodes": "0"}, "--nnodes 0: must be at least 1"),
        (OPTIONS | {"master_port": "70000"}, "--master_port 70000"),
    ],
)
def test_a_place_that_does_not_suffice_is_told(options, words):
    with pytest.raises(UserError, match=words):
        find_node(options, {})


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "1", "MASTER_ADDR": "h"}, "RANK = 1 in the environment, but no WORLD_SIZE"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE = 4 in the environment, but no RANK"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "--nnodes two, from the environment: must be a whole number"),
        ({"PET_NNODES": "2:4", "RANK": "1"}, "PET_NNODES = 2:4 .* elastic job with torchrun launch.sh"),
    ],
)
def test_a_part_of_the_variables_of_a_job_never_starts_a_job_of_its_own(environment, words):
    with pytest.raises(UserError, match=words):
        find_node({}, environment)
    if "PET_NNODES" not in environment:
        assert find_node(OPTIONS, environment) == Node(2, 1, "10.0.0.1", "29500"), "options count before them"


def test_nodes_of_a_job_that_are_left_idle_are_told():
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4"}  # in salloc, and in the script of sbatch
    assert idle_nodes(job).startswith("1 of the 2 nodes of this job is used; srun --ntasks-per-node=1 ./launch.sh")
    assert idle_nodes(SLURM | job) is None and idle_nodes({"SLURM_JOB_NUM_NODES": "1"}) is None
    assert idle_nodes({}) is None
