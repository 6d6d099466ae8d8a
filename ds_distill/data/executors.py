"""A corpus prepared by an engine that runs here already: datatrove's executors start the parts, on Slurm or on Ray.

A task is `Preparation.run_part`, as `prepare --part` calls it. What is finished is kept in the folder of the
preparation, so the engine's own records of finished tasks are not used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ds_distill.data.hub_sets import pack_hub_sets, unpack_hub_sets
from ds_distill.data.parts import Part
from ds_distill.data.prepare import Preparation
from ds_distill.utils.errors import UserError

EXECUTORS = ("local", "slurm", "ray")
_EXTRA = "pip install 'ds-distill[executors]'"


class PrepareParts:
    """A step of a datatrove pipeline in which each task prepares its part.

    Args:
        preparation: The preparation, which all tasks share.
        workers: Number of processes of a task.
    """

    def __init__(self, preparation: Preparation, workers: int):
        self.preparation, self.workers = preparation, workers
        hub_pieces = [piece for piece in preparation.pieces if piece.kind == "hub"]
        self.hub_sets = pack_hub_sets({(piece.path, piece.streaming) for piece in hub_pieces})

    def __call__(self, data, rank: int = 0, world_size: int = 1) -> tuple:
        unpack_hub_sets(self.hub_sets)
        self.preparation.run_part(Part(rank + 1, world_size), self.workers)
        return ()


class Assemble:
    """A step of a datatrove pipeline, of one task, that makes the folder of the parts."""

    def __init__(self, preparation: Preparation):
        self.preparation = preparation

    def __call__(self, data, rank: int = 0, world_size: int = 1) -> tuple:
        self.preparation.assemble()
        return ()


def run_executor(preparation: Preparation, name: str, parts: int, options: dict[str, Any]) -> None:
    """Prepare a corpus in parts with one of datatrove's executors, and assemble them.

    The executors "local" and "ray" return when the tokens are there, "slurm" when its jobs are
    submitted. Their logs are in a folder beside the output, OUTPUT-logs.

    Args:
        preparation: The preparation.
        name: One of EXECUTORS.
        parts: Number of tasks.
        options: Further arguments of the executor's class, such as partition and time for Slurm.

    Raises:
        UserError: If a package or an option is missing, or a part failed.
    """
    executor = _executor_class(name)
    logs = preparation.output.with_name(f"{preparation.output.name}-logs")
    # The tasks of the local executor are daemons, which cannot have processes of their own.
    workers = 1 if name == "local" else int(options.get("cpus_per_task", 1))
    # Where duplicates are dropped, all documents are hashed before any is tokenized.
    names = ["hash", "prepare"] if preparation.spec.drop_duplicates else ["prepare"]
    stages = [(stage, PrepareParts(preparation, workers), parts) for stage in names]
    last = None
    for stage, step, tasks in [*stages, ("assemble", Assemble(preparation), 1)]:
        arguments = {"tasks": tasks, "depends": last, "skip_completed": False, "logging_dir": str(logs / stage)}
        if name == "slurm":
            arguments |= {"job_name": f"{stage}-{preparation.output.name}", "venv_path": _activate()}
        try:
            last = executor(pipeline=[step], **arguments | options)
        except TypeError as error:
            raise UserError(f"--executor_options {options}: {error}; see datatrove's {executor.__name__}") from error
    assert last is not None
    last.run()
    if name != "slurm" and not (preparation.output / "manifest.json").is_file():
        raise UserError(f"{preparation.output}: not all parts were prepared; the reason is in the logs in {logs}")


def _executor_class(name: str):
    try:
        import datatrove.executor as executors

        if name == "ray":
            import ray

            ray.init(ignore_reinit_error=True)  # joins the cluster that RAY_ADDRESS names, or that runs here
            return executors.RayPipelineExecutor
        return executors.LocalPipelineExecutor if name == "local" else executors.SlurmPipelineExecutor
    except ImportError as error:
        raise UserError(f"--executor {name}: {error.name} is not installed; install it: {_EXTRA}") from error


def _activate() -> str | None:
    file = Path(sys.prefix) / "bin" / "activate"
    return str(file) if file.is_file() else None
