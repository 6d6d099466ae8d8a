"""Evaluate a masked-LM model and a bare encoder on one rank, under each ZeRO stage that an argument names.

Rank 0 prints a JSON line of each one's figures per stage, after it has compared them with those of the other ranks.
The bare encoder is narrower than its teacher, so that its term owns a projection, which ZeRO 3 partitions here.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ds_distill.data.batch import Batch
from ds_distill.data.masking import IGNORE_INDEX
from ds_distill.distributed.process_group import all_gather_object, start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Training
from ds_distill.training.engine import Engine
from ds_distill.training.evaluation import evaluate
from ds_distill.training.matched_evaluation import evaluate_matches
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


def share_unmasked(whole: list[Batch], rank: int, world: int) -> list[Batch]:
    """Return the batches of a rank where no token is guessed; one that only fills up has one sequence."""
    row = [x[:1] for x in (whole[0].input_ids, whole[0].labels, whole[0].attention_mask)]
    nothing = Batch(*row, loss_mask=torch.zeros_like(row[2]), shows_mask=row[0] == MASK)
    return [*whole, *[nothing] * (-len(whole) % world)][rank::world]


def main() -> None:
    rank, world = start_distributed()
    device, batches_of_all = torch.device("cpu"), list(heldout_batches())
    teacher = Teacher(random_encoder())

    def run(objective: Objective, stage: str, figures_of: Callable[[Engine], dict]) -> None:
        zero = json.loads(Path(f"ds_configs/deepspeed/{stage}.json").read_text())
        if stage == "zero3":
            zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(zero, file)
            file.flush()
            settings = Training(global_batch_size=world, micro_batch_size=1, deepspeed=file.name)
            engine = Engine(objective, settings, accumulation=1, total_steps=1, device=device, dtype=torch.float32)
        figures = figures_of(engine)
        assert all(other == figures for other in all_gather_object(figures)), "the ranks disagree"
        assert engine.training
        if rank == 0:
            print(json.dumps(figures))
        engine.destroy()

    for stage in sys.argv[1:]:
        guesses = share(batches_of_all, rank, world)
        run(
            Objective(random_encoder(), Losses().without_teacher(), world),
            stage,
            lambda engine, own=guesses: evaluate(engine, own, device),
        )
        torch.manual_seed(1)
        student = build_student(teacher.model, init_layers=[0, 2], hidden_size=16, dropout=0.0, head=False)
        bare = Objective(student, Losses(0.0, 0.0, 1.0), world, teacher.config, [0, 2])
        own = share_unmasked(batches_of_all[::-1], rank, world)
        run(bare, stage, lambda engine, bare=bare, own=own: evaluate_matches(engine, bare, teacher, own, device))


if __name__ == "__main__":
    main()
