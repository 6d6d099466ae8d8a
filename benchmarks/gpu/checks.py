"""Check every kernel of the step against its definition, on this machine's GPU.

    python -m benchmarks.gpu.checks

On a CPU, the checks run at small sizes, which shows that the checks themselves work. The output is
a table of errors and their limits, and its last line is JSON. The exit status is 1 if a limit does
not hold. On a GPU, it is also 1 if a check was not made, for lack of time or because its kernel is
unavailable.
"""

import argparse
import copy
import functools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.harness.cli import user_errors
from benchmarks.harness.machine import describe
from benchmarks.harness.timing import timed
from benchmarks.reference.closed_form import attention_score_mse, relation_kl, relative, vocabulary_loss, worst
from benchmarks.reference.recipe import reference_step
from benchmarks.training.baselines import adamw_options
from ds_distill.builds.deepspeed_extensions import first_line
from ds_distill.builds.fused_adam import build_optimizer
from ds_distill.distributed.process_group import start_distributed
from ds_distill.kernels.compile_layers import compile_layers
from ds_distill.kernels.relation_ops import relation_loss
from ds_distill.losses import fused_linear_distillation_loss
from ds_distill.losses.objective import Objective
from ds_distill.models.precision import teacher_dtype
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.models.varlen_attention import varlen_attention, varlen_unavailable_reason
from ds_distill.recipe import Losses, Training
from ds_distill.reporting.tables import table
from ds_distill.training.compile import compile_step, compile_unavailable_reason
from ds_distill.training.device import local_device
from ds_distill.training.engine import Engine

ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
NO_TIME = "no time left"
SCORES, SCORES_PER_TOKEN = "attention scores", "attention scores, a mean for each token"


class NotMade(Exception):
    """The reason why a check has no result here."""


def unless(reason: str | None) -> None:
    """Raise NotMade if there is a reason why the check cannot be made."""
    if reason:
        raise NotMade(reason)


@dataclass
class Check:
    """A check of one kernel.

    `measure` returns the error and a remark, and raises NotMade if the check cannot be made.
    Nothing is computed before `measure` is called, so that checks for which no time is left can be
    counted.
    """

    what: str
    limit: float
    measure: Callable[[], tuple[float, str]]


def short(dtype: torch.dtype) -> str:
    """Return a dtype's short name."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def precisions(device: torch.device) -> list[torch.dtype]:
    """Return the dtypes to check on this device."""
    return [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]


def backends(device: torch.device) -> dict[str, str | None]:
    """Return the backends of the vocabulary loss, each with the reason why it is unavailable here, or None."""
    no_triton = (
        None
        if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
        else "Triton's kernel needs a GPU or TRITON_INTERPRET=1"
    )
    return {"torch": None, "compiled": compile_unavailable_reason(), "triton": no_triton}


def vocabulary(device: torch.device) -> Iterator[Check]:
    """Check sums and gradients of the fused loss, over several chunks, against the closed form in float64."""
    reasons = backends(device)
    for dtype in precisions(device):
        for on, padding in (("all", False), ("masked", False), ("all", True)):
            problem = functools.cache(
                functools.partial(vocabulary_problem, device, dtype, on, padding)
            )  # all backends share one problem
            for backend, reason in reasons.items():
                yield Check(
                    f"vocabulary loss, {backend}, {short(dtype)}, KL on {on}{', padding' if padding else ''}",
                    ROUNDED[dtype],
                    functools.partial(vocabulary_error, problem, backend, reason),
                )


def vocabulary_problem(device: torch.device, dtype: torch.dtype, on: str, padding: bool) -> tuple:
    """Return a problem for the fused loss; the teacher has the dtype that it has in a run.

    Returns:
        The student's tensors, the teacher's tensors and labels, the options of the fused loss, and
        the results of the closed form.
    """
    rows, hidden, size, chunk = (2048, 768, 30_522, 600) if device.type == "cuda" else (37, 32, 503, 16)
    make = lambda *shape, scale=1.0: (torch.randn(*shape, device=device) * scale).to(dtype)  # noqa: E731
    leaves = make(rows, hidden), make(size, hidden, scale=0.1), make(size)
    teacher = (
        x.to(teacher_dtype(device, dtype)) for x in (make(rows, hidden), make(size, hidden, scale=0.1), make(size))
    )
    given = (
        *teacher,
        torch.where(torch.rand(rows, device=device) < 0.15, torch.randint(size, (rows,), device=device), -100),
    )
    mask = torch.rand(rows, device=device) < 0.7 if padding else None
    expected = vocabulary_loss(*leaves, *given, 2.0, 5.0, 2.0, on, mask)
    return leaves, given, {"kl_tokens": on, "token_mask": mask, "chunk": chunk}, expected


def vocabulary_error(problem: Callable[[], tuple], backend: str, reason: str | None) -> tuple[float, str]:
    """Return the largest relative error of the fused loss's sums and gradients."""
    unless(reason)
    leaves, given, options, expected = problem()
    leaves = [x.clone().requires_grad_() for x in leaves]
    loss, kl, mlm = fused_linear_distillation_loss(
        *leaves, *given, temperature=2.0, kl_weight=5.0, mlm_weight=2.0, backend=backend, **options
    )
    loss.backward()
    actual = (kl, mlm, *(x.grad for x in leaves))
    return worst(relative(a, e) for a, e in zip(actual, expected, strict=True)), ""


