"""The `plan` of a recipe: what it will take on given machines, before anything runs.

The module also finds the largest micro-batch that fits.
"""

from __future__ import annotations

import copy
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import psutil
import torch
from transformers import AutoModelForMaskedLM

from ds_distill.data.batch import TokenCounts
from ds_distill.data.dataset import TokenDataset
from ds_distill.distributed.process_group import start_distributed
from ds_distill.estimate.flops import flops_per_token
from ds_distill.estimate.memory import GIB, activation_bytes_fit, estimate_memory
from ds_distill.kernels.prepacked_linear import prepacked_bytes
from ds_distill.losses.objective import Objective
from ds_distill.models.families import check_positions
from ds_distill.models.folder import ModelFolder
from ds_distill.models.precision import teacher_dtype
from ds_distill.models.student import build_student, count_parameters, resolve_layers
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Recipe, Training
from ds_distill.training.compile import choose_kernels
from ds_distill.training.deepspeed_config import resolve_zero_config
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.utils.console import is_first, log
from ds_distill.utils.errors import UserError
from ds_distill.utils.memory import memory_limit

HEADROOM = 0.9  # share of the device's memory that a run may use; allocators keep some for themselves
# These values for CPUs were measured (python -m benchmarks.training.memory_estimate): thread pools
# and GEMM buffers, and the share of freed activations that glibc's heap keeps.
CPU_LIBRARIES, CPU_HEAP = 0.13 * GIB, 0.45


