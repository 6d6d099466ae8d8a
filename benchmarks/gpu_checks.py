"""Every kernel of the step against its definition, on this machine's GPU (or, to see that the checks themselves work, small on a CPU).

    python -m benchmarks.gpu_checks

Prints a table of errors and their limits; the last line of standard output is JSON. Exit status 1 where a limit does not hold.
"""

import argparse
import copy
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.clock import timed
from benchmarks.closed_form import relative, vocabulary_loss, worst
from benchmarks.contenders import options_of
from benchmarks.machine import describe
from benchmarks.reference import reference_step
from ds_distill.losses import fused_vocabulary_loss
from ds_distill.models.body import compile_body
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher, teacher_dtype
from ds_distill.models.varlen import why_no_varlen, within_documents
from ds_distill.recipe import Losses, Training
from ds_distill.report import table
from ds_distill.training.compiled import compile_step, why_no_compile
from ds_distill.training.engine import backward, device_of_rank, make_engine, optimizer_step
from ds_distill.training.kernels import build_fused_adam, first_line
from ds_distill.training.objective import Objective
from ds_distill.training.ranks import start_distributed

ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
Row = tuple[str, float | None, float, str]  # what, error, limit, why it was not measured


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def precisions(device: torch.device) -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]


def bodies(device: torch.device) -> dict[str, str | None]:
    """The vocabulary loss's bodies, and why one is not to be had here."""
    no_triton = None if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1" else "Triton's kernel needs a GPU or TRITON_INTERPRET=1"
    return {"torch": None, "compiled": why_no_compile(), "triton": no_triton}


def vocabulary(device: torch.device) -> Iterator[Row]:
    """Sums and gradients of the fused loss, over several chunks, against the closed form in float64; the teacher as in a run."""
    rows, hidden, size, chunk = (2048, 768, 30_522, 600) if device.type == "cuda" else (37, 32, 503, 16)
    for dtype in precisions(device):
        make = lambda *shape, scale=1.0: (torch.randn(*shape, device=device) * scale).to(dtype)  # noqa: E731, B023
        h, w, b = make(rows, hidden), make(size, hidden, scale=0.1), make(size)
        th, tw, tb = (x.to(teacher_dtype(device, dtype)) for x in (make(rows, hidden), make(size, hidden, scale=0.1), make(size)))
        labels = torch.where(torch.rand(rows, device=device) < 0.15, torch.randint(size, (rows,), device=device), -100)
        for on, mask in (("all", None), ("masked", None), ("all", torch.rand(rows, device=device) < 0.7)):
            expected = vocabulary_loss(h, w, b, th, tw, tb, labels, 2.0, 5.0, 2.0, on, mask)
            for passes, reason in bodies(device).items():
                what = f"vocabulary loss, {passes}, {short(dtype)}, KL on {on}{', padding' if mask is not None else ''}"
                if reason:
                    yield what, None, ROUNDED[dtype], reason
                    continue
                leaves = [x.clone().requires_grad_() for x in (h, w, b)]
                loss, kl, mlm = fused_vocabulary_loss(*leaves, th, tw, tb, labels, temperature=2.0, kl_weight=5.0, mlm_weight=2.0, kl_on=on,
                                                      token_mask=mask, chunk=chunk, passes=passes)  # fmt: skip
                loss.backward()
                found = (kl, mlm, *(x.grad for x in leaves))
                yield what, worst(relative(a, e) for a, e in zip(found, expected, strict=True)), ROUNDED[dtype], ""


def tiny_teacher(device: torch.device) -> BertForMaskedLM:
    """Random and sharp: at a KL of 0.001 nats rounding would be the difference."""
    torch.manual_seed(0)
    teacher = BertForMaskedLM(BertConfig(vocab_size=1000, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256)).eval()
    teacher.bert.embeddings.word_embeddings.weight.data.mul_(5)
    return teacher.to(device)


def batch(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 1000, (8, 64), device=device)
    return ids, torch.where(torch.rand(8, 64, device=device) < 0.15, ids, -100)