def relations(device: torch.device) -> Iterator[Check]:
    """Check the losses between relations, with padding and documents, against the closed forms in float64."""
    del (reasons := backends(device))["compiled"]
    limits = ROUNDED | {torch.bfloat16: 1e-2, torch.float16: 1e-2}
    for dtype in precisions(device):
        for what in ("relations of one side", "relations of queries and keys", SCORES, SCORES_PER_TOKEN):
            problem = functools.cache(functools.partial(relations_problem, device, dtype, what))
            for backend, reason in reasons.items():
                yield Check(
                    f"{what}, {backend}, {short(dtype)}",
                    limits[dtype],
                    functools.partial(relations_error, problem, backend, reason),
                )


def relations_problem(device: torch.device, dtype: torch.dtype, what: str) -> tuple:
    """Return the student's vectors, the other arguments of `relation_loss`, and the results of the closed form."""
    scores = what in (SCORES, SCORES_PER_TOKEN)
    heads, length, width, t_width = (3, 300, 64, 40) if device.type == "cuda" else (2, 20, 8, 20)

    def pair(width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (torch.randn(2, heads, length, width, device=device).to(dtype) for _ in "ab")
        return a, a if what == "relations of one side" else b

    student, teacher = pair(width, dtype), pair(t_width, teacher_dtype(device, dtype))
    mask = torch.rand(2, length, device=device) < 0.9
    documents = torch.randint(3, (2, length), device=device).sort(1).values
    if scores:
        value, *gradients = attention_score_mse(student, teacher, mask, documents, per_token=what == SCORES_PER_TOKEN)
    else:
        value, *gradients = relation_kl(student, [teacher], [1.0], mask, documents)
    gradients = [gradients[0] + gradients[1]] if student[0] is student[1] else gradients
    given = {"teachers": [teacher], "weights": None if scores else [1.0], "real": mask, "documents": documents}
    return student, given | {"per_token": what == SCORES_PER_TOKEN}, (value, *gradients)


def relations_error(problem: Callable[[], tuple], backend: str, reason: str | None) -> tuple[float, str]:
    """Return the largest relative error of a loss between relations and its gradients."""
    unless(reason)
    student, given, expected = problem()
    leaves = [x.clone().requires_grad_() for x in student[: len(expected) - 1]]
    value = relation_loss((leaves[0], leaves[-1]), **given, backend=backend)
    actual = (value, *torch.autograd.grad(value, leaves))
    return worst(relative(a, e) for a, e in zip(actual, expected, strict=True)), ""


def tiny_teacher(device: torch.device) -> BertForMaskedLM:
    """Return a random teacher with sharp distributions; at a KL of 0.001 nats, the error would only be rounding."""
    torch.manual_seed(0)
    teacher = BertForMaskedLM(
        BertConfig(vocab_size=1000, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256)
    ).eval()
    teacher.bert.embeddings.word_embeddings.weight.data.mul_(5)
    return teacher.to(device)


def batch(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input_ids and labels, [8, 64] each, with 15 % of the positions masked."""
    ids = torch.randint(5, 1000, (8, 64), device=device)
    return ids, torch.where(torch.rand(8, 64, device=device) < 0.15, ids, -100)


def compiled_blocks(device: torch.device) -> Iterator[Check]:
    """Check compiled blocks against the model's own."""
    yield Check("compiled blocks, fp32", 1e-4, functools.partial(compiled_blocks_error, device))


def compiled_blocks_error(device: torch.device) -> tuple[float, str]:
    """Compare hidden states and gradients of compiled blocks with the model's own, in fp32."""
    unless(compile_unavailable_reason())
    ids, _ = batch(device)
    reference = build_student(tiny_teacher(device), dropout=0.0).to(device)
    compiled = copy.deepcopy(reference)
    compile_layers(compiled, device)
    outputs = []
    for model in (reference, compiled):
        hidden = model.base_model(input_ids=ids).last_hidden_state
        hidden.sin().sum().backward()
        gradients = torch.cat(
            [p.grad.flatten() for p in model.base_model.parameters()]
        )  # as one vector, since the gradient of a key's bias is only rounding
        outputs.append([hidden, gradients])
    return worst(relative(a, b.detach()) for a, b in zip(outputs[1], outputs[0], strict=True)), ""


def varlen(device: torch.device) -> Iterator[Check]:
    """Check attention within documents, and within a window there, in 16 bits."""
    for dtype in precisions(device)[1:]:
        for window in (None, 64):
            yield Check(
                f"attention within documents{f', window {window}' if window else ''}, {short(dtype)}",
                ROUNDED[dtype],
                functools.partial(varlen_error, device, dtype, window),
            )


def varlen_error(device: torch.device, dtype: torch.dtype, window: int | None) -> tuple[float, str]:
    """Compare attention within documents with softmax under a mask in fp32: output and gradients."""
    unless(varlen_unavailable_reason(device, dtype, windows=[window]))
    length, starts = 256, [0, 3, 100, 256, 300, 512, 700, 768]
    document = torch.bucketize(torch.arange(4 * length), torch.tensor(starts), right=True).view(4, length).to(device)
    mask = document[:, None, :, None] == document[:, None, None, :]
    if window is not None:
        positions = torch.arange(length, device=device)
        mask = mask & ((positions[:, None] - positions).abs() <= window)
    padded = torch.tensor(starts + [4 * length] * (64 - len(starts)), dtype=torch.int32, device=device)
    q, k, v, g = (torch.randn(4, 8, length, 64, device=device).to(dtype) for _ in range(4))
    outputs = []
    for kernel in (True, False):
        x = [(t if kernel else t.float()).clone().requires_grad_() for t in (q, k, v)]
        out = (
            varlen_attention(*x, padded, window=window).transpose(1, 2)
            if kernel
            else torch.nn.functional.scaled_dot_product_attention(*x, mask)
        )
        out.backward(g.to(out.dtype))
        outputs.append([out, *(t.grad for t in x)])
    return worst(relative(a, b.detach()) for a, b in zip(*outputs, strict=True)), ""


def engine_steps(device: torch.device) -> Iterator[Check]:
    """Check three steps of the engine at every ZeRO stage and in every precision."""
    plain = functools.cache(functools.partial(plain_steps, device))
    for stage in range(4):
        for dtype in precisions(device):
            limit = 3e-2 if dtype != torch.float32 else 1e-4 if teacher_dtype(device, dtype) == dtype else 5e-3
            yield Check(
                f"three steps, ZeRO {stage}, {short(dtype)}",
                limit,
                functools.partial(engine_steps_error, plain, device, stage, dtype),
            )


def plain_steps(device: torch.device) -> tuple:
    """Return (teacher, student, batch, losses of three steps of the reference implementation in fp32)."""
    teacher, (ids, labels) = tiny_teacher(device), batch(device)
    student = build_student(teacher, dropout=0.0)
    plain = copy.deepcopy(student).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), **adamw_options(Training(learning_rate=1e-3)))
    steps = [reference_step(plain, teacher, optimizer, (ids, labels, None)) for _ in range(3)]
    return (
        teacher,
        student,
        (ids, labels),
        [sum(w * x for w, x in zip((5.0, 2.0, 1.0), losses, strict=True)) for losses in steps],
    )


