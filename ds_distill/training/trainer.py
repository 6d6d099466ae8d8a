"""The training loop: it takes batches, runs engine steps and writes logs."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter, SummaryWriter

from ds_distill.data.loader import BatchLoader
from ds_distill.losses.objective import Objective
from ds_distill.recipe import Recipe, Training
from ds_distill.training import checkpoint
from ds_distill.training.evaluation import evaluate
from ds_distill.training.nonfinite import NonFiniteGuard
from ds_distill.training.step import Step
from ds_distill.utils.console import progress
from ds_distill.utils.errors import UserError
from ds_distill.utils.memory import peak_memory
from ds_distill.utils.resources import explain_out_of_memory


def total_steps(recipe: Recipe, order: BatchLoader) -> int:
    """Return the optimizer steps of the whole run."""
    if recipe.training.max_tokens:
        manifest = order.store.manifest  # sequences of mode "lines" are shorter than sequence_length
        mean = (
            manifest["real_tokens"]["train"] / manifest["blocks"]["train"]
            if manifest["mode"] == "lines"
            else manifest["sequence_length"]
        )
        return math.ceil(recipe.training.max_tokens / (recipe.training.global_batch_size * mean))
    return recipe.training.epochs * order.steps_per_epoch


class Stop:
    """SIGTERM and SIGINT request a save and an exit; ranks agree on it by a flag in each step's all-reduce."""

    def __enter__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, *_):
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def explain_training_memory(training: Training):
    """Turn an out-of-memory error into a UserError that names the settings to lower."""
    size = cast(int, training.micro_batch_size)  # a number has replaced "auto"
    ways = [f"training.micro_batch_size = {size // 2}"] if size > 1 else ["a shorter data.sequence_length"]
    ways += [] if training.gradient_checkpointing else ["training.gradient_checkpointing = true"]
    ways.append("in a new --output a higher ZeRO stage (training.deepspeed)")
    return explain_out_of_memory(
        f"training.micro_batch_size = {size}: try {', or '.join(ways)}; `ds-distill estimate` shows what takes it. "
        "With one of the first, the run goes on from its last checkpoint"
    )