def compiled_blocks(device: torch.device) -> Iterator[Row]:
    """Hidden states and gradients of compiled blocks against the model's own, fp32."""
    if reason := why_no_compile():
        yield "compiled blocks, fp32", None, 1e-4, reason
        return
    ids, _ = batch(device)
    own = build_student(tiny_teacher(device), dropout=0.0).to(device)
    compiled = copy.deepcopy(own)
    compile_body(compiled, device)
    outputs = []
    for model in (own, compiled):
        hidden = model.base_model(input_ids=ids).last_hidden_state
        hidden.sin().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.base_model.parameters()])  # as one: a key's bias has none but rounding
        outputs.append([hidden, gradients])
    yield "compiled blocks, fp32", worst(relative(a, b.detach()) for a, b in zip(outputs[1], outputs[0], strict=True)), 1e-4, ""


def varlen(device: torch.device) -> Iterator[Row]:
    """Attention within documents against softmax under a mask in fp32: output and gradients."""
    for dtype in precisions(device)[1:]:
        what = f"attention within documents, {short(dtype)}"
        if reason := why_no_varlen(device, dtype):
            yield what, None, ROUNDED[dtype], reason
            continue
        length, starts = 256, [0, 3, 100, 256, 300, 512, 700, 768]
        document = torch.bucketize(torch.arange(4 * length), torch.tensor(starts), right=True).view(4, length).to(device)
        mask = (document[:, None, :, None] == document[:, None, None, :])
        padded = torch.tensor(starts + [4 * length] * (64 - len(starts)), dtype=torch.int32, device=device)
        q, k, v, g = (torch.randn(4, 8, length, 64, device=device).to(dtype) for _ in range(4))
        outputs = []
        for kernel in (True, False):
            x = [(t if kernel else t.float()).clone().requires_grad_() for t in (q, k, v)]
            out = within_documents(*x, padded).transpose(1, 2) if kernel else torch.nn.functional.scaled_dot_product_attention(*x, mask)
            out.backward(g.to(out.dtype))
            outputs.append([out, *(t.grad for t in x)])
        yield what, worst(relative(a, b.detach()) for a, b in zip(*outputs, strict=True)), ROUNDED[dtype], ""


def engine_steps(device: torch.device) -> Iterator[Row]:
    """Losses of three steps of the engine, at each ZeRO stage and precision, against the plain recipe's in fp32."""
    teacher, (ids, labels) = tiny_teacher(device), batch(device)
    counts, weights = (labels.numel(), int((labels >= 0).sum())), (5.0, 2.0, 1.0)
    student = build_student(teacher, dropout=0.0)
    plain = copy.deepcopy(student).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), **options_of(Training(learning_rate=1e-3)))
    expected = [sum(w * x for w, x in zip(weights, reference_step(plain, teacher, optimizer, (ids, labels, None)), strict=True)) for _ in range(3)]
    for stage in range(4):
        for dtype in precisions(device):
            what, low = f"three steps, ZeRO {stage}, {short(dtype)}", teacher_dtype(device, dtype)
            limit = 3e-2 if dtype != torch.float32 else 1e-4 if low == dtype else 5e-3
            training = Training(global_batch=8, micro_batch=8, warmup=0.0, learning_rate=1e-3, deepspeed=f"ds_configs/deepspeed/zero{stage}.json")
            frozen = Teacher(copy.deepcopy(teacher).to(low))
            objective = Objective(copy.deepcopy(student), Losses(), 1)
            if why_no_compile() is None:
                compile_step(objective, frozen, device, body=stage < 3)
            engine = make_engine(objective, training, accumulation=1, total_steps=10**6, device=device, dtype=dtype)
            engine.train()
            found: list[float] = []
            while len(found) < 3 and engine.skipped_steps < 30:  # fp16 finds its loss scale by steps that overflow
                skipped = engine.skipped_steps
                loss, _ = engine(ids, None, labels, counts, frozen.targets(ids))
                backward(engine, loss)
                optimizer_step(engine)
                if engine.skipped_steps == skipped:
                    found.append(float(loss.detach()))
            engine.destroy()
            yield what, worst(abs(a / b - 1) for a, b in zip(found, expected, strict=True)), limit, ""


