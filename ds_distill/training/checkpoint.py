"""Checkpoints on disk: listed, checked and loaded, also into another shape.

`checkpoint_writer.py` writes them.
"""

import contextlib
import functools
import io
import os
import shutil
import zlib
from pathlib import Path

import torch
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

from ds_distill.deepspeed_fixes import regex_safe_path
from ds_distill.distributed.process_group import all_gather_object, broadcast_object, run_on_rank0
from ds_distill.training.engine import Engine
from ds_distill.training.trusted import check_trusted
from ds_distill.training.universal_checkpoint import conversion_bytes, make_universal
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import read_json_object, remove
from ds_distill.utils.resources import explain_disk_full

FROZEN = "frozen.safetensors"  # fp32 weights that a 16-bit run does not train
# The manifest holds the properties that the checkpoint is divided by (stage, ranks, precision), the
# parameters of each group, and the size and checksum of every file.
MANIFEST = "manifest.json"
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # torch's name → the recipe's
CHUNK = 2**24


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Return the published checkpoints in `folder`, by optimizer step, oldest first."""
    found = {
        step_of(path): path
        for path in folder.glob("step-*")
        # a link that leads nowhere is a checkpoint that is missing
        if path.name.removeprefix("step-").isdecimal() and not path.is_file()
    }
    return dict(sorted(found.items()))


def step_of(path: Path) -> int:
    """Return the optimizer step of a published checkpoint."""
    return int(path.name.removeprefix("step-"))


def read_manifest(path: Path) -> dict:
    """Return a checkpoint's manifest; raise UserError where it has none that can be read, or one that lacks a part."""
    try:
        manifest = read_json_object(path / MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: its {MANIFEST} cannot be read ({error})") from error
    if lacking := [key for key in ("files", "shape", "groups") if not manifest.get(key)]:
        raise UserError(f"{path}: its {MANIFEST} has no {' and no '.join(lacking)}")
    return manifest


def shape_of(engine: Engine) -> dict:
    """Return the properties that determine how DeepSpeed divides a checkpoint into files."""
    precision = str(next(engine.module.parameters()).dtype).removeprefix("torch.")
    return {
        "ZeRO stage": engine.deepspeed.zero_optimization_stage(),
        "ranks": torch.distributed.get_world_size(),
        "precision": precision,
    }


def optimizer_package(engine: Engine) -> str:
    """Return whose Adam the engine runs, by the recipe's name for it."""
    return type(getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)).__module__.partition(".")[
        0
    ]


def _check_reads(engine: Engine, path: Path, before: str | None) -> None:
    """Raise UserError where the run's optimizer cannot continue from the state of another one, `before`.

    A fused optimizer never reads the state of torch's, which counts its steps elsewhere. In 16 bit
    at stage 0 no optimizer reads another's.
    """
    now = optimizer_package(engine)
    sixteen_bit_stage0 = not engine.deepspeed.zero_optimization() and isinstance(
        engine.deepspeed.optimizer, (FP16_Optimizer, FP16_UnfusedOptimizer)
    )
    if before and before != now and (sixteen_bit_stage0 or before == "torch"):
        raise UserError(
            f"{path} was written with {before}'s optimizer, whose state this run's optimizer, {now}'s, cannot read; "
            f"resume with training.optimizer = {before}, or choose another --output"
        )


def check_room(engine: Engine, folder: Path) -> None:
    """Collective: raise UserError where a checkpoint does not fit; a failed write would leave other ranks waiting."""

    def look() -> None:
        before = list(list_checkpoints(folder).values())
        if before:
            need = sum(file.stat().st_size for file in before[-1].iterdir())
        else:  # weights and both moments in fp32
            need = 12 * sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
        free = shutil.disk_usage(folder).free
        if free >= need:
            return
        kept = f"; the checkpoint {before[-1].name} is complete, and the same command resumes from it" if before else ""
        raise UserError(
            f"{folder}: the disk is full: a checkpoint needs {need / 2**20:,.1f} MiB, "
            f"and {free / 2**20:,.1f} MiB are free; free some space there{kept}"
        )

    run_on_rank0(look)


def _check_room_to_convert(path: Path) -> None:
    """Raise UserError where the conversion of a checkpoint does not fit beside it."""
    need = conversion_bytes(path, sum(map(len, read_manifest(path)["groups"])))
    if (free := shutil.disk_usage(path.parent).free) < need:
        raise UserError(
            f"{path.parent}: the disk is full: converting {path.name} to this run's shape takes "
            f"{need / 2**20:,.1f} MiB for a while, and {free / 2**20:,.1f} MiB are free; free some space there, "
            "or resume with the ranks and the ZeRO stage that it was written with"
        )


