"""One optimizer step over the micro-batches of a global batch: teacher, student's losses and engine.

The step is compiled where that pays.
"""

import contextlib
from dataclasses import replace

import numpy as np
import torch

from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.losses.objective import Objective
from ds_distill.models.ensemble import Ensemble
from ds_distill.models.families import check_recomputes, get_family, head_size
from ds_distill.models.teacher import Teacher
from ds_distill.models.varlen_attention import use_varlen_attention, varlen_unavailable_reason
from ds_distill.recipe import Recipe
from ds_distill.stages import Span
from ds_distill.training.compile import choose_kernels, compile_seconds_so_far
from ds_distill.training.deepspeed_config import resolve_zero_config
from ds_distill.training.engine import Engine
from ds_distill.training.rank_times import OwnTime


def micro_step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Return dropout's seed. Nothing but these four numbers decides it, so a resumed run is bit-equal."""
    return int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1, np.uint64)[0] >> 1)


class Step:
    """The recipe's step.

    `engine` is its Engine.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: Teacher | Ensemble | None,
        recipe: Recipe,
        *,
        steps: int,
        accumulation: int,
        length: int,
        documents: bool,
        device: torch.device,
        dtype: torch.dtype,
        span: Span | None = None,
    ):
        """Collective: choose the kernels and make the engine.

        Args:
            objective: The student with its losses.
            teacher: The teacher, or None where no term of the run compares the student with one.
            recipe: The recipe.
            steps: The steps of the whole run. The schedule ends with them, and compiling has to pay
                off within them.
            accumulation: The micro-batches per optimizer step.
            length: The length of a sequence in tokens.
            documents: Whether the batches mark where their documents start, because these do not
                see each other.
            device: The device of the run.
            dtype: The number format of the run.
            span: The stage whose steps it takes; None in a run without stages.
        """
        t, ranks = recipe.training, torch.distributed.get_world_size()
        tokens, stage = steps * t.global_batch_size * length / ranks, resolve_zero_config(t, dtype)["stage"]
        compiled = choose_kernels(objective, teacher, recipe, tokens, length=length, stage=stage, device=device)
        self.compiled_before = compile_seconds_so_far() if compiled else None
        models = (objective.model, *(teacher.models if teacher is not None else ()))
        self.varlen = documents and all(
            varlen_unavailable_reason(
                device, dtype, head_size(model), get_family(model).attention, get_family(model).windows(model.config)
            )
            is None
            for model in models
        )
        for model in models if self.varlen else ():
            use_varlen_attention(model)
        if t.gradient_checkpointing:
            check_recomputes(objective.model.config)
            objective.model.gradient_checkpointing_enable()
        self.teacher = teacher if objective.losses.need_teacher else None
        self.device, self.seed, self.rank = device, t.seed, torch.distributed.get_rank()
        first = 0
        if span is not None:
            t = replace(t, learning_rate=span.stage.peak_rate(t.learning_rate))
            steps, first = (span.end - span.first, 0) if t.stage_schedule == "stage" else (steps, span.first)
        self.engine = Engine(
            objective, t, accumulation=accumulation, total_steps=steps, first_step=first, device=device, dtype=dtype
        )
        self.sites, self.teaches_logits = objective.teacher_sites, "kl" in objective.weights
        self.own_time, self.gathers = OwnTime(device), stage == 3  # the student's forward waits for others at stage 3

    @property
    def compile_seconds(self) -> float | None:
        """The seconds compiling has taken so far, including reading its cache; None where nothing is compiled."""
        if self.compiled_before is None:
            return None
        # torch may have forgotten by now what compiling took before
        return max(0.0, compile_seconds_so_far() - self.compiled_before)

    def __call__(self, step: int, batches: list[Batch], counts: TokenCounts) -> tuple[list[torch.Tensor], float | None]:
        """Take one optimizer step on this rank's micro-batches.

        Args:
            step: The number of the optimizer step, from 0.
            batches: This rank's micro-batches.
            counts: The real and masked tokens of the global batch.

        Returns:
            (this rank's summed terms of each micro-batch, on the device, in the order of
            Objective.weights; the norm of the global gradient before clipping).
        """
        sums, norm = [], None
        for micro, batch in enumerate(batches):
            batch = batch.to(self.device)
            torch.manual_seed(micro_step_seed(self.seed, step, micro, self.rank))
            inputs = batch.input_ids, batch.attention_mask
            cu_seqlens = batch.cu_seqlens if self.varlen else None
            with self.own_time.measure():
                targets = None
                if self.teacher is not None:
                    targets = self.teacher.targets(
                        *inputs, cu_seqlens, self.sites, head=self.teaches_logits, masked_rows=batch.masked_rows
                    )
            with contextlib.nullcontext() if self.gathers else self.own_time.measure():
                masks = batch.loss_mask, batch.masked_rows, batch.document_ids
                loss, terms = self.engine(*inputs, batch.labels, counts, targets, cu_seqlens, *masks)
            sums.append(terms)
            self.engine.backward(loss)
            norm = self.engine.step()
        return sums, norm
