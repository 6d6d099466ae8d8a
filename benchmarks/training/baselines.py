"""The variants of benchmarks.training.step.

Each one makes a step with dropout, clipping and AdamW, and reports what it runs on. The batch is a fixed
one, except where the engine is fed by the loader.
"""

import contextlib
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from benchmarks.data.feeding import open_loader
from benchmarks.reference.recipe import reference_losses, reference_step
from benchmarks.training.gemm_bound import gemm_step
from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.distributed.process_group import start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.models.precision import teacher_dtype
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Data, Losses, Recipe, Training
from ds_distill.training.compile import compile_step, compile_unavailable_reason
from ds_distill.training.deepspeed_config import resolve_zero_config
from ds_distill.training.device import resolve_dtype
from ds_distill.training.step import Step
from ds_distill.utils.memory import retain_freed_memory

SIZES = {
    "tiny": (2, 128),
    "demo": (4, 128),
    "small": (6, 384),
    "base": (12, 768),
}  # the teacher's layers and width; the student has half the layers


@dataclass
class Setting:
    """The settings that all variants of a benchmark share, and the choices for the engine."""

    size: str = "base"
    sequences: int = 16
    length: int = 128
    vocabulary: int = 30_522
    dropout: float = 0.1
    objective: str = "all"  # the tokens that the KL covers
    threads: int = 2
    precision: str = "auto"
    zero: int | None = None
    backend: str = "auto"  # the kernel of the vocabulary loss, see compile_step; with "torch", nothing is compiled

    @property
    def training(self) -> Training:
        """The engine's training settings."""
        deepspeed_config = None if self.zero is None else f"ds_configs/deepspeed/zero{self.zero}.json"
        return Training(
            global_batch_size=self.sequences,
            micro_batch_size=self.sequences,
            precision=self.precision,
            deepspeed=deepspeed_config,
            compile="off" if self.backend == "torch" else "auto",
        )

    @property
    def losses(self) -> Losses:
        """The loss settings."""
        return Losses(kl_tokens=self.objective)

    def config(self) -> BertConfig:
        """Return the teacher's config."""
        layers, hidden = SIZES[self.size]
        return BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            max_position_embeddings=max(512, self.length),
        )

    def models(self, device: torch.device) -> tuple[nn.Module, nn.Module]:
        """Return the frozen teacher and the student with fp32 random weights that are the same in every process.

        The student is in training mode.
        """
        logging.set_verbosity_error()
        torch.manual_seed(0)
        teacher = BertForMaskedLM(self.config()).eval().requires_grad_(False)
        return teacher.to(device), build_student(teacher, dropout=self.dropout).to(device).train()

    def batch(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (input_ids, labels), [B, L] int64, with 15 % of the positions masked."""
        ids = torch.randint(1000, self.vocabulary, (self.sequences, self.length))
        labels = torch.where(torch.rand(self.sequences, self.length) < 0.15, ids, -100)
        return ids.to(device), labels.to(device)

    def counts(self, labels: torch.Tensor) -> TokenCounts:
        """Return the numbers of real and of masked tokens in the global batch."""
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return TokenCounts(labels.numel() * ranks, int((labels >= 0).sum()) * ranks)

    def dtype(self, device: torch.device) -> torch.dtype:
        """Return the engine's dtype."""
        start_distributed()
        return resolve_dtype(self.training, device)

    def frozen(self, teacher: nn.Module, device: torch.device, dtype: torch.dtype) -> Teacher:
        """Return the frozen teacher in the dtype that it has beside a student in `dtype`."""
        return Teacher(teacher.to(teacher_dtype(device, dtype)))

    def compile(self, objective: Objective, teacher: Teacher, device: torch.device) -> None:
        """Compile the step, unless the setting or the machine rules that out."""
        if self.backend != "torch" and compile_unavailable_reason() is None:
            compile_step(objective, teacher, device, backend=self.backend)


def adamw_options(training: Training) -> dict:
    """Return the options of AdamW."""
    return {
        "lr": training.learning_rate,
        "betas": tuple(training.betas),
        "eps": training.eps,
        "weight_decay": training.weight_decay,
    }


def reference_fp32(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make the step of the reference implementation."""
    return _reference(setting, device, autocast=False)


def reference_bf16(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make the step of the reference implementation under bf16 autocast."""
    return _reference(setting, device, autocast=True)


def _reference(setting: Setting, device: torch.device, autocast: bool) -> tuple[Callable, dict]:
    (teacher, student), training, (ids, labels) = setting.models(device), setting.training, setting.batch(device)
    optimizer = torch.optim.AdamW(student.parameters(), **adamw_options(training))
    if device.type == "cpu" and os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        retain_freed_memory(largest=True)  # the logits too, since these rows have the best settings

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            reference_step(
                student,
                teacher,
                optimizer,
                (ids, labels, None),
                max_grad_norm=training.max_grad_norm,
                kl_tokens=setting.objective,
            )

    return step, {}


def trainer(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make a step of transformers.Trainer with the triple loss in compute_loss, as one would write it today.

    The step returns the seconds of its second step, when everything is set up.
    """
    (teacher, student), training, (ids, labels) = setting.models(device), setting.training, setting.batch(device)
    low = setting.dtype(device) != torch.float32

    class Distiller(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            losses = reference_losses(
                model, teacher, inputs["input_ids"], inputs["labels"], kl_tokens=setting.objective
            )
            return sum(w * x for w, x in zip((5.0, 2.0, 1.0), losses, strict=True))

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.took = time.perf_counter() - self.began

    # There are two steps because the first one sets things up.
    rows = [{"input_ids": i.cpu(), "labels": y.cpu()} for i, y in zip(ids, labels, strict=True)] * 2
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=2,
        per_device_train_batch_size=len(ids),
        learning_rate=training.learning_rate,
        adam_beta1=training.betas[0],
        adam_beta2=training.betas[1],
        adam_epsilon=training.eps,
        max_grad_norm=training.max_grad_norm,
        bf16=low,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    clock = Clock()
    distiller = Distiller(student, arguments, train_dataset=rows, callbacks=[clock])

    def step() -> float:
        with contextlib.redirect_stdout(io.StringIO()):  # train() prints a summary every time
            distiller.train()
        return clock.took

    return step, {}


def plain_loop(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make the step of the engine's module in a plain PyTorch loop.

    It has the same precision, fp32 master weights, clipping and torch's fused AdamW.
    """
    (teacher, student), training, (ids, labels), dtype = (
        setting.models(device),
        setting.training,
        setting.batch(device),
        setting.dtype(device),
    )
    frozen, counts = setting.frozen(teacher, device, dtype), setting.counts(labels)
    if device.type == "cpu":
        retain_freed_memory()
    module = Objective(student, setting.losses, 1).to(device=device, dtype=dtype).train()
    setting.compile(module, frozen, device)
    trained = [p for p in module.parameters() if p.requires_grad]
    masters = [p.detach().float().clone().requires_grad_() for p in trained] if dtype != torch.float32 else trained
    optimizer = torch.optim.AdamW(masters, fused=True, **adamw_options(training))

    def step() -> None:
        loss, sums = module(ids, None, labels, counts, frozen.targets(ids))
        loss.backward()
        if masters is not trained:
            for master, p in zip(masters, trained, strict=True):
                master.grad, p.grad = p.grad.float(), None
        nn.utils.clip_grad_norm_(masters, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if masters is not trained:
            with torch.no_grad():
                torch._foreach_copy_(trained, masters)
        sums.tolist()

    return step, {}


def engine(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make the step as the training loop runs it, on one batch that is on the device."""
    ids, labels = setting.batch(device)
    start_distributed()
    return _engine(setting, device, itertools.repeat((0, [Batch(ids, labels, None)], setting.counts(labels))))


def engine_fed(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make the same step on batches of the loader, which come from a process."""
    return _engine(setting, device, _feed(setting, device, process=True))


def engine_fed_by_thread(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make the same step on batches of the loader, which come from a thread."""
    return _engine(setting, device, _feed(setting, device, process=False))


def _feed(setting: Setting, device: torch.device, process: bool) -> Iterator[tuple[int, list[Batch], TokenCounts]]:
    """Return the steps of one rank's loader, of as many ranks as share a global batch of 4,096 sequences."""
    ranks = max(1, 4096 // setting.sequences)
    folder = Path(tempfile.mkdtemp(), "tokens")
    loader = open_loader(folder, setting.sequences, setting.length, ranks, setting.vocabulary)
    return loader.prefetch(0, 10**9, pin=device.type == "cuda", process=process)


def _engine(
    setting: Setting, device: torch.device, source: Iterator[tuple[int, list[Batch], TokenCounts]]
) -> tuple[Callable, dict]:
    (teacher, student), training, dtype = setting.models(device), setting.training, setting.dtype(device)
    frozen = setting.frozen(teacher, device, dtype)
    objective = Objective(student, setting.losses, torch.distributed.get_world_size())
    recipe = Recipe(training=training, losses=setting.losses, data=Data(sequence_length=setting.length))
    # Many steps are announced, so that compiling pays where it works.
    train_step = Step(
        objective,
        frozen,
        recipe,
        steps=10**9,
        accumulation=1,
        length=setting.length,
        documents=False,
        device=device,
        dtype=dtype,
    )
    if setting.backend != "auto" and train_step.compile_seconds is not None:
        objective.backend = setting.backend

    def step() -> None:
        _, batches, counts = next(source)
        for number in range(30):
            before = train_step.engine.skipped_steps
            sums, _ = train_step(number, batches, counts)
            torch.stack(sums).tolist()  # the loop reads the losses too
            if train_step.engine.skipped_steps == before:
                return
            # In the first call, fp16 is still finding its loss scale: a call without an optimizer step is not a step.
        raise RuntimeError("no step of 30 had a finite gradient")

    return step, {"dtype": str(dtype).removeprefix("torch."), "zero": resolve_zero_config(training, dtype)["stage"]}


def gemms(setting: Setting, device: torch.device) -> tuple[Callable, dict]:
    """Make a step of the matrix products alone, in the engine's precision."""
    teacher, student = setting.models(torch.device("cpu"))
    return gemm_step(
        teacher.config, student.config, setting.sequences, setting.length, device, setting.dtype(device)
    ), {}