def train(
    objective: Objective,
    teacher,
    order: BatchLoader,
    heldout: dict[str, Callable],
    recipe: Recipe,
    output: Path,
    device,
    dtype,
    title: str,
):
    """Collective: run the recipe to its end, or to SIGTERM.

    Checkpoints go to output/checkpoints, TensorBoard to output/tensorboard. A run that finds its
    own checkpoint resumes from it.

    Args:
        objective: The student with its losses.
        teacher: A models.teacher.Teacher, or None for masked-LM only.
        order: The loader of the training batches.
        heldout: By name, a function that makes a held-out set's batches. "" is the corpus's own
            held-out part, whose figures the summary reports.
        recipe: The recipe.
        output: The run's folder.
        device: The device of the run.
        dtype: The number format of the run.
        title: The label of the progress bar.

    Returns:
        (engine, summary dict).
    """
    t = recipe.training
    rank = torch.distributed.get_rank()
    steps = total_steps(recipe, order)
    take = Step(
        objective,
        teacher,
        recipe,
        steps=steps,
        accumulation=order.accumulation,
        length=order.store.manifest["sequence_length"],
        documents=order.collate_spec.separator is not None,
        device=device,
        dtype=dtype,
    )
    engine = take.engine
    state: dict[str, Any] = {"history": [], "heldout": {name: [] for name in heldout}, "tokens": 0, "skipped": 0}
    first, folder, cost = 0, output / "checkpoints", None
    found = checkpoint.resume(engine, folder)
    if found:
        state, first = found, found["step"]
    state = {key: state[key] for key in ("history", "heldout", "tokens", "skipped")}
    writer = SummaryWriter(output / "tensorboard", purge_step=first + 1 if found else 0) if rank == 0 else None
    bar = progress(steps, title, "step", initial=first)
    began, seconds, logging = time.perf_counter(), 0.0, 0.0
    tokens_before = state["tokens"]
    finite = NonFiniteGuard(order, t.max_skipped, folder, scaled=dtype == torch.float16)

    def measure(done: int) -> None:
        for name, batches_of in heldout.items():
            if state["heldout"].get(name) and state["heldout"][name][-1][0] == done:
                continue  # the start before this one measured it
            figures = evaluate(engine, batches_of(), device)
            state["heldout"].setdefault(name, []).append([done, state["tokens"], *figures.values()])
            if writer is not None:
                for key, value in figures.items():
                    if value is not None:
                        writer.add_scalar(
                            f"heldout{'_' if name else ''}{name}/{key.removeprefix('heldout_')}", value, done
                        )

    if not found or first == steps:  # a finished run measures texts that it has not been measured on yet
        measure(first)
    with Stop() as stop:
        for step, batches, counts in order.prefetch(first, steps, pin=device.type == "cuda"):
            parts_of, norm = take(step, batches, counts)
            sums = torch.nn.functional.pad(torch.stack(parts_of).double().sum(0), (0, 1), value=float(stop.asked))
            torch.distributed.all_reduce(sums)
            kl, mlm, cosine, asked = sums.tolist()
            computed = time.perf_counter()
            real, masked = counts
            skipped = engine.skipped_steps > state["skipped"]
            if not skipped:
                state["tokens"] += real
            state["skipped"] = engine.skipped_steps
            x = recipe.losses
            kl, mlm, cosine = (
                kl / max(masked if x.kl_tokens == "masked" else real, 1),
                mlm / max(masked, 1),
                cosine / max(real, 1),
            )
            total = x.mlm * mlm + (x.kl * kl + x.cosine * cosine if teacher is not None else 0.0)
            finite.look(step, total, skipped, parts_of)
            seconds = time.perf_counter() - began
            rate = (state["tokens"] - tokens_before) / seconds
            done = step + 1
            state["history"].append(
                [done, state["tokens"], *(x if math.isfinite(x) else None for x in (total, kl, mlm, cosine))]
            )
            if writer is not None:
                log = {
                    "loss/total": total,
                    "loss/kl": kl,
                    "loss/mlm": mlm,
                    "loss/cosine": cosine,
                    "train/lr": engine.get_lr()[0],
                    "train/grad_norm": norm,
                    "train/tokens_per_second": rate,
                    "train/data_wait_share": order.seconds_waited / seconds,
                    "train/tokens": state["tokens"],
                    "train/skipped_steps": state["skipped"],
                    "train/peak_memory_gib": peak_memory(device) / 2**30,
                }
                _log(writer, log, done)
            bar.update(1)
            bar.set_postfix(loss=f"{total:.3f}", mlm=f"{mlm:.3f}", tok_s=f"{rate:.0f}", refresh=False)
            logging += time.perf_counter() - computed
            last = done == steps
            if last or (t.eval_every and done % t.eval_every == 0):
                measure(done)
            if last or asked or (t.save_every and done % t.save_every == 0):
                if writer is not None:
                    writer.flush()  # steps that the checkpoint counts as logged must survive a kill
                cost = checkpoint.save(engine, folder, done, state, t.save_total_limit)
                if writer is not None:
                    writer.add_scalar("checkpoint/seconds", cost["seconds"], done)
                    writer.add_scalar("checkpoint/gib", cost["bytes"] / 2**30, done)
            if asked and not last:
                bar.close()
                raise UserError(f"stopped at step {done} of {steps}; the same command goes on from {folder}")
    bar.close()
    if writer is not None:
        writer.close()
    if teacher is not None:
        teacher.assert_frozen()
    rate = (state["tokens"] - tokens_before) / seconds if seconds else None
    shares = {"data_wait_share": order.seconds_waited / seconds, "logging_share": logging / seconds} if seconds else {}
    costs = {"checkpoint_seconds": cost["seconds"], "checkpoint_bytes": cost["bytes"]} if cost else {}
    costs |= {"compile_seconds": round(take.compile_seconds, 1)} if take.compile_seconds is not None else {}
    return engine, _summary(state, steps, rate, peak_memory(device)) | shares | costs


def _log(writer: SummaryWriter, values: dict[str, float | None], step: int) -> None:
    """Write all of a step's scalars as one event; add_scalar for each would take 1 % of a step of 60 ms."""
    found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
    cast(FileWriter, writer.file_writer).add_summary(Summary(value=found), step)


def _summary(state: dict, steps: int, rate: float | None, memory: int) -> dict:
    _, tokens, total, kl, mlm, cosine = state["history"][-1]
    curve = state["heldout"][""]
    more = {
        name: {"mlm_loss": rows[-1][2], "mlm_accuracy": rows[-1][3]}
        for name, rows in state["heldout"].items()
        if name and rows[-1][0] == steps
    }
    return {
        "tokens": tokens,
        "steps": steps,
        "tokens_per_second": rate,
        "loss": total,
        "kl": kl,
        "mlm": mlm,
        "cosine": cosine,
        "heldout_mlm_loss": curve[-1][2],
        "heldout_mlm_accuracy": curve[-1][3],
        "start_heldout_mlm_loss": curve[0][2],
        "start_heldout_mlm_accuracy": curve[0][3],
        **({"heldout_sets": more} if more else {}),
        "skipped_steps": state["skipped"],
        "peak_memory_gib": memory / 2**30,
        "history": state["history"],
        "heldout": state["heldout"],
    }
