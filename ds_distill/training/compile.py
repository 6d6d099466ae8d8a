"""torch.compile: whether it works here, and whether a run is long enough to repay the time that it costs."""

import functools
import importlib.util

import torch
from transformers import PretrainedConfig

from ds_distill.builds.deepspeed_extensions import first_line
from ds_distill.builds.fused_adam import has_compiler
from ds_distill.builds.inductor_cache import remove_partial_libraries
from ds_distill.distributed.process_group import all_gather_object
from ds_distill.kernels.compile_layers import compile_layers
from ds_distill.kernels.prepacked_linear import prepack_linears
from ds_distill.losses.objective import Objective
from ds_distill.losses.terms import MatchedLoss
from ds_distill.models.ensemble import Ensemble
from ds_distill.models.families import get_family_by_type
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Recipe, Training
from ds_distill.training.interrupt import blocked_signals
from ds_distill.utils.console import log

# Compiling pays where it saves more than this many seconds. On two CPU cores the blocks and the
# loss take 25 s to compile at first. The constants below are seconds that it saves there: per
# logit; per token and layer, for an element of the hidden state and for a score of attention, both
# with dropout. A GPU's share of the latter two is a guess.
MIN_SAVED_SECONDS = 40.0
SECONDS_PER_LOGIT, SECONDS_PER_HIDDEN, SECONDS_PER_SCORE = 6.5e-9, 28e-9, 20e-9
GPU_FACTOR = 0.02


@functools.cache
def compile_unavailable_reason() -> str | None:
    """Return why torch.compile does not work here, or None.

    Compiles two lines to find out. That takes seconds, and less from its cache.
    """
    if not has_compiler():
        return "no C++ compiler"
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        for file in remove_partial_libraries():
            log(f"{file}: was left half-written by a killed process, and is compiled again")
        # torch.compile starts the threads and processes here that will run its compilers
        with blocked_signals(), torch.no_grad():
            torch.compile(lambda x: (x + 1).sum())(
                torch.zeros(64, device="cuda" if torch.cuda.is_available() else "cpu")
            )
    except Exception as error:  # compilers fail in many ways
        return first_line(error)
    return None


def triton_unavailable_reason(device: torch.device) -> str | None:
    """Return why the vocabulary loss's Triton kernel cannot run here, or None.

    Triton compiles where torch.compile does, since torch.compile writes its own kernels with it.
    """
    return compile_unavailable_reason() if device.type == "cuda" else "no GPU"


def rows_of_logits(recipe: Recipe, tokens: float, taught: bool) -> float:
    """Return how many of `tokens`, in the whole run, are projected on the vocabulary for a loss."""
    shares = (share * share_of_logits(recipe, losses, taught) for share, losses in recipe.losses_by_share())
    return tokens * sum(shares)


def share_of_logits(recipe: Recipe, losses: Losses, taught: bool) -> float:
    """Return the share of the tokens that are projected on the vocabulary for these losses, of the run or a stage."""
    if not losses.need_vocabulary:
        return 0.0
    every = taught and losses.kl and losses.kl_tokens == "all"
    return (1.0 if every else recipe.data.mlm_probability) * (1 - recipe.data.clean_fraction)


def seconds_saved(
    recipe: Recipe, student: PretrainedConfig, tokens: float, length: int, taught: bool, device: torch.device
) -> float:
    """Return roughly how many seconds compiling saves in a run.

    On a GPU the logits do not count: their kernel is Triton's either way.

    Args:
        recipe: The recipe.
        student: The student's config.
        tokens: The run's tokens per rank.
        length: The sequence length.
        taught: Whether there is a teacher.
        device: The device of the run.
    """
    dims = get_family_by_type(student.model_type).dims(student)
    body = (
        dims.depth
        * (SECONDS_PER_HIDDEN * dims.width + SECONDS_PER_SCORE * dims.heads * length)
        * (1.0 if recipe.training.dropout else 0.25)
    )
    logits = student.vocab_size * rows_of_logits(recipe, tokens, taught)
    return logits * SECONDS_PER_LOGIT + tokens * body if device.type == "cpu" else tokens * body * GPU_FACTOR


def should_compile(training: Training, saved: float, device: torch.device) -> bool:
    """Collective: return whether the step's passes between matrix products are compiled.

    Args:
        training: The recipe's training section.
        saved: The seconds that compiling saves in the whole run.
        device: The device of the run.
    """
    if training.compile == "off" or (training.compile == "auto" and saved < MIN_SAVED_SECONDS):
        return False
    reasons = [reason for reason in all_gather_object(compile_unavailable_reason()) if reason]
    if reasons:
        log(
            f"torch.compile does not work here ({reasons[0]}): the step runs on torch's own operators, "
            "which is slower; set training.compile = off to silence this line"
        )
    return not reasons


def choose_kernels(
    objective: Objective,
    teacher: Teacher | Ensemble | None,
    recipe: Recipe,
    tokens: float,
    *,
    length: int,
    stage: int,
    device: torch.device,
) -> bool:
    """Collective: compile the step where that pays in a run of `tokens` tokens per rank, and return whether it did.

    The vocabulary loss's Triton kernel takes two seconds to compile and always pays.
    """
    saved = seconds_saved(recipe, objective.model.config, tokens, length, teacher is not None, device)
    if should_compile(recipe.training, saved, device):
        compile_step(objective, teacher, device, body=compiled_layers_unavailable_reason(recipe, stage) is None)
        return True
    if recipe.training.compile != "off" and triton_unavailable_reason(device) is None:
        objective.backend = "triton"
    return False


def compile_step(
    objective: Objective,
    teacher: Teacher | Ensemble | None,
    device: torch.device,
    *,
    body: bool = True,
    backend: str = "auto",
) -> None:
    """Have the losses and the blocks of student and teacher compiled when they are first used.

    On a CPU the teacher's weights are packed too.

    Args:
        objective: The student with its losses.
        teacher: The teacher, or None.
        device: The device of the run.
        body: Whether to compile the blocks too.
        backend: The vocabulary loss's kernel. "auto" is the Triton one on a GPU
            (docs/benchmarks.md), else that of torch.compile.
    """
    if device.type == "cuda":
        for match in objective.matches.values():
            if isinstance(match, MatchedLoss):  # the others have kernels of their own
                match.distance = torch.compile(match.distance)
    objective.backend = backend if backend != "auto" else "triton" if device.type == "cuda" else "compiled"
    teachers = teacher.models if teacher is not None else ()
    for model in teachers if device.type == "cpu" else ():
        prepack_linears(model)
    if body:
        for model in (objective.model, *teachers):
            compile_layers(model, device)


def compiled_layers_unavailable_reason(recipe: Recipe, stage: int) -> str | None:
    """Return why a run with this recipe at ZeRO `stage` leaves the blocks uncompiled, or None."""
    if recipe.data.mode != "packed":
        return "batches of lines have many shapes, each to be compiled anew"
    return "ZeRO stage 3 gathers weights between the operators of a block" if stage == 3 else None


def compile_seconds_so_far() -> float:
    """Return the seconds that torch.compile has taken in this process so far, including reading its cache."""
    import torch._dynamo  # it takes two seconds, so only those who compile import it

    return sum(
        torch._dynamo.utils.calculate_time_spent().get(key, 0.0)
        for key in ("entire_frame_compile", "entire_backward_compile")
    )
