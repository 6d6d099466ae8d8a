"""Compare the engine's step with benchmarks/reference/recipe.py on one rank, case after case.

Rank 0 prints a JSON line per case and accumulation. Each argument is a case:
{"deepspeed": name in ds_configs/deepspeed, "family": "bert", "dtype": "float32", "optimizer": "auto",
"accumulations": [1, 2], "checkpointing": false, "freeze": false, "overflow": false, "batched": false, "clean": [],
"pruned": [[heads, columns] of each layer], "shape": {}}

"clean" has the numbers of the sequences that are not masked, "shape" what build_student is asked for besides.
"""

import contextlib
import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from benchmarks.reference.recipe import reference_losses, reference_step
from ds_distill.compression.prune_model import prune_model
from ds_distill.deepspeed_fixes import batch_gradient_copies
from ds_distill.distributed.process_group import start_distributed
from ds_distill.losses import VocabularyProjection
from ds_distill.losses.objective import Objective
from ds_distill.models.families import get_family_by_type
from ds_distill.models.layer_shapes import LayerShape
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher, weights_fingerprint
from ds_distill.recipe import Losses, Training
from ds_distill.training import checkpoint_writer
from ds_distill.training.compile import compile_step
from ds_distill.training.deepspeed_config import deepspeed_config
from ds_distill.training.engine import Engine
from ds_distill.training.optimizer import parameter_groups
from ds_distill.training.weights import gather_master_weights, load_checkpoint_weights

GLOBAL, LENGTH, STEPS, VOCABULARY = 8, 16, 5, 199


def batches(clean=()):
    """STEPS global batches with very unequal token and mask counts a sequence."""
    g = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        ids = torch.randint(5, VOCABULARY, (GLOBAL, LENGTH), generator=g)
        lengths = torch.randint(3, LENGTH + 1, (GLOBAL, 1), generator=g)
        mask = torch.arange(LENGTH) < lengths
        masked = (torch.rand(GLOBAL, LENGTH, generator=g) < torch.rand(GLOBAL, 1, generator=g) * 0.6) & mask
        masked[0, 1] = True
        masked[list(clean)] = False
        yield ids, torch.where(masked, ids, -100), mask


def random_encoder(family: str = "bert") -> PreTrainedModel:
    """The same every time, every parameter random; of a DeBERTa all layers share relative positions."""
    torch.manual_seed(0)
    names = get_family_by_type(family).names
    sizes = {
        "vocab_size": VOCABULARY,
        names.width: 32,
        names.depth: 4,
        names.heads: 4,
        names.feed_forward: 64,
        "max_position_embeddings": LENGTH + 2 * (family in ("camembert", "mpnet", "roberta", "xlm-roberta")),
    }
    of_deberta = {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
    }
    others = {
        "albert": {"embedding_size": 16},
        "deberta-v2": of_deberta,
        "electra": {"embedding_size": 16},
        "modernbert": {"local_attention": 8, "pad_token_id": 0},  # in local layers a token sees four to either side
    }
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **sizes, **others.get(family, {})))
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model


def relative(actual: dict, other: dict) -> float:
    difference = sum(float((actual[k].double() - other[k].double()).square().sum()) for k in other)
    return (difference / sum(float(other[k].double().square().sum()) for k in other)) ** 0.5


@contextlib.contextmanager
def fp16_on_a_cpu():
    """DeepSpeed refuses it there, though all of it works; with a loss scale that nothing overflows at."""

    def config(*arguments):
        result = deepspeed_config(*arguments)
        return result | {"fp16": result["fp16"] | {"initial_scale_power": 8}}

    here = get_accelerator()
    dtypes = [*here.supported_dtypes(), torch.float16]
    with (
        mock.patch.object(here, "is_fp16_supported", lambda: True),
        mock.patch.object(here, "supported_dtypes", lambda: dtypes),
        mock.patch("ds_distill.training.engine.deepspeed_config", config),
    ):
        yield


