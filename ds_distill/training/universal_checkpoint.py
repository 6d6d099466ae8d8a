"""Conversion of a ZeRO checkpoint for another stage or number of ranks.

It goes through DeepSpeed's universal checkpoint, with one file per parameter.
"""

import argparse
import shutil
from pathlib import Path

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.checkpoint.constants import DS_VERSION, OPTIMIZER_STATE_DICT, PARAM, PARAM_GROUPS

from ds_distill.deepspeed_fixes import regex_safe_path, silent_converters


def make_universal(checkpoint: Path, target: Path) -> None:
    """Convert `checkpoint` into the folder `target`, which engines of any ZeRO stage from 1 to 3 can load.

    The number of ranks does not matter either. DeepSpeed's converter writes optimizer_state.pt and
    the model states for engines of the original stage; here one folder holds both kinds. Frozen
    parameters are left out, because they are those that the run started from.
    """
    target.mkdir(parents=True)
    with regex_safe_path(checkpoint) as source, regex_safe_path(target) as result, silent_converters():
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