def _checksum(file: Path) -> tuple[int, int]:
    """Return (bytes, CRC-32) of a file."""
    size, crc = 0, 0
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def find_damage(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """Return what is wrong with a checkpoint's manifest or with this rank's share of its files, or None."""
    try:
        files = read_manifest(path)["files"]
        for name in list(files)[rank::world]:
            if not (path / name).is_file():
                return f"{name} is missing"
            if list(_checksum(path / name)) != files[name]:
                return f"{name} does not have the checksum that it was written with"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _find_damage_together(path: Path) -> str | None:
    """Collective: return what is wrong with a checkpoint, or None; the ranks share the reading."""
    mine = find_damage(path, torch.distributed.get_rank(), torch.distributed.get_world_size())
    return next((problem for problem in all_gather_object(mine) if problem), None)


def resume(engine: Engine, folder: Path) -> dict | None:
    """Collective: restore the engine from the newest sound checkpoint in `folder`, as `find_sound` finds it.

    Returns:
        The state that was given to `save`, or None where there is no checkpoint.
    """
    path = find_sound(folder)
    return None if path is None else load(engine, path)


def find_sound(folder: Path) -> Path | None:
    """Collective: return the newest sound checkpoint in `folder`; None where there is no checkpoint.

    A damaged checkpoint is set aside, a line reports it, and the one before is used.

    Raises:
        UserError: All checkpoints are damaged.
    """
    checkpoints = broadcast_object(list(list_checkpoints(folder).values()))
    problem = None
    for path in reversed(checkpoints):
        problem = _find_damage_together(path)
        if problem is None:
            return path
        run_on_rank0(functools.partial(_set_aside, path, problem))
    if problem:
        raise UserError(
            f"{folder}: every checkpoint is damaged ({problem}); restore one from a copy, or choose another "
            "--output to start over"
        )
    return None


def _set_aside(path: Path, problem: str) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    remove(aside)
    os.replace(path, aside)  # it must not count as one of the checkpoints to keep
    log(f"checkpoint {path.name} is damaged ({problem}): moved to {aside}; resuming from the one before")


def load(engine: Engine, path: Path) -> dict:
    """Collective: restore the engine from `path`, and return the state that was given to `save`.

    A change of the ZeRO stage (1 to 3) or of the number of ranks goes through DeepSpeed's universal
    checkpoint.

    Raises:
        UserError: The precision differs, one stage is 0 and the other is not, the optimizer's state
            cannot be read, or somebody else may have written the checkpoint.
    """
    run_on_rank0(lambda: check_trusted(path))
    now, manifest = shape_of(engine), read_manifest(path)
    before = manifest["shape"]
    if before["precision"] != now["precision"]:
        raise UserError(
            f"{path} was written with precision {before['precision']}, this run has {now['precision']}; resume with "
            f"training.precision = {PRECISIONS[before['precision']]}, or choose another --output"
        )
    stages = {now["ZeRO stage"], before["ZeRO stage"]}
    if 0 in stages and len(stages) > 1:
        raise UserError(
            f"{path} was written with ZeRO stage {before['ZeRO stage']}, this run has {now['ZeRO stage']}; "
            "stages 1, 2 and 3 can resume from each other, stage 0 cannot; resume with training.deepspeed = "
            f"ds_configs/deepspeed/zero{before['ZeRO stage']}.json, or choose another --output"
        )
    _check_reads(engine, path, manifest.get("optimizer"))
    kept = [
        {key: group[key] for key in ("weight_decay", "initial_lr") if key in group}
        for group in engine.deepspeed.optimizer.param_groups
    ]
    if before == now or 0 in stages:  # stage 0 keeps everything on every rank
        loaded, state = _load(engine, path)
    else:
        changes = ", ".join(f"{key} {before[key]} → {now[key]}" for key in now if before[key] != now[key])
        log(f"checkpoint {path.name}: converting it to this run's shape ({changes})")
        loaded, state = _load_converted(engine, path)
    if loaded is None:
        raise UserError(f"{path}: DeepSpeed could not load it; delete this folder to resume from the one before")
    # From a universal checkpoint, and always at stage 3, DeepSpeed copies one group's
    # hyperparameters onto all. The rates are not the saved ones where the run has become longer.
    for group, hyperparameters, rate in zip(
        engine.deepspeed.optimizer.param_groups, kept, engine.follow_schedule(), strict=True
    ):
        group.update(hyperparameters, lr=rate)
    return state


def _load(engine: Engine, path: Path) -> tuple:
    # DeepSpeed's 16-bit optimizer prints the name of a function past its own logger
    with regex_safe_path(path.parent) as folder, contextlib.redirect_stdout(io.StringIO()):
        return engine.deepspeed.load_checkpoint(str(folder), tag=path.name)


def _load_converted(engine: Engine, path: Path) -> tuple:
    converted = path.with_name(".universal")

    def convert() -> None:
        remove(converted)
        _check_room_to_convert(path)
        with explain_disk_full(path.parent):
            make_universal(path, converted)

    run_on_rank0(convert)
    engine.deepspeed._config.load_universal_checkpoint = True
    try:
        loaded = _load(engine, converted)
    finally:
        engine.deepspeed._config.load_universal_checkpoint = False
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(converted, ignore_errors=True)
    return loaded
