"""Every change that is made to DeepSpeed at run time, with its reason.

DeepSpeed 0.19.8 with torch 2.13 needs them all.
"""

import contextlib
import io
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import psutil
import torch
from deepspeed.ops.op_builder.builder import OpBuilder
from deepspeed.runtime import compiler
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import nn

from ds_distill.builds.deepspeed_extensions import load_extension
from ds_distill.utils.errors import StoppedError

SAVE_SECONDS = 1800.0  # what a rank has to save and end; whoever asked may have less patience


@contextlib.contextmanager
def without_step_of_zeros(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Undo the effect of the step of zeros that DeepSpeed's stage 0 in 16 bit takes while it makes its optimizer.

    That step allocates the optimizer's memory. It must neither decay the weights nor count in
    Adam's bias correction, where it makes the first real step a quarter too small.
    """
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    yield
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for holder in (*optimizer.state.values(), *optimizer.param_groups):  # apex counts in its groups
        if "step" in holder:
            holder["step"] *= 0  # a number, or a tensor of one


def batch_gradient_copies(optimizer: BF16_Optimizer) -> None:
    """Have gradients copied into fp32, measured and clipped one group at a time.

    DeepSpeed does this one parameter at a time: five hundred kernels per step, too small for a GPU,
    which waits for the host meanwhile.
    """

    @torch.no_grad()
    def update_hp_grads(clear_lp_grads: bool = False) -> None:
        for group, fp32_gradients, has_gradient in zip(
            optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients, strict=True
        ):
            first = not any(has_gradient)
            for indices in _pieces(group):
                targets = [fp32_gradients[number] for number in indices]
                low_precision = [group[number].grad for number in indices]
                copies = targets if first else [torch.empty_like(x) for x in targets]
                torch._foreach_copy_(copies, [x.reshape(-1) for x in low_precision])
                if not first:
                    torch._foreach_add_(targets, copies)
                for number in indices:
                    has_gradient[number], group[number]._hp_grad = True, fp32_gradients[number]
                if clear_lp_grads:
                    torch._foreach_zero_(low_precision)

    def get_grads_for_norm(for_clipping: bool = False):
        gradients = optimizer.fp32_groups_actual_gradients_flat
        return gradients if for_clipping else (gradients, {})

    optimizer.update_hp_grads, optimizer.get_grads_for_norm = update_hp_grads, get_grads_for_norm


def _pieces(group: list[nn.Parameter]) -> Iterator[list[int]]:
    """Yield the numbers of the parameters that have a gradient, some 64 MB of fp32 at a time."""
    piece: list[int] = []
    elements = 0
    for number, parameter in enumerate(group):
        if parameter.grad is not None:
            piece, elements = [*piece, number], elements + parameter.numel()
        if elements >= 2**24:
            yield piece
            piece, elements = [], 0
    if piece:
        yield piece


def make_step_skippable(optimizer: Any) -> None:
    """Make fp32 at stage 0 skip and count a step with a gradient that is not finite, as DeepSpeed does elsewhere."""
    step, optimizer.overflow = optimizer.step, False
    optimizer.step = lambda *arguments, **options: None if optimizer.overflow else step(*arguments, **options)


def make_adam_resumable(optimizer: Any) -> torch.optim.Optimizer:
    """Make a step of DeepSpeed's CPU Adam depend on its step number alone, so that a resumed run is bit-equal.

    Its C++ backend multiplies beta^t up from step to step. After a resume it takes pow(beta, t)
    instead, which differs in the last bit. An update of a dummy with other betas before each step
    makes it always take pow.
    """
    dummy = [torch.zeros(1) for _ in range(4)]
    if hasattr(optimizer, "ds_opt_adam"):

        def forget(*_) -> None:
            optimizer.ds_opt_adam.adam_update(optimizer.opt_id, 1, 0.0, 0.5, 0.5, 1.0, 0.0, False, *dummy)
    else:

        def forget(*_) -> None:
            optimizer.multi_tensor_adam(
                1, torch.zeros(1, dtype=torch.int), [[x] for x in dummy], 0.0, 0.5, 0.5, 1.0, 1, 1, 0, 0.0
            )

    optimizer.register_step_pre_hook(forget)
    return optimizer


def guard_extension_builds() -> None:
    """Have every extension that this process loads through DeepSpeed built, or waited for, by `load_extension`."""
    OpBuilder.jit_load = lambda builder, verbose=True: load_extension(builder)


@contextlib.contextmanager
def silent_converters():
    """Silence DeepSpeed's converters, which show their own progress on both outputs."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def regex_safe_path(folder: Path):
    """Yield a path to `folder` without special characters.

    DeepSpeed reads the paths that it is given as patterns and regular expressions.
    """
    with tempfile.TemporaryDirectory() as home:
        link = Path(home) / "link"
        link.symlink_to(folder.resolve())
        yield link


def skip_unused_extension() -> None:
    """Keep DeepSpeed from compiling a shared-memory all-reduce at start on a CPU.

    That takes most of a minute, and only its inference engine calls it. The table of extensions that
    can be built here is read for this extension alone, but DeepSpeed runs compilers to fill it.
    """
    if not torch.cuda.is_available():
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon without torch.compile.

    DeepSpeed 0.19.8 imports it for every optimizer, only to find out that the optimizer is not Muon. At its import
    it has torch.compile wrap its functions, which loads torch._dynamo and torch._inductor for seconds. No recipe
    uses Muon, and it would compute the same without torch.compile.
    """
    with mock.patch.object(compiler, "compile", lambda *_, **__: lambda function: function):
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401


def let_ranks_save(launch: Any, count: int) -> None:
    """Have DeepSpeed's launcher wait for ranks that it is asked to end.

    It would kill a rank 30 seconds after SIGTERM, in which a large checkpoint on a busy file system is
    not written, and would signal the rank's helpers too, such as the process that makes its batches.
    Here all ranks are asked at once, they alone, and have SAVE_SECONDS; a third request kills them,
    since Slurm repeats its own. The launcher then ends with their status. Where a rank has failed,
    DeepSpeed's rule holds: nothing will be saved.

    Args:
        launch: The module deepspeed.launcher.launch.
        count: The number of ranks that it starts.
    """
    end_tree, requests = launch.terminate_process_tree, 0

    def end(pid: int) -> None:
        nonlocal requests
        ranks = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        if not requests and len(ranks) < count:
            end_tree(pid)
            return
        requests += bool(ranks)
        for rank in ranks:
            rank.terminate()
        ended, alive = psutil.wait_procs(ranks, timeout=SAVE_SECONDS if requests < 3 else 0)
        for rank in alive:
            for process in (*rank.children(recursive=True), rank):
                process.kill()
        statuses = {rank.returncode for rank in ended}
        # before the training and after it a rank ends by SIGTERM itself: what was finished is on the disk
        if statuses & {StoppedError.STATUS, -signal.SIGTERM}:
            raise SystemExit(StoppedError.STATUS)
        if statuses == {0} and not alive:  # the run was complete just then
            raise SystemExit(0)

    launch.terminate_process_tree = end
