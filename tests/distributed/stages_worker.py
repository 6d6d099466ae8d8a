"""Take a run's stages on these ranks, one case after another, and say what moved in each of them.

Rank 0 prints a JSON line per case. Each argument is a case: {"deepspeed": name in ds_configs/deepspeed, "dtype":
"float32", "resumed": [steps after which a run resumes from its checkpoint], "quantize": the format in whose arithmetic
the last stage is}.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import deepspeed
import numpy as np
import torch

from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.distributed.process_group import start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.models.families import get_family
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match, Recipe, Stage, Training
from ds_distill.stages import spans_of
from ds_distill.training import checkpoint, checkpoint_writer
from ds_distill.training.stages import Stages
from ds_distill.training.step import Step
from ds_distill.training.weights import gather_master_weights, trained_class
from tests.distributed.step_worker import GLOBAL, LENGTH, batches, random_encoder

STEPS = 8
LAYERS_ONLY = {"kl": 0.0, "mlm": 0.0, "cosine": 0.0, "match": [Match("mse", weight=10.0)]}
STAGES = [
    Stage(0.25, LAYERS_ONLY, [0], teacher_forced=True),
    # nothing reaches layer 1, nor what comes after the queries, keys and values of layer 0
    Stage(0.25, {**LAYERS_ONLY, "match": [Match("relation", layers=[(0, 0)], weight=10.0)]}),
    Stage(0.25, {}, [1, "head"], learning_rate=2e-3),
    Stage(0.25),
]


def recipe_of(case: dict, micro: int) -> Recipe:
    training = Training(
        global_batch_size=GLOBAL,
        micro_batch_size=micro,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        weight_decay=0.1,
        dropout=0.0,
        compile="off",
        deepspeed=f"ds_configs/deepspeed/{case['deepspeed']}.json",
    )
    last = replace(STAGES[-1], quantize=case.get("quantize"))
    recipe = Recipe(losses=Losses(), training=training, stages=[*STAGES[:-1], last])
    recipe.check()
    return recipe


def changed_parts(before: dict, after: dict, model) -> list:
    """Return the parts of a student of which a weight has another bit: its layers, "embeddings" and "head"."""
    family = get_family(model)
    layers = f"{family.layers}."
    moved = set()
    for name in after:
        if not torch.equal(before[name], after[name]):
            inside = name.startswith(f"{family.encoder}.")
            moved.add(
                int(name.removeprefix(layers).split(".")[0])
                if name.startswith(layers)
                else "embeddings"
                if inside
                else "head"
            )
    return sorted(moved, key=str)


def run_case(case: dict, rank: int, world: int) -> None:
    micro = GLOBAL // world // 2
    recipe, device, dtype = recipe_of(case, micro), torch.device("cpu"), getattr(torch, case.get("dtype", "float32"))
    bert = random_encoder()
    teacher = Teacher(bert.to(dtype))

    def start() -> Stages:
        student = build_student(random_encoder(), init_layers=[0, 3], dropout=0.0)
        spans = spans_of(recipe, STEPS)
        return Stages(
            spans, student, bert.config, lambda model, losses: Objective(model, losses, world, bert.config, [0, 3])
        )

    def step_of(objective: Objective, span) -> Step:
        return Step(
            objective,
            teacher,
            recipe,
            steps=STEPS,
            accumulation=2,
            length=LENGTH,
            documents=False,
            device=device,
            dtype=dtype,
            span=span,
        )

    def take(step: Step, number: int) -> list[float]:
        ids, labels, mask = list(batches())[number % 5]
        counts = TokenCounts(int(mask.sum()), int((labels >= 0).sum()))
        parts = [slice((m * world + rank) * micro, (m * world + rank + 1) * micro) for m in range(2)]
        sums, _ = step(number, [Batch(ids[part], labels[part], mask[part]) for part in parts], counts)
        total = torch.stack(sums).sum(0)
        torch.distributed.all_reduce(total)
        return total.tolist()

    stages = start()
    objective, moved, terms, sums = stages.begin(0, None), [], [], []
    step = step_of(objective, stages.at(0))
    before = gather_master_weights(step.engine)
    saved = [tempfile.mkdtemp() if rank == 0 else None]
    torch.distributed.broadcast_object_list(saved)
    paths: dict[int, Path] = {}
    for number in range(STEPS):
        sums.append(take(step, number))
        if stages.at(number + 1).end == number + 1 or stages.at(number + 1) != stages.at(number):
            after = gather_master_weights(step.engine)
            moved.append(changed_parts(before, after, step.engine.module.model))
            terms.append(list(step.engine.module.weights))
            before = after
            if (span := stages.at(number + 1)) != stages.at(number):
                step = step_of(stages.next(span, step.engine), span)
        if number + 1 in case["resumed"]:
            paths[number + 1] = checkpoint_writer.save(step.engine, Path(saved[0]), number + 1, {}, keep=STEPS)
    final = gather_master_weights(step.engine)
    step.engine.destroy()
    equal = []
    for done, path in paths.items():
        resumed = start()
        step = step_of(resumed.begin(done, path), resumed.at(done))
        checkpoint.load(step.engine, path)
        for number in range(done, STEPS):
            take(step, number)
            if (span := resumed.at(number + 1)) != resumed.at(number):
                step = step_of(resumed.next(span, step.engine), span)
        again = gather_master_weights(step.engine)
        model = step.engine.module.model  # whose head a checkpoint has in stages that do not train it, too
        same = type(trained_class(path, model.config)) is type(model)
        equal.append(same and all(torch.equal(again[name], final[name]) for name in final))
        step.engine.destroy()
    if rank == 0:
        sample = np.concatenate([final[name].flatten()[:50].double() for name in sorted(final)]).tolist()
        print(
            json.dumps(
                {"case": case, "moved": moved, "terms": terms, "sums": sums, "resumed": equal, "weights": sample}
            )
        )


if __name__ == "__main__":
    place = start_distributed()
    for given in map(json.loads, sys.argv[1:]):
        run_case(given, *place)
    deepspeed.comm.destroy_process_group()