def run_case(what: dict, rank: int, world: int) -> None:
    bert = random_encoder(what.get("family", "bert"))
    # a sharp teacher: at a KL of 0.001 nats fp32's own rounding would be the difference
    words = bert.get_input_embeddings().weight.data
    words.mul_(5 * 32 / words.shape[1])  # a narrow vector has as large logits
    teacher = Teacher(bert)
    before, clean = weights_fingerprint(teacher.model), what.get("clean", [])
    looked_at = [row for row in range(GLOBAL) if row not in clean]
    shape = {"init_layers": [0, 3], "freeze_positions": what.get("freeze", False)} | what.get("shape", {})
    student = build_student(bert, dropout=0.0, **shape)
    if shapes := what.get("pruned"):
        prune_model(student, [LayerShape(*shape) for shape in shapes], "first")
    reference = copy.deepcopy(student)
    losses = reference_losses(reference, bert, *next(batches(clean)), masked_rows=looked_at)
    sum(w * x for w, x in zip((5.0, 2.0, 1.0), losses, strict=True)).backward()
    gradients = {k: p.grad.clone() for k, p in reference.named_parameters() if p.requires_grad}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    reference.zero_grad()
    recipe = Training(
        global_batch_size=GLOBAL,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        weight_decay=0.1,
        optimizer=what.get("optimizer", "auto"),
        deepspeed=f"ds_configs/deepspeed/{what['deepspeed']}.json",
    )
    options = {"lr": recipe.learning_rate, "betas": recipe.betas, "eps": recipe.eps}
    optimizer = torch.optim.AdamW(parameter_groups(reference, 0.1), **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / STEPS)
    start = {k: p.detach().clone() for k, p in reference.named_parameters()}
    expected = []
    for batch in batches(clean):
        expected.append(reference_step(reference, bert, optimizer, batch, masked_rows=looked_at))
        schedule.step()
    change = {k: p.detach() - start[k] for k, p in reference.named_parameters()}
    dtype = getattr(torch, what.get("dtype", "float32"))
    for accumulation in what["accumulations"]:
        recipe.micro_batch_size = GLOBAL // world // accumulation
        objective = Objective(copy.deepcopy(student), Losses(), world)
        frozen = teacher
        if what.get("compiled"):
            frozen = Teacher(copy.deepcopy(teacher.model))
            compile_step(objective, frozen, torch.device("cpu"))
        assert isinstance(objective.family.get_decoder(objective.model), VocabularyProjection)
        if what.get("checkpointing"):
            objective.model.gradient_checkpointing_enable()
        engine = Engine(
            objective, recipe, accumulation=accumulation, total_steps=STEPS, device=torch.device("cpu"), dtype=dtype
        )
        if what.get("batched"):
            batch_gradient_copies(engine.deepspeed.optimizer)
        loss_error, total_error, gradient_error, norm_error = 0.0, 0.0, None, None
        for step, (ids, labels, mask) in enumerate(batches(clean)):
            counts = int(mask.sum()), int((labels >= 0).sum()), int(mask[clean].sum())
            total = torch.zeros(3)
            for micro in range(accumulation):
                first = (micro * world + rank) * recipe.micro_batch_size
                part = slice(first, first + recipe.micro_batch_size)
                rows = torch.tensor([i - first for i in looked_at if part.start <= i < part.stop], dtype=torch.int64)
                targets = frozen.targets(ids[part], mask[part], masked_rows=rows if clean else None)
                given = ids[part], mask[part], labels[part], counts, targets
                loss, sums = engine(*given, masked_rows=rows if clean else None)
                total += sums
                engine.backward(loss)
                if step == 0 and micro == accumulation - 1:
                    grads = {
                        k: safe_get_full_grad(p) for k, p in engine.module.model.named_parameters() if p.requires_grad
                    }
                    gradient_error = relative(grads, gradients)
                engine_norm = engine.step()
                if step == 0 and engine_norm is not None:
                    norm_error = abs(engine_norm / norm - 1)
            torch.distributed.all_reduce(total)
            means = total / torch.tensor([counts[0] - counts[2], counts[1], counts[0]])
            errors = [abs(float(a) / b - 1) for a, b in zip(means, expected[step], strict=True)]
            loss_error = max(loss_error, *errors)
            weighted = [
                sum(w * float(x) for w, x in zip((5.0, 2.0, 1.0), sums, strict=True))
                for sums in (means, expected[step])
            ]
            total_error = max(total_error, abs(weighted[0] / weighted[1] - 1))
        weights = gather_master_weights(engine)
        change_error = relative({k: weights[k] - start[k] for k in change}, change)
        saved = [tempfile.mkdtemp() if rank == 0 else None]
        torch.distributed.broadcast_object_list(saved)
        path = checkpoint_writer.save(engine, Path(saved[0]), STEPS, {}, keep=1)
        offline = load_checkpoint_weights(path, student) if rank == 0 else weights
        row = {
            "what": what,
            "accumulation": accumulation,
            "loss": loss_error,
            "total": total_error,
            "gradient": gradient_error,
            "norm": norm_error,
            "change": change_error,
            "teacher_untouched": weights_fingerprint(teacher.model) == before,
            "skipped": engine.skipped_steps,
            "checkpoint_holds_masters": all(torch.equal(offline[k], weights[k]) for k in weights),
            "frozen_kept": all(
                torch.equal(weights[k], p) for k, p in student.named_parameters() if not p.requires_grad
            ),
            "masters_beyond_16_bit": any(not torch.equal(w, w.bfloat16().float()) for w in weights.values()),
        }
        if what.get("overflow"):
            rate = engine.deepspeed.get_lr()
            ids, labels, mask = (x[: recipe.micro_batch_size] for x in next(batches()))
            for _ in range(accumulation):
                loss, _ = engine(ids, mask, labels, (1, 1), teacher.targets(ids, mask))
                engine.backward(loss * (float("inf") if rank == 0 else 1.0))  # one rank's overflow is everyone's
                engine.step()
            after = gather_master_weights(engine)
            row["overflow"] = [
                engine.skipped_steps,
                engine.deepspeed.get_lr() == rate,
                all(torch.equal(after[k], weights[k]) for k in weights),
            ]
        if rank == 0:
            print(json.dumps(row))
            shutil.rmtree(saved[0])
        engine.destroy()
    teacher.assert_frozen()


if __name__ == "__main__":
    place = start_distributed()
    for case in map(json.loads, sys.argv[1:]):
        with fp16_on_a_cpu() if case.get("dtype") == "float16" else contextlib.nullcontext():
            run_case(case, *place)
    deepspeed.comm.destroy_process_group()
