"""Checkpoints that are complete or absent: DeepSpeed writes beside, a rename publishes."""

import json
import os
import shutil
from pathlib import Path

import torch

from ds_distill.errors import UserError

SHAPE = "shape.json"  # stage, ranks and precision that wrote a checkpoint, and the parameters of each group


def all_of(folder: Path) -> dict[int, Path]:
    """The complete checkpoints in `folder`, by optimizer step, oldest first."""
    return {int(path.name.removeprefix("step-")): path for path in sorted(folder.glob("step-*"))}


def newest(folder: Path) -> Path | None:
    """The latest complete checkpoint in `folder`, or None."""
    return next(reversed(all_of(folder).values()), None)


def save(engine, folder: Path, step: int, state: dict, keep: int) -> Path:
    """Collective: write, publish, then delete all but the `keep` newest. state: what resume needs beside the engine."""
    partial, final = folder / ".partial", folder / f"step-{step:09d}"
    first = torch.distributed.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    torch.distributed.barrier()
    shape = _shape(engine)
    engine.save_checkpoint(str(partial), tag="state", client_state=state | {"step": step, "stage": shape["ZeRO stage"]}, save_latest=False)
    torch.distributed.barrier()
    if first:
        (partial / "state" / SHAPE).write_text(json.dumps(shape | {"groups": engine.parameter_names}) + "\n")
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial / "state", final)
        shutil.rmtree(partial)  # DeepSpeed leaves its conversion script beside the state
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)  # the rename itself must survive a power cut
        os.close(descriptor)
        for old in list(all_of(folder).values())[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()
    return final


def _shape(engine) -> dict:
    """What DeepSpeed's files of a checkpoint are cut by."""
    precision = str(next(engine.module.parameters()).dtype).removeprefix("torch.")
    return {"ZeRO stage": engine.zero_optimization_stage(), "ranks": torch.distributed.get_world_size(), "precision": precision}


def load(engine, path: Path) -> dict:
    """Collective: put the engine back to `path`; returns the state given to save. UserError where stage, ranks or precision differ."""
    shape = _shape(engine)
    before = json.loads((path / SHAPE).read_text())
    for key, now in shape.items():
        if before[key] != now:
            raise UserError(f"{path} was written with {key} {before[key]}, this run has {now}: go on with {before[key]}, or choose another --output")
    kept = [{key: group[key] for key in ("weight_decay", "initial_lr") if key in group} for group in engine.optimizer.param_groups]
    loaded, state = engine.load_checkpoint(str(path.parent), tag=path.name)
    if loaded is None:
        raise UserError(f"{path}: DeepSpeed could not load it; delete this folder to go on from the one before")
    # at stage 3 DeepSpeed copies the first group's hyper-parameters onto all
    for group, own in zip(engine.optimizer.param_groups, kept, strict=True):
        group.update(own)
    return state
