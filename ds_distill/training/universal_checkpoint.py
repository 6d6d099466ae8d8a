"""Conversion of a ZeRO checkpoint for another stage or number of ranks.

It goes through DeepSpeed's universal checkpoint, with one file per parameter.
"""

import argparse
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.checkpoint.constants import DS_VERSION, OPTIMIZER_STATE_DICT, PARAM, PARAM_GROUPS

from ds_distill.deepspeed_fixes import regex_safe_path, silent_converters
from ds_distill.utils.console import spinner
from ds_distill.utils.progress import note_progress

# A parameter, and each part of one that is divided between ranks, becomes a few small files, each with a header and
# the rest of a block of the disk.
_BYTES_PER_PART = 64 << 10


def conversion_bytes(checkpoint: Path, parameters: int) -> int:
    """Return the bytes of disk, at most, that converting a checkpoint of so many parameters takes beside it.

    DeepSpeed's converter has two copies of the optimizer's state at one time, divided by rank and
    merged. The model states are copied under two names.
    """
    shards = [file.stat().st_size for file in checkpoint.glob("*optim_states.pt")]
    model = max((file.stat().st_size for file in checkpoint.glob("*model_states.pt")), default=0)
    return 2 * sum(shards) + 2 * model + _BYTES_PER_PART * (parameters + len(shards))


def make_universal(checkpoint: Path, target: Path) -> None:
    """Convert `checkpoint` into the folder `target`, which engines of any ZeRO stage from 1 to 3 can load.

    The number of ranks does not matter either. DeepSpeed's converter writes optimizer_state.pt and
    the model states for engines of the original stage; here one folder holds both kinds. Frozen
    parameters are left out, because they are those that the run started from.
    """
    target.mkdir(parents=True)
    with (
        spinner(f"converting {checkpoint.name}"),
        regex_safe_path(checkpoint) as source,
        regex_safe_path(target) as result,
        silent_converters(),
        mock.patch.object(ds_to_universal, "tqdm", SimpleNamespace(tqdm=_noting_progress)),
    ):
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(source),
                output_folder=str(result),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
    states = sorted(target.glob("*model_states.pt"), key=lambda file: (len(file.name), file.name))
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        if not (target / name).exists():
            shutil.copyfile(states[0], target / name)
    # an earlier version's name for the projection between widths, the only parameter outside the model
    if (projection := target / "zero" / "widen.weight").is_dir():
        projection.rename(target / "zero" / "matches.cosine.projection.weight")
    parameters = [file.parent for file in (target / "zero").rglob("exp_avg.pt")]
    file = target / "zero" / "optimizer_state.pt"
    # this program's own file
    state = torch.load(file, map_location="cpu", weights_only=False)
    optimizer = state.pop(OPTIMIZER_STATE_DICT, None)  # only stage 3 has it
    step = optimizer["state"][0]["step"] if optimizer else torch.load(parameters[0] / "step.pt", weights_only=False)
    groups = optimizer[PARAM_GROUPS] if optimizer else state[PARAM_GROUPS]
    small = {key: value for key, value in state.items() if key not in ("fp32_flat_groups", PARAM_GROUPS)}
    small.setdefault(DS_VERSION, deepspeed.__version__)  # stage 3 leaves it out, and the other stages ask for it
    torch.save(
        small | {PARAM_GROUPS: groups, OPTIMIZER_STATE_DICT: {"state": {0: {"step": step}}, PARAM_GROUPS: groups}}, file
    )
    for folder in parameters if optimizer else ():
        torch.save(step, folder / "step.pt")
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            torch.save({PARAM: torch.load(folder / f"{key}.pt", weights_only=False)}, folder / f"{key}.pt")


def _noting_progress(items: Iterable[Any], *_: Any, **__: Any) -> Iterator[Any]:
    """Yield the items, in place of the converter's own bar; the other ranks wait, and the job is not stalled."""
    for item in items:
        yield item
        note_progress()
