"""The plan of a run before it starts: memory, steps, hours and dollars, and one sentence that says it all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from transformers import PretrainedConfig

from ds_distill.data.shares import Shares
from ds_distill.data.token_files import open_manifest
from ds_distill.estimate.corpora import EpochSize
from ds_distill.estimate.estimate import ENOUGH, HEADROOM, Estimator
from ds_distill.estimate.hardware import (
    CPU_LONG,
    CPU_SHORT,
    DEVICES,
    H100_LARGE,
    H100_SMALL,
    Device,
    find_device,
    is_measured,
)
from ds_distill.estimate.known_models import KnownModel
from ds_distill.estimate.memory import GIB
from ds_distill.estimate.result import expected_result
from ds_distill.estimate.scaling import NETWORK, Exchange, Scale, scale, strong_scaling
from ds_distill.models.families import could_recompute
from ds_distill.models.folder import ModelFolder
from ds_distill.models.student import count_parameters
from ds_distill.recipe import Recipe, Training
from ds_distill.stages import spans_of
from ds_distill.utils.errors import UserError

BERT_VOCABULARY = 30_522  # tokens of BERT's uncased tokenizer, in which corpora are counted
NODE = 8  # GPUs that exchange within a node, where this is faster than the network and is not counted
# From this share of fixed cost on, a plan advises larger batches.
LARGE_FIXED_SHARE = 0.25
_NOT_COUNTED = "communication between them is not counted"
_COUNTED = "the time of their exchange is added in full"


class Speed(NamedTuple):
    """How fast all ranks together are, and how that is known.

    Args:
        tokens_per_second: Tokens per second of all ranks.
        kind: "given", "measured" (here), "estimated" (from measurements on this kind of GPU) or
            "extrapolated".
        basis: What the rate comes from, in words.
        notes: Sentences on what it does not cover.
    """

    tokens_per_second: float
    kind: str
    basis: str
    notes: list[str]


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
    speed = _speed(estimator, gpu, micro_batch_size, ranks, tokens_per_second, total_tokens)
    student_parameters = count_parameters(estimator.student)
    scaling = _scaling(estimator, device, speed, ranks, student_parameters, micro_batch_size, network)
    if scaling and speed.kind != "given" and ranks > NODE:
        speed = _less_network(speed, scaling(ranks).tokens_per_second, network)
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
            "Memory, and a rate that was not measured here, are as if every part of the student always learned."
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
    return {"sentence": _sentence(estimate, teachers, recipe, stage)} | estimate


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
    # gradients travel in fp32 unless the DeepSpeed JSON says otherwise
    exchange = Exchange(parameters, estimator.stage, 2 if between in ("fp16", "bf16") else 4, estimator.dtype.itemsize)

    def rate(sequences: int) -> float:
        if gpu and speed.kind != "given":
            return estimator.known_rate(gpu, sequences).tokens_per_second
        return speed.tokens_per_second / ranks

    def one(devices: int) -> Scale:
        sequences = training.global_batch_size
        return scale(devices, sequences, estimator.length, micro_batch_size, rate, exchange, network)

    return one


def _less_network(speed: Speed, tokens_per_second: float, network: float) -> Speed:
    """Return a rate of several nodes with what their devices exchange counted."""
    return speed._replace(
        tokens_per_second=tokens_per_second,
        basis=f"{speed.basis}, less the exchange of gradients and weights at {network:g} GB/s per device",
        notes=[note.replace(_NOT_COUNTED, _COUNTED) for note in speed.notes],
    )


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
        total_tokens = total_tokens or training.epochs * round(
            sum(
                weight * source["tokens"]["train"] for weight, source in zip(weights, manifest["sources"], strict=False)
            )
        )
    if epoch:
        total_tokens = total_tokens or training.epochs * epoch.tokens
    return step_tokens, total_tokens


def _speed(
    estimator: Estimator,
    gpu: str | None,
    micro_batch_size: int,
    ranks: int,
    tokens_per_second: float | None,
    total_tokens: int | None,
) -> Speed:
    """Return the rate of all ranks: the given one, or that of a kind of GPU, or one measured here."""
    if tokens_per_second is not None:
        return Speed(tokens_per_second, "given", "given", [])
    batch = estimator.recipe.training.global_batch_size
    filled, notes = Shares(batch, micro_batch_size, ranks).filled_fraction, []
    useful = ranks * (1 - filled)  # ranks' worth of rows that the losses count
    if filled:
        notes.append(
            f"{ranks} ranks cannot have equal shares of training.global_batch_size = {batch}: {filled:.1%} of the "
            "computed rows only fill up the smaller ones."
        )
    if gpu is None:
        sequences = min(micro_batch_size, 4) if estimator.device.type == "cpu" else micro_batch_size
        rate = estimator.measure_rate(sequences, (total_tokens or math.inf) / ranks)
        basis = "forward and backward of one rank measured here, × ranks"
        if estimator.device.type == "cpu":
            known = CPU_LONG if estimator.length > 2 * CPU_SHORT.length else CPU_SHORT
            notes.append(
                f"For comparison: BERT-base to DistilBERT ran at {known.tokens_per_second:.0f} tokens per second with "
                f"sequences of {known.length} tokens on {known.device} ({known.date}, {known.report})."
            )
        return Speed(rate * useful, "measured", basis, notes)
    device, reference = find_device(gpu), DEVICES["h100"]
    one = estimator.known_rate(device, micro_batch_size)
    measured = is_measured(gpu.lower())
    basis = (
        f"{H100_SMALL.tokens_per_second:,.0f} and {H100_LARGE.tokens_per_second:,.0f} tokens per second, measured on "
        f"one {reference.title} on {H100_SMALL.date}"
    )
    notes += [
        f"The rate is scaled from BERT-base to DistilBERT at {H100_SMALL.sequences} × {H100_SMALL.length} and "
        f"{H100_LARGE.sequences} × {H100_LARGE.length} tokens per step ({H100_SMALL.report}) to these models and "
        "batches. Evaluations, checkpoints and the preparation of text come on top."
    ]
    if not measured:
        basis += (
            f", scaled to the peak ({device.tflops:g} of {reference.tflops:g} TFLOP/s) and the memory bandwidth "
            f"({device.bandwidth:,} of {reference.bandwidth:,} GB/s) of the data sheet"
        )
        notes.append(
            f"No {device.title} was measured: the rate is an upper estimate, and a card with a low power limit stays "
            f"further below its peak. Source: {device.source}."
        )
    if ranks > 1:
        basis += f", × {ranks} devices"
        notes.append(
            "Training on several GPUs was not measured: the rate is that of one times their number, and "
            f"{_NOT_COUNTED}."
        )
    recipe = estimator.recipe
    if recipe.data.mode != "packed":
        notes.append(
            f"data.mode = {recipe.data.mode} was not measured: it takes longer, since padding is computed too and its "
            "blocks are not compiled."
        )
    if recipe.training.compile == "off":
        notes.append("training.compile = off was not measured: it takes longer.")
    if recipe.training.gradient_checkpointing:
        notes.append("Gradient checkpointing was not measured: its second forward takes longer.")
    if one.fixed_share > LARGE_FIXED_SHARE:
        notes.append(
            f"Some {one.fixed_share:.0%} of the time is the fixed cost of a micro-batch, since one has only "
            f"{micro_batch_size * estimator.length:,} tokens; a larger training.global_batch_size and micro_batch_size "
            "are faster."
        )
    kind = "estimated" if measured and ranks == 1 else "extrapolated"
    return Speed(one.tokens_per_second * useful, kind, basis, notes)


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


def _sentence(estimate: dict, teachers: Sequence[ModelFolder | KnownModel], recipe: Recipe, stage: int) -> str:
    """Return the plan in one sentence."""
    ranks, rate, price = estimate["ranks"], estimate["tokens_per_second"], estimate["price_per_device_hour"]
    machine = estimate["gpu"] or f"this machine's {'CPU' if estimate['device'] == 'cpu' else 'GPU'}"
    count = f"{ranks} × " if ranks > 1 else "one " if estimate["gpu"] else ""
    verdict, _, remedy = estimate["advice"].partition("; ")
    place = "" if "ZeRO stage" in verdict else f" at ZeRO stage {stage}"
    need = estimate["stages"][stage]["peak"]
    names = " and ".join(teacher.name for teacher in teachers)
    start = (
        f"Estimate: distilling {names} on {count}{machine} {verdict}{place} with micro-batches of "
        f"{estimate['micro_batch_size']} × {recipe.data.sequence_length} tokens, which need {need:.1f} of "
        f"{estimate['memory_gib']} GiB per device"
    )
    if not verdict.startswith("fits"):
        return f"{start}; {remedy}."
    tokens = estimate["tokens"] or 1e9
    run = f"{_number(tokens)} tokens" if estimate["tokens"] else "a billion tokens"
    corpus, epochs = estimate["corpus"], recipe.training.epochs
    if corpus and not recipe.training.max_tokens and (corpus["title"] or epochs > 1):
        run += f" ({epochs} epoch{'s' if epochs > 1 else ''} of {corpus['title'] or _number(corpus['tokens'])})"
    hours = tokens / rate / 3600
    kind = {"given": "at the given rate", "measured": "at the rate measured here"}.get(
        estimate["rate_kind"], estimate["rate_kind"]
    )
    cost = (
        f" and cost about {_dollars(hours * ranks * price)} at {_dollars(price)} per device and hour" if price else ""
    )
    return f"{start}, and {run} take about {_duration(hours)} ({kind}){cost}."


def _number(tokens: float) -> str:
    """Return a number of tokens in words: 12.9 billion."""
    for unit, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if tokens >= unit:
            return f"{tokens / unit:.3g}{word}"
    return f"{tokens:,.0f}"


def _duration(hours: float) -> str:
    """Return a duration in its natural unit."""
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} seconds"
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"


def _dollars(amount: float) -> str:
    """Return an amount of US dollars."""
    return f"${amount:,.2f}" if amount < 100 else f"${amount:,.0f}"
