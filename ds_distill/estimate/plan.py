"""The plan of a run before it starts: memory, steps, hours and dollars, and one sentence that says it all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import cast

from transformers import PretrainedConfig

from ds_distill.data.sources import check_weights
from ds_distill.data.token_files import open_manifest
from ds_distill.estimate.corpora import EpochSize
from ds_distill.estimate.estimate import ENOUGH, HEADROOM, Estimator
from ds_distill.estimate.hardware import (
    Device,
    find_device,
)
from ds_distill.estimate.known_models import KnownModel
from ds_distill.estimate.memory import GIB
from ds_distill.estimate.result import expected_result
from ds_distill.estimate.scaling import NETWORK, Exchange, Scale, scale, strong_scaling
from ds_distill.estimate.sentence import write_sentence
from ds_distill.estimate.speed import Speed, find_speed, less_network
from ds_distill.models.families import could_recompute
from ds_distill.models.folder import ModelFolder
from ds_distill.models.student import count_parameters
from ds_distill.recipe import Recipe, Training
from ds_distill.stages import spans_of
from ds_distill.utils.errors import UserError

BERT_VOCABULARY = 30_522  # tokens of BERT's uncased tokenizer, in which corpora are counted
NODE = 8  # GPUs that exchange within a node, where this is faster than the network and is not counted


def plan(
    recipe: Recipe,
    teachers: Sequence[ModelFolder | KnownModel],
    tokens: str | None,
    ranks: int,
    memory_gib: float | None,
    tokens_per_second: float | None,
    gpu: str | None = None,
    epoch: EpochSize | None = None,
    price: float | None = None,
    start: ModelFolder | KnownModel | None = None,
    network: float = NETWORK,
) -> dict:
    """Return what the recipe takes on `ranks` devices of `memory_gib` GiB.

    Args:
        recipe: The recipe.
        teachers: The teachers.
        tokens: A prepared folder, which tells how long an epoch is.
        ranks: The number of devices.
        memory_gib: Memory per device; that of `gpu`, or this machine's, if None.
        tokens_per_second: The rate of all ranks together. If None, it follows from measured rates where
            `gpu` is given, and is else measured here on one rank, briefly.
        gpu: The kind of GPU to estimate for: a key of `hardware.DEVICES`. This machine's device if None.
        epoch: How long an epoch is, where there is no prepared folder.
        price: US dollars per device and hour; the table's for `gpu` if None.
        start: The model that student.from names, if it does.
        network: GB per second that each device can send to others.
    """
    for key, value in (
        ("--ranks", ranks),
        ("--memory_gib", memory_gib),
        ("--tokens_per_second", tokens_per_second),
        ("--price", price),
        ("--network", network),
    ):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{key} {value}: must be above 0")
    device = find_device(gpu) if gpu else None
    estimator = Estimator(recipe, teachers, device, start)
    training, stage = copy.copy(recipe.training), estimator.stage
    available, in_use = estimator.available_memory()
    available = memory_gib * GIB if memory_gib else available
    largest = estimator.largest_micro_batch(stage, ranks, available, in_use)
    micro_batch_size: int = (
        max(largest, 1) if training.micro_batch_size == "auto" else training.resolve_micro_batch(ranks)
    )
    training.micro_batch_size = micro_batch_size
    rows = _memory_rows(estimator, micro_batch_size, ranks, available, in_use)
    step_tokens, total_tokens = _run_tokens(recipe, estimator.length, tokens, epoch)
    speed = find_speed(estimator, gpu, micro_batch_size, ranks, tokens_per_second, total_tokens)
    student_parameters = count_parameters(estimator.student)
    scaling = _scaling(estimator, device, speed, ranks, student_parameters, micro_batch_size, network)
    if scaling and speed.kind != "given" and ranks > NODE:
        speed = less_network(speed, scaling(ranks).tokens_per_second, network)
    rate = speed.tokens_per_second
    flops, first = estimator.flops_per_token, estimator.configs[0]
    hours = total_tokens / rate / 3600 if total_tokens else None
    price_source = "given" if price else device.price_source if device else None
    price = price or (device.price if device else None)
    notes = [*speed.notes]
    if stage == 3 and rows[1]["fits"] == "yes":
        notes.append(
            "ZeRO 3 does not pay here: it gathers all weights twice in every micro-batch and leaves the blocks "
            f"uncompiled, to save {rows[1]['peak'] - rows[3]['peak']:.1f} GiB that ZeRO 1, which fits, would take."
        )
    if epoch and epoch.title and first.vocab_size != BERT_VOCABULARY:
        notes.append("The corpus is counted in tokens of BERT's uncased tokenizer; this teacher's makes more or fewer.")
    for teacher in teachers if recipe.compares_logits else ():
        names = teacher.config.architectures or ["ForMaskedLM"]
        if not any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in names):
            notes.insert(
                0,
                f"{teacher.title} has no masked-LM head: add one first with `ds-distill pretrain --from`, or distill "
                "its encoder alone with losses.kl = 0 and losses.mlm = 0.",
            )
    if recipe.stages:
        notes.append(
            "Memory and (unless it was measured here) the rate are estimated as if every part of the student were "
            "trained in every stage."
        )
    steps = math.ceil(total_tokens / step_tokens) if total_tokens else None
    estimate = {
        "teacher_parameters": sum(map(count_parameters, estimator.teachers)),
        "student_parameters": student_parameters,
        "mflops_per_token": round(flops / 1e6, 1),
        "tokens_per_step": step_tokens,
        "corpus": epoch and epoch._asdict(),
        "tokens": total_tokens,
        "steps": steps,
        "run_stages": [
            f"{span.stage.share:.3g} of the steps, {span.describe() if steps else span.describe_work()}"
            for span in spans_of(recipe, steps or ENOUGH)
        ],
        "tokens_per_second": round(rate, 1),
        "rate_kind": speed.kind,
        "rate_is": speed.basis,
        "tflops_needed": round(flops * rate / 1e12, 3),
        "hours": None if hours is None else round(hours, 2),
        "price_per_device_hour": price,
        "price_is": price_source,
        "dollars": None if hours is None or price is None else round(hours * ranks * price, 2),
        "ranks": ranks,
        "gpu": device and device.title,
        "device": str(estimator.device),
        "precision": str(estimator.dtype).removeprefix("torch."),
        "memory_gib": round(available / GIB, 1),
        "micro_batch_size": micro_batch_size,
        "largest_micro_batch": largest,
        "stages": rows,
        "advice": _advice(rows[stage], rows, largest, training, estimator.student.config),
        "scaling": scaling and strong_scaling(scaling, training.global_batch_size, total_tokens, network),
        "expected_student": expected_result(
            first, estimator.student.config, student_parameters, estimator.uses_teacher
        ),
        "notes": notes,
    }
    return {"sentence": write_sentence(estimate, teachers, recipe, stage)} | estimate


def _scaling(
    estimator: Estimator,
    gpu: Device | None,
    speed: Speed,
    ranks: int,
    parameters: int,
    micro_batch_size: int,
    network: float,
) -> Callable[[int], Scale] | None:
    """Return the function that tells a step on a number of devices; None for CPUs."""
    if estimator.device.type == "cpu":
        return None
    training = estimator.recipe.training
    between = training.deepspeed_json().get("communication_data_type")
    # gradients travel in fp32 unless the DeepSpeed JSON says otherwise, at stage 0 as they are
    usual = estimator.dtype.itemsize if estimator.stage == 0 else 4
    gradient = {"fp16": 2, "bf16": 2, "fp32": 4}.get(str(between), usual)
    exchange = Exchange(parameters, estimator.stage, gradient, estimator.dtype.itemsize)

    def rate(sequences: int) -> float:
        if gpu and speed.kind != "given":
            return estimator.known_rate(gpu, sequences).tokens_per_second
        return speed.tokens_per_second / ranks

    def one(devices: int) -> Scale:
        sequences = training.global_batch_size
        return scale(devices, sequences, estimator.length, micro_batch_size, rate, exchange, network)

    return one


def _memory_rows(
    estimator: Estimator, micro_batch_size: int, ranks: int, available: float, in_use: float
) -> list[dict]:
    """Return the memory per rank in GiB at each ZeRO stage."""
    rows = []
    for zero_stage in range(4):
        need = estimator.memory(micro_batch_size, zero_stage, ranks)
        peak = need.peak + in_use
        rows.append(
            {
                "stage": zero_stage,
                **{key: value / GIB for key, value in vars(need).items()},
                "process": in_use / GIB,
                "peak": peak / GIB,
                "fits": "yes" if peak <= HEADROOM * available else "no",
                "recipe": "this recipe" if zero_stage == estimator.stage else "",
            }
        )
    return rows


def _run_tokens(recipe: Recipe, length: int, tokens: str | None, epoch: EpochSize | None) -> tuple[int, int | None]:
    """Return (tokens per step, tokens of the whole run or None where its length is unknown)."""
    training = recipe.training
    step_tokens = training.global_batch_size * length
    total_tokens = training.max_tokens or None
    if tokens:
        manifest = open_manifest(tokens)
        step_tokens = round(
            training.global_batch_size * manifest["real_tokens"]["train"] / max(1, manifest["blocks"]["train"])
        )
        weights = recipe.data.weights or [1.0] * len(manifest["sources"])
        check_weights(weights, len(manifest["sources"]))
        total_tokens = total_tokens or training.epochs * round(
            sum(weight * source["tokens"]["train"] for weight, source in zip(weights, manifest["sources"], strict=True))
        )
    if epoch:
        total_tokens = total_tokens or training.epochs * epoch.tokens
    return step_tokens, total_tokens


def _advice(own_row: dict, rows: list[dict], largest: int, training: Training, config: PretrainedConfig) -> str:
    if own_row["fits"] == "yes":
        return "fits" + (
            f"; training.micro_batch_size = {largest} fits too"
            if largest > cast(int, training.micro_batch_size)
            else ""
        )
    if largest:
        return f"does not fit; use training.micro_batch_size = {largest}"
    other = next((row["stage"] for row in rows if row["fits"] == "yes"), None)
    if other is not None:
        return f"does not fit; use ZeRO stage {other} (training.deepspeed = ds_configs/deepspeed/zero{other}.json)"
    checkpointing = ", set training.gradient_checkpointing = true" if could_recompute(config, training) else ""
    return f"does not fit at any ZeRO stage; lower data.sequence_length{checkpointing}, or use more ranks"
