"""Who trains in benchmarks.training: each is a step on one fixed batch, with dropout, clipping and AdamW."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.reference import reference_losses, reference_step
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Training
from ds_distill.training.compiled import why_no_compile
from ds_distill.training.engine import backward, make_engine, optimizer_step
from ds_distill.training.objective import Objective


def options_of(training: Training) -> dict:
    return {"lr": training.learning_rate, "betas": tuple(training.betas), "eps": training.eps, "weight_decay": training.weight_decay}


def reference(teacher: nn.Module, student: nn.Module, training: Training, batch: tuple, device: torch.device, autocast: bool) -> Callable:
    """The plain recipe."""
    optimizer = torch.optim.AdamW(student.parameters(), **options_of(training))
    ids, labels = batch

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            reference_step(student, teacher, optimizer, (ids, labels, None), clip=training.clip)

    return step


def trainer(teacher: nn.Module, student: nn.Module, training: Training, batch: tuple, device: torch.device, autocast: bool) -> Callable:
    """transformers.Trainer with the triple loss in compute_loss, as one would write it today; returns the seconds of its second step, when all
    is set up."""
    ids, labels = batch

    class Distiller(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            losses = reference_losses(model, teacher, inputs["input_ids"], inputs["labels"])
            return sum(w * x for w, x in zip((5.0, 2.0, 1.0), losses, strict=True))

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.took = time.perf_counter() - self.began

    # two steps: the first sets up
    rows = [{"input_ids": i.cpu(), "labels": y.cpu()} for i, y in zip(ids, labels, strict=True)] * 2
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=2, per_device_train_batch_size=len(ids), learning_rate=training.learning_rate,
        adam_beta1=training.betas[0], adam_beta2=training.betas[1], adam_epsilon=training.eps, max_grad_norm=training.clip, bf16=autocast,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=device.type == "cpu", dataloader_pin_memory=False,
        remove_unused_columns=False,
    )  # fmt: skip
    clock = Clock()
    distiller = Distiller(student, arguments, train_dataset=rows, callbacks=[clock])

    def step() -> float:
        with contextlib.redirect_stdout(io.StringIO()):  # its summary of every train()
            distiller.train()
        return clock.took

    return step


def plain_loop(teacher: Teacher, student: nn.Module, training: Training, dtype: torch.dtype, batch: tuple, device: torch.device) -> Callable:
    """The engine's module in a loop of bare PyTorch: the same precision, fp32 masters, clipping, torch's fused AdamW."""
    module = Objective(student, Losses(), 1, compiled=why_no_compile() is None).to(device=device, dtype=dtype).train()
    ids, labels = batch
    counts = ids.numel(), int((labels >= 0).sum())
    trained = [p for p in module.parameters() if p.requires_grad]
    masters = [p.detach().float().clone().requires_grad_() for p in trained] if dtype != torch.float32 else trained
    optimizer = torch.optim.AdamW(masters, fused=True, **options_of(training))

    def step() -> None:
        loss, sums = module(ids, None, labels, counts, teacher.targets(ids))
        loss.backward()
        if masters is not trained:
            for master, p in zip(masters, trained, strict=True):
                master.grad, p.grad = p.grad.float(), None
        nn.utils.clip_grad_norm_(masters, training.clip)
        optimizer.step()
        optimizer.zero_grad()
        if masters is not trained:
            with torch.no_grad():
                torch._foreach_copy_(trained, masters)
        sums.tolist()

    return step


def engine(teacher: Teacher, student: nn.Module, training: Training, dtype: torch.dtype, batch: tuple, device: torch.device) -> Callable:
    """The step as the training loop runs it."""
    objective = Objective(student, Losses(), 1, compiled=why_no_compile() is None)
    runner = make_engine(objective, training, accumulation=1, total_steps=10**6, device=device, dtype=dtype)
    runner.train()
    ids, labels = batch
    counts = ids.numel(), int((labels >= 0).sum())

    def step() -> None:
        loss, sums = runner(ids, None, labels, counts, teacher.targets(ids))
        backward(runner, loss)
        optimizer_step(runner)
        sums.tolist()  # the loop reads the losses too

    return step
