"""What a recipe takes on a device: memory of a rank, the largest micro-batch that fits, and a measured rate."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.data.batch import TokenCounts
from ds_distill.data.shares import Shares
from ds_distill.distributed.process_group import start_distributed
from ds_distill.estimate.flops import flops_per_token, forward_flops_per_token
from ds_distill.estimate.hardware import Device, Rate, Work, estimate_rate
from ds_distill.estimate.known_models import KnownModel
from ds_distill.estimate.matches import MatchCost, match_cost
from ds_distill.estimate.memory import GIB, activation_bytes_fit, estimate_memory
from ds_distill.kernels.prepacked_linear import prepacked_bytes
from ds_distill.losses.objective import Objective, sites_of
from ds_distill.models.attention_mask import check_keeps_apart
from ds_distill.models.ensemble import Ensemble, counterparts
from ds_distill.models.families import check_positions, check_recomputes, could_recompute, get_family
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import new_model
from ds_distill.models.precision import common_dtype, teacher_dtype
from ds_distill.models.student import count_parameters
from ds_distill.models.student_plan import find_start, plan_copy, plan_student
from ds_distill.models.teacher import Teacher, needed_part
from ds_distill.recipe import Losses, Recipe, Training
from ds_distill.stages import Span, spans_of
from ds_distill.training.compile import choose_kernels, share_of_logits
from ds_distill.training.deepspeed_config import resolve_zero_config
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.training.stages import Stages
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.memory import memory_limit

ENOUGH = 10**9  # steps, of which each stage of a recipe has some
HEADROOM = 0.9  # share of the device's memory that a run may use; allocators keep some for themselves
# These values for CPUs were measured (python -m benchmarks.training.memory_estimate): thread pools
# and GEMM buffers, the share of freed activations that glibc's heap keeps, and a tokenizer's bytes per word.
CPU_LIBRARIES, CPU_HEAP, TOKENIZER_WORD = 0.11 * GIB, 0.45, 900


class Estimator:
    """An estimator of memory and time. All ranks must create it together.

    Its models are on the meta device: they have shapes, and no weights.

    Args:
        recipe: The recipe.
        teachers: The teachers, of which only the configs are read.
        gpu: The kind of GPU to estimate for, in place of this machine's device.
        start: The model that student.from names, of which only the config is read; None where the recipe names none.

    Raises:
        UserError: The recipe does not fit the teacher or the GPU.
    """

    def __init__(
        self,
        recipe: Recipe,
        teachers: Sequence[ModelFolder | KnownModel],
        gpu: Device | None = None,
        start: ModelFolder | KnownModel | None = None,
    ):
        self.recipe, training = recipe, recipe.training
        self.gpu = gpu
        if gpu:
            self.process, self.device, self.dtype = 0, torch.device("cuda"), _dtype_on(gpu, training)
        else:
            start_distributed()
            # Before any model is built, this is the memory of the libraries.
            self.process = psutil.Process().memory_info().rss
            self.device = local_device(training.device)
            self.dtype = resolve_dtype(training, self.device)
        self.stage = resolve_zero_config(training, self.dtype)["stage"]
        self.length = recipe.data.sequence_length
        self.configs = [teacher.config for teacher in teachers]
        config = self.configs[0]
        self.teacher_dtype = common_dtype(
            [teacher_dtype(self.device, self.dtype, training.teacher_precision, each.dtype) for each in self.configs]
        )
        for model in (*teachers, *([start] if start else [])):
            check_positions(model.config, self.length, model.title)
            check_keeps_apart(model.config, recipe.data.mode, recipe.data.attend_across_documents, model.title)
        self.layer_map: list[int] | None = None
        if start:
            student_config = plan_copy(start, config, training.dropout)
        else:
            asked = replace(recipe.student, from_=None, freeze_positions=False)
            self.layer_map, student_config = plan_student(config, **asdict(asked), dropout=training.dropout)
        check_positions(student_config, self.length, "the student")
        if training.gradient_checkpointing:
            check_recomputes(student_config)
        self.objectives = recipe.losses_by_share()
        self.uses_teacher = recipe.need_teacher
        self.sites, self.averaged = sites_of(self._hollow_objectives(student_config))
        self.teachers, self.student = self._build_models(student_config, "meta")
        self.teacher_bytes = sum(map(count_parameters, self.teachers)) * self.teacher_dtype.itemsize
        if len(self.teachers) > 1 and recipe.compares_logits:  # their decoders are joined, in a copy
            widths = sum(get_family(model).get_decoder(model).in_features for model in self.teachers)
            self.teacher_bytes += config.vocab_size * widths * self.teacher_dtype.itemsize
        if self.device.type == "cpu" and self.teacher_dtype == torch.bfloat16 and training.compile != "off":
            self.teacher_bytes += sum(map(prepacked_bytes, self.teachers))
        costs = [
            (share, match_cost(losses, student_config, config, self.layer_map, self.length, size, self.configs[1:]))
            for size in [self.teacher_dtype.itemsize]
            for share, losses in self.objectives
        ]
        self.matches = MatchCost(sum(share * cost.flops for share, cost in costs), max(cost.bytes for _, cost in costs))
        self.activations = activation_bytes_fit(
            self.student,
            self.length,
            self.dtype,
            torch.device("meta"),
            # On a CPU torch's fused attention has no dropout.
            fused_attention=self.device.type == "cuda" or not training.dropout,
        )

    def _make_objective(self, student: PreTrainedModel, losses: Losses) -> Objective:
        return Objective(student, losses, 1, self.configs[0], self.layer_map, self.configs[1:])

    def _hollow_objectives(self, student: PretrainedConfig) -> list[Objective]:
        """Return the objective of the run, or of each of its stages, without values of weights."""
        spans = spans_of(self.recipe, ENOUGH)
        with torch.device("meta"):
            model = new_model(student, head=self.recipe.need_vocabulary)
            if spans:
                return Stages(spans, model, self.configs[0], self._make_objective).objectives()
            return [self._make_objective(model, losses) for _, losses in self.objectives]

    def _build_models(self, student: PretrainedConfig, device: str) -> tuple[list[PreTrainedModel], PreTrainedModel]:
        """Return what runs of the teachers, and a student, with random weights in fp32."""
        logits = self.recipe.compares_logits
        teachers: list[PreTrainedModel] = []
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.random.default_generator.manual_seed(self.recipe.training.seed)
            for config in self.configs:
                model = new_model(config, head=logits).float().eval()
                sites = self.sites if not teachers else counterparts(self.averaged, self.configs[0], config)
                teachers.append(needed_part(model, sites, head=logits) if self.uses_teacher else model)
            student_model = new_model(student, head=self.recipe.need_vocabulary).float().train()
        if self.recipe.training.gradient_checkpointing:
            student_model.gradient_checkpointing_enable()
        return teachers, student_model

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
            accumulation=Shares(training.global_batch_size, micro_batch_size, ranks).accumulation,
            activations=first_sequence + per_sequence * (micro_batch_size - 1),
            device=self.device.type,
        )
        need = replace(need, loss=need.loss + self.matches.bytes * micro_batch_size * self.length)
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
        spans: list[Span | None] = [*spans_of(self.recipe, ENOUGH)] or [None]
        seconds = [self._seconds_per_token(micro_batch_size, tokens, span) for span in spans]
        shares = [share for share, _ in self.objectives]
        return 1 / sum(share * one for share, one in zip(shares, seconds, strict=True))

    def _seconds_per_token(self, micro_batch_size: int, tokens: float, span: Span | None) -> float:
        teachers, student = self._build_models(self.student.config, "cpu")
        if span is None:
            objective = self._make_objective(student, self.objectives[0][1])
        else:
            objective = Stages([span], student, self.configs[0], self._make_objective).begin(0, None)
        objective.to(self.device)
        frozen: Teacher | Ensemble | None = None
        if objective.losses.need_teacher:
            for model in teachers:
                model.to(device=self.device, dtype=self.teacher_dtype)  # type: ignore[call-arg]  # wrong in transformers
            taught = [Teacher(model) for model in teachers]
            weights = self.recipe.losses.weights_of_teachers(len(taught))
            frozen = taught[0] if len(taught) == 1 else Ensemble(taught, weights, self.averaged)
        objective.divide_by({site: torch.ones(1, device=self.device) for site in objective.divided_sites})
        choose_kernels(objective, frozen, self.recipe, tokens, length=self.length, stage=self.stage, device=self.device)
        ids = torch.randint(
            self.student.config.vocab_size // 2,
            self.student.config.vocab_size,
            (micro_batch_size, self.length),
            device=self.device,
        )
        labels = torch.where(torch.rand(ids.shape, device=self.device) < self.recipe.data.mlm_probability, ids, -100)
        clean = round(self.recipe.data.clean_fraction * micro_batch_size)
        labels[micro_batch_size - clean :] = -100
        masked_rows = torch.arange(micro_batch_size - clean, device=self.device) if clean else None
        objective.to(self.dtype)
        for _ in range(2):
            began = time.perf_counter()
            counts = TokenCounts(ids.numel(), int((labels >= 0).sum()), clean * self.length)
            targets = None
            if frozen:
                head = "kl" in objective.weights
                targets = frozen.targets(ids, sites=objective.teacher_sites, head=head, masked_rows=masked_rows)
            loss, sums = objective(ids, None, labels, counts, targets, masked_rows=masked_rows)
            loss.backward()
            sums.tolist()
        return (time.perf_counter() - began) / ids.numel()

    @property
    def projected(self) -> float:
        """The share of positions that the student's head runs on.

        On a GPU these are all positions of masked sequences, on a CPU those that a loss looks at.
        """
        return sum(share * self._projected(losses) for share, losses in self.objectives)

    def _projected(self, losses: Losses) -> float:
        if self.device.type == "cuda":
            return float(losses.need_vocabulary) * (1 - self.recipe.data.clean_fraction)
        return share_of_logits(self.recipe, losses, taught=self.uses_teacher)

    @property
    def flops_per_token(self) -> float:
        """The floating-point operations per token of a training step: the teachers' forward, and the student's step."""
        total = self.matches.flops
        for share, losses in self.objectives:
            projected = self._projected(losses)
            total += share * flops_per_token(None, self.student.config, self.length, projected)
            for model in self.teachers if losses.need_teacher else ():
                layers = get_family(model).count_layers(model)
                part = forward_flops_per_token(model.config, self.length, projected if losses.kl else 0.0, layers)
                total += share * part
        return total

    def known_rate(self, gpu: Device, micro_batch_size: int) -> Rate:
        """Return the rate of one GPU, scaled from measured ones to this recipe and its models."""
        taught = sum(share for share, losses in self.objectives if losses.need_teacher)
        models = [(model, taught) for model in self.teachers if taught] + [(self.student, 3.0)]
        passes = [
            (get_family(model).count_layers(model), get_family(model).dims(model.config).width, times)
            for model, times in models
        ]
        work = Work(
            flops=self.flops_per_token,
            logits=self.student.config.vocab_size
            * sum(share * self._projected(x) * (1.0 if x.kl else 0.5) for share, x in self.objectives),
            layers=sum(depth * times for depth, _, times in passes),
            hidden=sum(depth * width * times for depth, width, times in passes),
        )
        return estimate_rate(gpu, work, micro_batch_size * self.length)

    def available_memory(self) -> tuple[float, float]:
        """Return (the bytes that a rank here may use, the bytes that the process already takes).

        The second number is 0 on a GPU.
        """
        if self.gpu:
            return self.gpu.memory_gb * 1e9, 0.0
        if self.device.type == "cuda":
            return float(torch.cuda.get_device_properties(self.device).total_memory), 0.0
        local = int(
            os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or torch.distributed.get_world_size()
        )
        tokenizer = TOKENIZER_WORD * self.student.config.vocab_size
        return memory_limit() / max(1, local), self.process + CPU_LIBRARIES + tokenizer


def _dtype_on(gpu: Device, training: Training) -> torch.dtype:
    """Return the type that a run trains in on a kind of GPU; UserError where no rate of it is known."""
    if training.device == "cpu":
        raise UserError("training.device = cpu with --gpu: the run would not use the GPU; leave one of them out")
    known = {"auto": gpu.dtype, "bf16": "bfloat16", "fp16": "float16"}
    if training.precision == "fp32" or (training.precision == "bf16" and gpu.dtype == "float16"):
        raise UserError(
            f"training.precision = {training.precision} with --gpu: no rate of it is known on {gpu.title}; use auto"
        )
    return getattr(torch, known[training.precision])


def choose_micro_batch(recipe: Recipe, teachers: Sequence[ModelFolder]) -> int:
    """Collective: return the largest micro-batch that fits the memory of the smallest rank.

    It divides the global batch over the ranks.

    Raises:
        UserError: If not even one sequence fits.
    """
    start = None if recipe.student.from_ is None else find_start(recipe.student.from_)
    estimator = Estimator(recipe, teachers, start=start)
    ranks = torch.distributed.get_world_size()
    available, in_use = estimator.available_memory()
    smallest = torch.tensor(
        estimator.largest_micro_batch(estimator.stage, ranks, available, in_use), device=estimator.device
    )
    torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
    chosen = int(smallest)
    if not chosen:
        could = could_recompute(estimator.student.config, recipe.training)
        raise UserError(
            f"training.micro_batch_size = auto: not even one sequence fits in {available / GIB:.1f} GiB of memory; "
            f"lower data.sequence_length{',' if could else ' or'} use a higher ZeRO stage (training.deepspeed)"
            + (", or set training.gradient_checkpointing = true" if could else "")
        )
    log(f"micro-batch: {chosen} sequences of {recipe.data.sequence_length} tokens fit in {available / GIB:.1f} GiB")
    return chosen