def engine_steps_error(
    plain: Callable[[], tuple], device: torch.device, stage: int, dtype: torch.dtype
) -> tuple[float, str]:
    """Compare the losses of three steps of the engine with those of the reference implementation."""
    teacher, student, (ids, labels), expected = plain()
    counts = labels.numel(), int((labels >= 0).sum())
    training = Training(
        global_batch_size=8,
        micro_batch_size=8,
        warmup_ratio=0.0,
        learning_rate=1e-3,
        deepspeed=f"ds_configs/deepspeed/zero{stage}.json",
    )
    frozen = Teacher(copy.deepcopy(teacher).to(teacher_dtype(device, dtype)))
    objective = Objective(copy.deepcopy(student), Losses(), 1)
    if compile_unavailable_reason() is None:
        compile_step(objective, frozen, device, body=stage < 3)
    engine = Engine(objective, training, accumulation=1, total_steps=10**6, device=device, dtype=dtype)
    actual: list[float] = []
    while len(actual) < 3 and engine.skipped_steps < 30:  # fp16 finds its loss scale in steps that overflow
        skipped = engine.skipped_steps
        loss, _ = engine(ids, None, labels, counts, frozen.targets(ids))
        engine.backward(loss)
        engine.step()
        if engine.skipped_steps == skipped:
            actual.append(float(loss.detach()))
    engine.destroy()
    return worst(abs(a / b - 1) for a, b in zip(actual, expected, strict=True)), ""


