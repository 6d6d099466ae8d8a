"""Run one rank: train, save and continue; or load what another shape saved, and continue.

Rank 0 prints a JSON line {name: losses}. The arguments are a folder, then "train STAGE DTYPE" or
"load STAGE DTYPE NAME" for each case, where NAME is that of a case that trained
(stage-dtype-ranks). "relay" instead of "load" saves again after one more step. With "refuse", the
checkpoint must be refused. With "longer", the rates are printed at which a run of twice the steps
continues. "train/torch" uses torch's optimizer, and so do the other words with
"/torch". Where the ranks cannot have equal shares of the batch, the smaller ones are filled up.
"""

import json
import shutil
import sys
import zlib
from pathlib import Path
from unittest import mock

import torch
from deepspeed.checkpoint import ds_to_universal

from ds_distill.data.batch import Batch, BatchArrays
from ds_distill.data.shares import Shares, fill_up
from ds_distill.distributed.process_group import all_gather_object, start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Training
from ds_distill.training import checkpoint, checkpoint_writer
from ds_distill.training.engine import Engine
from ds_distill.training.schedule import linear_schedule
from ds_distill.training.universal_checkpoint import conversion_bytes, make_universal
from ds_distill.utils.errors import UserError
from tests.distributed.step_worker import GLOBAL, batches, random_encoder

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


def filled(ids, labels, mask, sequences: int, rows: int) -> Batch:
    """Return a micro-batch as the loader makes it."""
    arrays = BatchArrays(ids.numpy(), labels.numpy(), mask.numpy(), None, None)
    return Batch.from_arrays(fill_up(arrays, sequences, rows))


def main() -> None:
    checkpoint.make_universal = converted_within_its_need
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    rank, world = start_distributed()
    for case in cases:
        kind, stage, dtype, *name = case.split()
        kind, _, optimizer = kind.partition("/")
        bert = random_encoder()
        teacher = Teacher(bert)
        student = build_student(bert, init_layers=[0, 3], dropout=0.0)
        if name:  # makes every weight wrong that is not loaded
            for parameter in student.parameters():
                parameter.data.normal_(0, 0.2)
        micro = -(-GLOBAL // world // (2 if kind == "train" else 1))
        shares = Shares(GLOBAL, micro, world)
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
        engine = Engine(
            Objective(student, Losses(), world),
            recipe,
            accumulation=shares.accumulation,
            total_steps=2 * STEPS if kind == "longer" else STEPS,
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
        if kind == "longer":
            factor = linear_schedule(round(recipe.warmup_ratio * 2 * STEPS), 2 * STEPS)(first)
            groups = engine.deepspeed.optimizer.param_groups
            told = {"next": engine.learning_rate, "factors": [group["lr"] / group["initial_lr"] for group in groups]}
            print(json.dumps({"case": key, "factor": factor, "groups": len(groups), **told}))
            engine.destroy()
            continue
        save_at = first + 1 if kind == "relay" else None if name else BEFORE
        losses, digests = [], []
        for step, (ids, labels, mask) in list(enumerate(batches()))[first:]:
            counts, total = (int(mask.sum()), int((labels >= 0).sum())), torch.zeros(3)
            rows: list[tuple] = []  # those that this rank's losses count
            for micro_step in range(shares.accumulation):
                part = shares.part(micro_step, rank)
                sequences = part.stop - part.start
                shown = part if sequences else slice(0, 1)
                batch = filled(ids[shown], labels[shown], mask[shown], sequences, shares.rows)
                inputs = batch.input_ids, batch.attention_mask
                loss, sums = engine(*inputs, batch.labels, counts, teacher.targets(*inputs), loss_mask=batch.loss_mask)
                total += sums
                engine.backward(loss)
                engine.step()
                counted = batch.token_mask if batch.loss_mask is None else batch.loss_mask
                rows += [
                    (x[m].tolist(), y.tolist())
                    for x, y, m in zip(batch.input_ids, batch.labels, counted, strict=True)
                    if m.any()
                ]
            torch.distributed.all_reduce(total)
            digests.append(zlib.crc32(repr(sorted(row for part in all_gather_object(rows) for row in part)).encode()))
            if step == max(first, BEFORE):
                rates = engine.deepspeed.get_lr()
            losses.append(float(5 * total[0] / counts[0] + 2 * total[1] / counts[1] + total[2] / counts[0]))
            if step + 1 == save_at:
                checkpoint_writer.save(engine, folder / f"{stage}-{dtype}-{world}", save_at, {}, keep=1)
        decays = sorted({group["weight_decay"] for group in engine.deepspeed.optimizer.param_groups})
        if rank == 0:
            shown_losses = losses if name else losses[BEFORE:]
            row = {"case": key, "losses": shown_losses, "decays": decays, "rates": rates, "batches": digests}
            print(json.dumps(row))
        engine.destroy()


if __name__ == "__main__":
    main()