class Estimator:
    """An estimator of memory and time, with a recipe's teacher and student in random weights.

    All ranks must create it together.
    """

    def __init__(self, recipe: Recipe, teacher: ModelFolder):
        start_distributed()
        # Before any model is built, this is the memory of the libraries.
        self.process = psutil.Process().memory_info().rss
        self.recipe, training = recipe, recipe.training
        self.device = local_device(training.device)
        self.dtype = resolve_dtype(training, self.device)
        self.stage = resolve_zero_config(training, self.dtype)["stage"]
        self.teacher_dtype = teacher_dtype(self.device, self.dtype)
        self.length = recipe.data.sequence_length
        config = teacher.config
        check_positions(config, self.length, teacher.title)
        self.layer_map = resolve_layers(config, recipe.student.init_layers, recipe.student.num_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.teacher = AutoModelForMaskedLM.from_config(config).eval()
            depth = len(self.layer_map) if self.layer_map else recipe.student.num_layers
            self.student = build_student(
                self.teacher,
                init_layers="random",
                num_layers=depth,
                hidden_size=recipe.student.hidden_size,
                dropout=training.dropout,
            )
        if training.gradient_checkpointing:
            self.student.gradient_checkpointing_enable()
        self.uses_teacher = recipe.losses.need_teacher
        self.teacher_bytes = count_parameters(self.teacher) * self.teacher_dtype.itemsize
        if self.teacher_dtype == torch.bfloat16 and training.compile != "off":
            self.teacher_bytes += prepacked_bytes(self.teacher)
        self.activations = activation_bytes_fit(self.student, self.length, self.dtype, torch.device("cpu"))

    def memory(self, micro_batch_size: int, stage: int, ranks: int):
        """Return the Memory of one rank."""
        training = copy.copy(self.recipe.training)
        training.micro_batch_size = micro_batch_size
        first_sequence, per_sequence = self.activations
        need = estimate_memory(
            self.student,
            self.teacher_bytes if self.uses_teacher else 0,
            training,
            length=self.length,
            stage=stage,
            ranks=ranks,
            dtype=self.dtype,
            accumulation=max(1, training.global_batch_size // (micro_batch_size * ranks)),
            activations=first_sequence + per_sequence * (micro_batch_size - 1),
            device=self.device.type,
        )
        heap = CPU_HEAP if self.device.type == "cpu" else 0.0
        return replace(need, activations=need.activations * (1 + heap), loss=need.loss * (1 + heap))

    def largest_micro_batch(self, stage: int, ranks: int, available: float, in_use: float) -> int:
        """Return the largest micro-batch that divides the global batch over the ranks and fits.

        It is 0 if none fits.
        """
        sizes = self.recipe.training.micro_batches(ranks)
        return next(
            (size for size in sizes if in_use + self.memory(size, stage, ranks).peak <= HEADROOM * available), 0
        )

    def measure_rate(self, micro_batch_size: int, tokens: float) -> float:
        """Measure the tokens per second and rank.

        The measurement runs forward and backward on two micro-batches of random tokens and leaves
        out the optimizer's step.

        Args:
            micro_batch_size: Sequences per micro-batch.
            tokens: The tokens per rank in the whole run, which decide whether it compiles.
        """
        objective = Objective(
            copy.deepcopy(self.student).to(self.device),  # type: ignore[arg-type]  # wrong in transformers
            self.recipe.losses,
            1,
            self.teacher.config,
            self.layer_map,
        )
        frozen = (
            Teacher(copy.deepcopy(self.teacher).to(device=self.device, dtype=self.teacher_dtype))
            if self.uses_teacher
            else None
        )
        choose_kernels(objective, frozen, self.recipe, tokens, length=self.length, stage=self.stage, device=self.device)
        ids = torch.randint(
            self.student.config.vocab_size // 2,
            self.student.config.vocab_size,
            (micro_batch_size, self.length),
            device=self.device,
        )
        labels = torch.where(torch.rand(ids.shape, device=self.device) < self.recipe.data.mlm_probability, ids, -100)
        objective.to(self.dtype)
        for _ in range(2):
            began = time.perf_counter()
            counts = TokenCounts(ids.numel(), int((labels >= 0).sum()))
            targets = frozen.targets(ids, sites=objective.teacher_sites) if frozen else None
            loss, sums = objective(ids, None, labels, counts, targets)
            loss.backward()
            sums.tolist()
        return ids.numel() / (time.perf_counter() - began)

    def available_memory(self) -> tuple[float, float]:
        """Return (the bytes that a rank here may use, the bytes that the process already takes).

        The second number is 0 on a GPU.
        """
        if self.device.type == "cuda":
            return float(torch.cuda.get_device_properties(self.device).total_memory), 0.0
        local = int(
            os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or torch.distributed.get_world_size()
        )
        return memory_limit() / max(1, local), self.process + CPU_LIBRARIES


def choose_micro_batch(recipe: Recipe, teacher: ModelFolder) -> int:
    """Collective: return the largest micro-batch that fits the memory of the smallest rank.

    It divides the global batch over the ranks.

    Raises:
        UserError: If not even one sequence fits.
    """
    estimator = Estimator(recipe, teacher)
    ranks = torch.distributed.get_world_size()
    available, in_use = estimator.available_memory()
    smallest = torch.tensor(
        estimator.largest_micro_batch(estimator.stage, ranks, available, in_use), device=estimator.device
    )
    torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
    chosen = int(smallest)
    if not chosen:
        raise UserError(
            f"training.micro_batch_size = auto: not even one sequence fits in {available / GIB:.1f} GiB of memory; "
            "lower data.sequence_length, use a higher ZeRO stage (training.deepspeed), or set "
            "training.gradient_checkpointing = true"
        )
    log(f"micro-batch: {chosen} sequences of {recipe.data.sequence_length} tokens fit in {available / GIB:.1f} GiB")
    return chosen


def plan(
    recipe: Recipe,
    teacher: ModelFolder,
    tokens: str | None,
    ranks: int,
    memory_gib: float | None,
    tokens_per_second: float | None,
) -> dict:
    """Return what the recipe takes on `ranks` devices of `memory_gib` GiB.

    Args:
        recipe: The recipe.
        teacher: The teacher.
        tokens: A prepared folder, which tells how long an epoch is.
        ranks: The number of devices.
        memory_gib: Memory per device; this machine's if None.
        tokens_per_second: The rate of all ranks together; measured here on one rank, briefly, if
            None.
    """
    for key, value in (("--ranks", ranks), ("--memory_gib", memory_gib), ("--tokens_per_second", tokens_per_second)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{key} {value}: must be above 0")
    estimator = Estimator(recipe, teacher)
    training, stage = copy.copy(recipe.training), estimator.stage
    available, in_use = estimator.available_memory()
    available = memory_gib * GIB if memory_gib else available
    largest = estimator.largest_micro_batch(stage, ranks, available, in_use)
    micro_batch_size: int = (
        max(largest, 1) if training.micro_batch_size == "auto" else training.resolve_micro_batch(ranks)
    )
    training.micro_batch_size = micro_batch_size
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
                "recipe": "this recipe" if zero_stage == stage else "",
            }
        )
    step_tokens = training.global_batch_size * estimator.length
    total_tokens = training.max_tokens or None
    if tokens:
        manifest = TokenDataset.open(Path(tokens), "train").manifest
        step_tokens = round(
            training.global_batch_size * manifest["real_tokens"]["train"] / max(1, manifest["blocks"]["train"])
        )
        weights = recipe.data.weights or [1.0] * len(manifest["sources"])
        total_tokens = total_tokens or training.epochs * round(
            sum(
                weight * source["tokens"]["train"] for weight, source in zip(weights, manifest["sources"], strict=False)
            )
        )
    measured = tokens_per_second is None
    if tokens_per_second is None:
        tokens_per_second = estimator.measure_rate(min(micro_batch_size, 4), (total_tokens or math.inf) / ranks) * ranks
    rate = tokens_per_second
    flops = flops_per_token(
        estimator.teacher.config if estimator.uses_teacher else None, estimator.student.config, estimator.length
    )
    return {
        "teacher_parameters": count_parameters(estimator.teacher),
        "student_parameters": count_parameters(estimator.student),
        "mflops_per_token": round(flops / 1e6, 1),
        "tokens_per_step": step_tokens,
        "tokens": total_tokens,
        "steps": math.ceil(total_tokens / step_tokens) if total_tokens else None,
        "tokens_per_second": round(rate, 1),
        "rate_is": "forward and backward of one rank measured here, × ranks" if measured else "given",
        "tflops_needed": round(flops * rate / 1e12, 3),
        "hours": round(total_tokens / rate / 3600, 2) if total_tokens else None,
        "ranks": ranks,
        "device": str(estimator.device),
        "precision": str(estimator.dtype).removeprefix("torch."),
        "memory_gib": round(available / GIB, 1),
        "micro_batch_size": micro_batch_size,
        "largest_micro_batch": largest,
        "stages": rows,
        "advice": _advice(rows[stage], rows, largest, training),
    }


def _advice(own_row: dict, rows: list[dict], largest: int, training: Training) -> str:
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
    checkpointing = "" if training.gradient_checkpointing else ", set training.gradient_checkpointing = true"
    return f"does not fit at any ZeRO stage; lower data.sequence_length{checkpointing}, or use more ranks"


def print_plan(estimate: dict) -> None:
    """Print a plan for a person."""
    from ds_distill.reporting.tables import table

    if not is_first():
        return
    facts = {
        "teacher": f"{estimate['teacher_parameters']:,} parameters",
        "student": f"{estimate['student_parameters']:,} parameters",
        "work": f"{estimate['mflops_per_token']:,} MFLOP per token",
        "step": f"{estimate['tokens_per_step']:,} tokens",
        "run": f"{estimate['tokens']:,} tokens, {estimate['steps']:,} steps"
        if estimate["tokens"]
        else "give --tokens or training.max_tokens",
        "rate": (
            f"{estimate['tokens_per_second']:,} tokens/s on {estimate['ranks']} ranks ({estimate['rate_is']}), "
            f"{estimate['tflops_needed']} TFLOP/s"
        ),
        "time": f"{estimate['hours']:,} hours"
        if estimate["hours"] is not None
        else "give --tokens or training.max_tokens",
        "memory": (
            f"{estimate['memory_gib']} GiB per rank, {estimate['device']}, {estimate['precision']}: "
            f"{estimate['advice']}"
        ),
    }
    rows = [{"quantity": key, "value": value} for key, value in facts.items()]
    print(table(rows, {"quantity": "quantity", "value": "estimate"}))
    parts = (
        "weights",
        "gradients",
        "optimizer",
        "buffers",
        "teacher",
        "activations",
        "loss",
        "process",
        "peak",
        "fits",
    )
    columns = {"stage": "ZeRO stage"} | dict(zip(parts, parts, strict=True)) | {"recipe": ""}
    print(
        "\nMemory per rank in GiB; the peak is the most in use at one time, which can be less than the sum\n\n"
        + table(estimate["stages"], columns)
        + "\n"
    )
