"""Evaluate one model on one rank, under each ZeRO stage that an argument names.

Rank 0 prints a JSON line of figures per stage, after it has compared them with those of the other ranks.
"""

import json
import sys
from dataclasses import replace

import torch

from ds_distill.data.batch import Batch
from ds_distill.data.masking import IGNORE_INDEX
from ds_distill.distributed.process_group import all_gather_object, start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.recipe import Losses, Training
from ds_distill.training.engine import Engine
from ds_distill.training.evaluation import evaluate
from tests.distributed.step_worker import batches, random_encoder

MASK = 4


def heldout_batches():
    """Five batches of 8, 8, 8, 8 and 3 sequences."""
    g = torch.Generator().manual_seed(5)
    for number, (ids, labels, mask) in enumerate(batches()):
        fate = torch.rand(ids.shape, generator=g)
        shown = torch.where(fate < 0.6, MASK, torch.where(fate < 0.8, ids.flip(0), ids))
        rows = slice(0, 3 if number == 4 else None)
        input_ids = torch.where(labels >= 0, shown, ids)[rows]
        yield Batch(input_ids, labels[rows], mask[rows], shows_mask=input_ids == MASK)


def share(whole: list[Batch], rank: int, world: int) -> list[Batch]:
    """Return the batches of a rank as data.loader.heldout_batches divides them."""
    nothing = replace(whole[0], labels=torch.full_like(whole[0].labels, IGNORE_INDEX))
    return [*whole, *[nothing] * (-len(whole) % world)][rank::world]


def main() -> None:
    rank, world = start_distributed()
    for stage in sys.argv[1:]:
        objective = Objective(random_encoder(), Losses().without_teacher(), world)
        settings = Training(global_batch_size=world, micro_batch_size=1, deepspeed=f"ds_configs/deepspeed/{stage}.json")
        device = torch.device("cpu")
        engine = Engine(objective, settings, accumulation=1, total_steps=1, device=device, dtype=torch.float32)
        figures = evaluate(engine, share(list(heldout_batches()), rank, world), device)
        assert all(other == figures for other in all_gather_object(figures)), "the ranks disagree"
        assert engine.training
        if rank == 0:
            print(json.dumps(figures))
        engine.destroy()


if __name__ == "__main__":
    main()
