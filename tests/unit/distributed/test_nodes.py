"""Test that launch.sh, started on each node of a job, finds its place among them."""

import pytest

from ds_distill.distributed.nodes import Node, find_node, pop_options
from ds_distill.distributed.schedulers import job_port
from ds_distill.utils.errors import UserError
from tests.unit.distributed.test_schedulers import OPEN_MPI, SLURM

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
        (OPTIONS | {"master_port": "70000"}, "--master_port 70000"),
    ],
)
def test_a_place_that_does_not_suffice_is_told(options, words):
    with pytest.raises(UserError, match=words):
        find_node(options, {})