def host_syncs(device: torch.device) -> Iterator[Row]:
    """How often a micro-step, forward and backward, makes the host wait for the GPU."""
    if device.type != "cuda":
        yield "host waits in a micro-step", None, 0, "no GPU"
        return
    teacher, (ids, labels) = tiny_teacher(device), batch(device)
    frozen, counts = Teacher(teacher.half()), (labels.numel(), int((labels >= 0).sum()))
    objective = Objective(build_student(teacher, dropout=0.1), Losses(), 1)
    if why_no_compile() is None:
        compile_step(objective, frozen, device)
    engine = make_engine(objective, Training(global_batch=16, micro_batch=8), accumulation=2, total_steps=10, device=device, dtype=torch.bfloat16)
    engine.train()
    for micro in range(6):
        torch.cuda.synchronize(device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if micro == 4 else "default")
            # the debug mode sees copies to the host, not a wait for the whole device
            with mock.patch("torch.cuda.synchronize", lambda *_: warnings.warn("torch.cuda.synchronize", stacklevel=2)):
                loss, _ = engine(ids, None, labels, counts, frozen.targets(ids))
                backward(engine, loss)
            torch.cuda.set_sync_debug_mode("default")
        optimizer_step(engine)
        if micro == 4:
            waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    engine.destroy()
    yield f"host waits in a micro-step{': ' + waits[0][:80] if waits else ''}", len(waits), 0, ""


def adam(device: torch.device) -> Iterator[Row]:
    """DeepSpeed's FusedAdam against torch's fused AdamW, ten steps."""
    began = time.perf_counter()
    if reason := build_fused_adam():
        yield "DeepSpeed FusedAdam", None, 1e-5, reason
        return
    from deepspeed.ops.adam import FusedAdam

    built = time.perf_counter() - began
    start, gradient = torch.randn(10_000_000, device=device), torch.randn(10_000_000, device=device)
    options, after, seconds = options_of(Training()), [], []
    for make in (lambda p: FusedAdam(p, adam_w_mode=True, **options), lambda p: torch.optim.AdamW(p, fused=True, **options)):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        optimizer = make([weight])
        optimizer.step()
        seconds.append(timed(lambda: [optimizer.step() for _ in range(9)], device))  # noqa: B023
        after.append(weight.detach() - start)
    yield f"DeepSpeed FusedAdam (built in {built:.0f} s; {seconds[0] / seconds[1]:.2f} × the time of torch's)", relative(*after), 1e-5, ""


CHECKS: tuple[Callable[[torch.device], Iterator[Row]], ...] = (vocabulary, compiled_blocks, varlen, adam, host_syncs, engine_steps)


def square_gemm(device: torch.device) -> dict:
    """10¹² operations a second of a square bf16 product: the peak that shares are given of."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = a @ b
    took = min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(10))
    return {"size": size, "tflops": round(2 * size**3 / took / 1e12, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_checks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no check after this time (default: none)")
    args = parser.parse_args()
    began = time.monotonic()
    start_distributed()
    device = device_of_rank()
    peak, rows = square_gemm(device), []
    for check in CHECKS:
        if time.monotonic() - began > args.seconds:
            rows.append({"check": f"{check.__name__}, and what follows it", "error": None, "limit": "", "holds": "not measured: no time left"})
            break
        torch._dynamo.reset()  # a check's kinds of input are no later one's reason to fall back to eager
        try:
            for what, error, limit, why in check(device):
                said = f"not measured: {why}" if error is None else "holds" if error <= limit else "DOES NOT HOLD"
                rows.append({"check": what, "error": None if error is None else f"{error:.1e}", "limit": f"{limit:.0e}", "holds": said})
                print(f"{time.monotonic() - began:5.0f} s  {what}: {rows[-1]['error']}, {said}", file=sys.stderr)
        except Exception as error:  # one kernel that fails must not hide what the others do
            traceback.print_exc()
            said = f"DOES NOT RUN: {first_line(error)}"
            rows.append({"check": f"{check.__name__}, from here on", "error": None, "limit": "", "holds": said})
    print(table(rows, {"check": "check", "error": "error", "limit": "limit", "holds": ""}) + "\n")
    broken = [row["check"] for row in rows if row["holds"].startswith("DOES")]
    print(json.dumps({"machine": describe(device), "device": device.type, "square_gemm": peak, "checks": rows, "broken": broken}))
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main())
