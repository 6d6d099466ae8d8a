"""Compare the engine's first gradient with that of the terms in their plain form, on one rank, case after case.

Rank 0 prints a JSON line per case and accumulation. Each argument is a case:
{"deepspeed": name in ds_configs/deepspeed, "accumulations": [1, 2], "alone": false, "checkpointing": false,
"compiled": false, "family": "bert"}. "alone" leaves a relation of the last layers as the only term; families other than
BERT's have only that.
"""

import copy
import json
import sys

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad
from torch.nn.functional import cross_entropy

from benchmarks.reference.matching import attention_loss, hidden_loss, inner_states, relation_loss
from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.distributed.process_group import start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.models.intermediates import Site
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match, Training
from ds_distill.training.compile import compile_step
from ds_distill.training.engine import Engine
from tests.distributed.step_worker import GLOBAL, batches, random_encoder, relative

RELATION = Match("relation", layers="last", weight=2.0)
MATCHES = [
    Match("relation", of=["query", "value", "query_key"], layers=[(0, 1), (1, 2)], heads=8, weight=2.0),
    Match("attention", layers="uniform", weight=0.05),
    Match("mse", of=["embeddings", "hidden"], layers="span_ends", weight=3.0, normalize=True),
    Match("cosine", weight=4.0),
]


def whole_batch() -> Batch:
    """Return a global batch with padding and documents that do not see each other."""
    ids, labels, mask = next(iter(batches()))
    documents = torch.div(torch.arange(ids.shape[1]), 6, rounding_mode="floor").expand_as(ids)
    return Batch(ids, labels, mask, torch.where(mask, documents, -1))


def deviation(site: Site) -> torch.Tensor:
    return torch.rand(32, generator=torch.Generator().manual_seed(7 + site.layer)) + 0.5


def plain_loss(objective: Objective, teacher: Teacher, batch: Batch, alone: bool) -> torch.Tensor:
    """Return the weighted loss of the whole batch, of the teacher with four layers and the student with two."""
    inputs, real = (batch.input_ids, batch.attention_mask), batch.token_mask
    own, documents = inner_states(objective.model, *inputs), batch.document_ids
    with torch.no_grad():
        wanted = inner_states(teacher.model, *inputs)

    def relation(a: str, b: str, low: int, high: int, heads: int) -> torch.Tensor:
        return relation_loss((own[a][low], own[b][low]), (wanted[a][high], wanted[b][high]), heads, real, documents)

    if alone:
        return 2.0 * sum(relation(name, name, 1, 3, 2) for name in ("query", "key", "value"))
    pairs = [("query", "query"), ("value", "value"), ("query", "key")]
    total = 2.0 * sum(relation(a, b, low, high, 8) for a, b in pairs for low, high in ((0, 1), (1, 2)))
    for low, high in ((0, 1), (1, 3)):
        vectors = [(states["query"][layer], states["key"][layer]) for states, layer in ((own, low), (wanted, high))]
        total = total + 0.05 * attention_loss(*vectors, 4, real, documents)
    mse, cosine = (objective.matches[name].projection for name in ("mse", "cosine"))
    for site, (low, high) in {
        Site("embeddings", 0): (0, 0),
        Site("hidden", 1): (0, 1),
        Site("hidden", -1): (1, 3),
    }.items():
        h, g = mse(own[site.quantity][low]) / deviation(site), wanted[site.quantity][high] / deviation(site)
        total = total + 3.0 * hidden_loss("mse", h, g, real)
    for low, high in ((0, 0), (1, 2)):
        total = total + 4.0 * hidden_loss("cosine", cosine(own["hidden"][low]), wanted["hidden"][high], real)
    masked = batch.labels >= 0
    head = objective.model.vocab_layer_norm(
        objective.model.activation(objective.model.vocab_transform(own["hidden"][-1][masked]))
    )
    decoder = objective.model.vocab_projector
    logits = head @ decoder.weight.T + decoder.bias
    return total + cross_entropy(logits, batch.labels[masked])


def narrow_student(bert):
    """Return a student of half the width; a DistilBERT has as many attention heads as its teacher."""
    student = build_student(bert, init_layers=[0, 2], hidden_size=16, dropout=0.0)
    if student.config.model_type != "distilbert":
        return student
    for layer in student.distilbert.transformer.layer:
        layer.attention.n_heads, layer.attention.attention_head_size, layer.attention.scaling = 4, 4, 0.5
    student.config.n_heads = 4
    return student


def run_case(what: dict, rank: int, world: int) -> None:
    alone = what.get("alone", False)
    bert = random_encoder(what.get("family", "bert"))
    for name, parameter in bert.named_parameters():
        # sharp relations: at a KL of 0.001 nats fp32's own rounding would be the difference
        if ".self." in name or "Wqkv" in name:
            parameter.data.mul_(3)
    teacher = Teacher(bert)
    student = narrow_student(teacher.model)
    losses = Losses(0.0, 0.0 if alone else 1.0, 0.0, match=[RELATION] if alone else MATCHES)
    batch = whole_batch()
    counts = TokenCounts(int(batch.token_mask.sum()), int((batch.labels >= 0).sum()))
    made = Objective(student, losses, world, teacher.config, [0, 2])
    for accumulation in what["accumulations"]:
        objective, frozen = copy.deepcopy(made), Teacher(copy.deepcopy(teacher.model))
        objective.divide_by({site: deviation(site) for site in objective.divided_sites})
        plain = plain_loss(objective, teacher, batch, alone)
        plain.backward()
        names = [name for name, _ in objective.named_parameters()]
        expected = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
        objective.zero_grad()
        if what.get("compiled"):
            compile_step(objective, frozen, torch.device("cpu"))
        if what.get("checkpointing"):
            objective.model.gradient_checkpointing_enable()
        recipe = Training(
            global_batch_size=GLOBAL,
            micro_batch_size=GLOBAL // world // accumulation,
            deepspeed=f"ds_configs/deepspeed/{what['deepspeed']}.json",
        )
        engine = Engine(
            objective,
            recipe,
            accumulation=accumulation,
            total_steps=5,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        total = torch.zeros(len(objective.weights))
        for micro in range(accumulation):
            first = (micro * world + rank) * recipe.micro_batch_size
            rows = slice(first, first + recipe.micro_batch_size)
            part = Batch(batch.input_ids[rows], batch.labels[rows], batch.token_mask[rows], batch.document_ids[rows])
            inputs = part.input_ids, part.attention_mask
            targets = frozen.targets(*inputs, sites=objective.teacher_sites)
            loss, sums = engine(*inputs, part.labels, counts, targets, document_ids=part.document_ids)
            total += sums
            engine.backward(loss)
            if micro == accumulation - 1:
                full = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters() if p.requires_grad}
                gradients = {name: None if g is None else g.clone() for name, g in full.items()}  # a step clips them
            engine.step()
        torch.distributed.all_reduce(total)
        means = objective.means(total.tolist(), counts)
        value = sum(objective.weights[name] * mean for name, mean in means.items())
        found = {name: gradients[name] for name in expected}
        row = {
            "what": what,
            "accumulation": accumulation,
            "loss": abs(value / plain.item() - 1),
            "gradient": relative(found, expected),
            "projections": sum("projection" in name for name in expected),
            "others": [
                name
                for name in names
                if name not in expected and gradients.get(name) is not None and gradients[name].any()
            ],
        }
        if rank == 0:
            print(json.dumps(row))
        engine.destroy()


if __name__ == "__main__":
    place = start_distributed()
    for case in map(json.loads, sys.argv[1:]):
        run_case(case, *place)
    deepspeed.comm.destroy_process_group()