def host_syncs(device: torch.device) -> Iterator[Check]:
    """Check that a micro-step does not make the host wait for the GPU."""
    yield Check("host waits in a micro-step", 0, functools.partial(host_waits, device))
    yield Check("host waits in a micro-step, padding", 0, functools.partial(host_waits, device, True))


def host_waits(device: torch.device, padding: bool = False) -> tuple[float, str]:
    """Count how often a micro-step, forward and backward, makes the host wait for the GPU."""
    unless("no GPU" if device.type != "cuda" else None)
    teacher, (ids, labels) = tiny_teacher(device), batch(device)
    mask = None
    if padding:  # half of the last sequence
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[-1, ids.shape[1] // 2 :] = False
        labels = labels.masked_fill(~mask, -100)
    frozen, counts = Teacher(teacher.half()), (labels.numel(), int((labels >= 0).sum()))
    objective = Objective(build_student(teacher, dropout=0.1), Losses(), 1)
    if compile_unavailable_reason() is None:
        compile_step(objective, frozen, device)
    engine = Engine(
        objective,
        Training(global_batch_size=16, micro_batch_size=8),
        accumulation=2,
        total_steps=10,
        device=device,
        dtype=torch.bfloat16,
    )
    for micro in range(6):
        torch.cuda.synchronize(device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if micro == 4 else "default")
            # The debug mode sees copies to the host, but not a wait for the whole device.
            with mock.patch("torch.cuda.synchronize", lambda *_: warnings.warn("torch.cuda.synchronize", stacklevel=2)):
                loss, _ = engine(ids, mask, labels, counts, frozen.targets(ids, mask))
                engine.backward(loss)
            torch.cuda.set_sync_debug_mode("default")
        engine.step()
        if micro == 4:
            waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    engine.destroy()
    return len(waits), f": {waits[0][:80]}" if waits else ""


def adam(device: torch.device) -> Iterator[Check]:
    """Check DeepSpeed's FusedAdam."""
    yield Check("DeepSpeed FusedAdam", 1e-5, functools.partial(adam_error, device))


def adam_error(device: torch.device) -> tuple[float, str]:
    """Compare DeepSpeed's FusedAdam with torch's fused AdamW over ten steps."""
    began = time.perf_counter()
    unless(build_optimizer())
    from deepspeed.ops.adam import FusedAdam

    built = time.perf_counter() - began
    start, gradient = torch.randn(10_000_000, device=device), torch.randn(10_000_000, device=device)
    options, after, seconds = adamw_options(Training()), [], []
    for make in (
        lambda p: FusedAdam(p, adam_w_mode=True, **options),
        lambda p: torch.optim.AdamW(p, fused=True, **options),
    ):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        optimizer = make([weight])
        optimizer.step()
        seconds.append(timed(lambda: [optimizer.step() for _ in range(9)], device))  # noqa: B023
        after.append(weight.detach() - start)
    return relative(*after), f" (built in {built:.0f} s; {seconds[0] / seconds[1]:.2f} × the time of torch's)"


CHECKS: tuple[Callable[[torch.device], Iterator[Check]], ...] = (
    vocabulary,
    relations,
    compiled_blocks,
    varlen,
    adam,
    host_syncs,
    engine_steps,
)


def square_gemm(device: torch.device) -> dict:
    """Return the rate of a square bf16 product in 10¹² operations per second.

    Shares are relative to this peak.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = a @ b
    took = min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(10))
    return {"size": size, "tflops": round(2 * size**3 / took / 1e12, 3)}


def results(device: torch.device, seconds: float) -> list[dict]:
    """Return one row per check, made or not; no check begins after `seconds`."""
    began, rows = time.monotonic(), []
    for family in CHECKS:
        torch._dynamo.reset()  # one check's input shapes must not make a later one fall back to eager
        for check in family(device):
            row = {"check": check.what, "error": None, "limit": f"{check.limit:.0e}"}
            try:
                unless(NO_TIME if time.monotonic() - began > seconds else None)
                error, remark = check.measure()
                row |= {
                    "check": check.what + remark,
                    "error": f"{error:.1e}",
                    "holds": "holds" if error <= check.limit else "DOES NOT HOLD",
                }
            except NotMade as reason:
                row |= {"holds": f"not made: {reason}", "why": str(reason)}
            except Exception as error:  # one failing kernel must not hide the others' results
                traceback.print_exc()
                row["holds"] = f"DOES NOT RUN: {first_line(error)}"
            print(f"{time.monotonic() - began:5.0f} s  {row['check']}: {row['error']}, {row['holds']}", file=sys.stderr)
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.checks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no check after this many seconds (default: no limit)"
    )
    args = parser.parse_args()
    with user_errors("benchmarks.gpu.checks"):
        return report(args.seconds)


def report(seconds: float) -> int:
    """Run the checks and print the report; return the exit status."""
    start_distributed()
    device = local_device()
    peak, rows = square_gemm(device), results(device, seconds)
    print(table(rows, {"check": "check", "error": "error", "limit": "limit", "holds": ""}) + "\n")
    broken = [row["check"] for row in rows if row["holds"].startswith("DOES")]
    not_made = {row["check"]: row["why"] for row in rows if "why" in row}
    print(
        json.dumps(
            {
                "machine": describe(device),
                "device": device.type,
                "square_gemm": peak,
                "checks": rows,
                "broken": broken,
                "not_made": not_made,
            }
        )
    )
    return int(bool(broken or not_made and device.type == "cuda"))


if __name__ == "__main__":
    raise SystemExit(main())
