"""Run one rank: train, save and continue; or load what another shape saved, and continue.

Rank 0 prints a JSON line {name: losses}. The arguments are a folder, then "train STAGE DTYPE" or
"load STAGE DTYPE NAME" for each case, where NAME is that of a case that trained
(stage-dtype-ranks). With "refuse" instead of "load", the checkpoint must be refused. "train/torch"
uses torch's optimizer, and so do the other words with "/torch".
"""

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from deepspeed.checkpoint import ds_to_universal

from ds_distill.distributed.process_group import start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Training
from ds_distill.training import checkpoint, checkpoint_writer
from ds_distill.training.engine import Engine
from ds_distill.training.universal_checkpoint import conversion_bytes, make_universal
from ds_distill.utils.errors import UserError
from tests.distributed.step_worker import GLOBAL, batches, random_bert

BEFORE, STEPS = 2, 5  # optimizer steps up to the checkpoint, and in all


def converted_within_its_need(path: Path, target: Path) -> None:
    """Convert a checkpoint, and assert that the converter took no more disk than was asked for beforehand."""
    need, peak, remove = (
        conversion_bytes(path, sum(map(len, checkpoint.read_manifest(path)["groups"]))),
        [],
        shutil.rmtree,
    )

    def measure(folder, *arguments, **options):
        blocks = [file.stat().st_blocks for file in target.rglob("*")]
        peak.append(512 * sum(blocks))  # before the first removal there is most
        remove(folder, *arguments, **options)

    with mock.patch.object(ds_to_universal.shutil, "rmtree", measure):
        make_universal(path, target)
    assert 0 < max(peak) == peak[0] <= need, (peak, need)


def main() -> None:
    checkpoint.make_universal = converted_within_its_need
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    rank, world = start_distributed()
    for case in cases:
        kind, stage, dtype, *name = case.split()
        kind, _, optimizer = kind.partition("/")
        bert = random_bert()
        teacher = Teacher(bert)
        student = build_student(bert, init_layers=[0, 3], dropout=0.0)
        if name:  # makes every weight wrong that is not loaded
            for parameter in student.parameters():
                parameter.data.normal_(0, 0.2)
        micro = GLOBAL // world // (2 if kind == "train" else 1)
        recipe = Training(
            global_batch_size=GLOBAL,
            micro_batch_size=micro,
            learning_rate=1e-3,
            warmup_ratio=0.2,
            weight_decay=0.1,
            encoder_learning_rate=2e-4,
            optimizer=optimizer or "auto",
            deepspeed=f"ds_configs/deepspeed/zero{stage}.json",
        )
        accumulation = GLOBAL // world // micro
        engine = Engine(
            Objective(student, Losses(), world),
            recipe,
            accumulation=accumulation,
            total_steps=STEPS,
            device=torch.device("cpu"),
            dtype=getattr(torch, dtype),
        )
        key, first = f"{stage}-{dtype}-{world}", 0
        if kind == "refuse":
            try:
                checkpoint.resume(engine, folder / name[0])
            except UserError as error:
                print(json.dumps({"case": "refused", "refused": str(error)}))
            engine.destroy()
            continue
        if name:
            first = checkpoint.resume(engine, folder / name[0])["step"]
            key = f"{name[0]} → {key}"
        losses = []
        for step, (ids, labels, mask) in list(enumerate(batches()))[first:]:
            counts, total = (int(mask.sum()), int((labels >= 0).sum())), torch.zeros(3)
            for micro_step in range(accumulation):
                at = (micro_step * world + rank) * micro
                part = slice(at, at + micro)
                loss, sums = engine(ids[part], mask[part], labels[part], counts, teacher.targets(ids[part], mask[part]))
                total += sums
                engine.backward(loss)
                engine.step()
            torch.distributed.all_reduce(total)
            if step == BEFORE:
                rates = engine.deepspeed.get_lr()
            losses.append(float(5 * total[0] / counts[0] + 2 * total[1] / counts[1] + total[2] / counts[0]))
            if not name and step + 1 == BEFORE:
                checkpoint_writer.save(engine, folder / key, BEFORE, {}, keep=1)
        decays = sorted({group["weight_decay"] for group in engine.deepspeed.optimizer.param_groups})
        if rank == 0:
            print(
                json.dumps(
                    {"case": key, "losses": losses if name else losses[BEFORE:], "decays": decays, "rates": rates}
                )
            )
        engine.destroy()


if __name__ == "__main__":
    main()
