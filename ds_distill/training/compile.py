"""torch.compile: whether it works here, and whether a run is long enough to earn back what it costs."""

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
from ds_distill.models.families import family_of_type
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Recipe, Training
from ds_distill.utils.console import log

# Compiling pays where it saves more than this many seconds: on two CPU cores it takes 25 s at first, blocks and loss. What it saves there, in
# seconds: a logit, and a token and layer's element of the hidden state and score of attention, with dropout. A GPU's share of the latter is a guess.
MIN_SAVED_SECONDS = 40.0
LOGIT, HIDDEN, SCORE = 6.5e-9, 28e-9, 20e-9
GPU = 0.02


@functools.cache
def compile_unavailable_reason() -> str | None:
    """Why torch.compile does not work here, or None.  Compiles two lines to see: seconds, from its cache less."""
    if not has_compiler():
        return "no C++ compiler"
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        for file in remove_partial_libraries():
            log(f"{file}: left half written by a process that was killed; it is compiled anew")
        with torch.no_grad():
            torch.compile(lambda x: (x + 1).sum())(
                torch.zeros(64, device="cuda" if torch.cuda.is_available() else "cpu")
            )
    except Exception as error:  # compilers fail in as many ways as there are
        return first_line(error)
    return None


def triton_unavailable_reason(device: torch.device) -> str | None:
    """Why the vocabulary loss's kernel in Triton cannot run here, or None. Triton compiles as torch.compile does, which writes its kernels with it."""
    return compile_unavailable_reason() if device.type == "cuda" else "no GPU"


def rows_of_logits(recipe: Recipe, tokens: float, taught: bool) -> float:
    """How many of `tokens` are projected on the vocabulary for a loss."""
    return tokens if taught and recipe.losses.kl_on == "all" else tokens * recipe.data.mask_probability


def seconds_saved(
    recipe: Recipe, student: PretrainedConfig, tokens: float, length: int, taught: bool, device: torch.device
) -> float:
    """What compiling spares a run of `tokens` tokens a rank in sequences of `length`, roughly. The logits' kernel is Triton's on a GPU, either way."""
    depth, heads, hidden, _, _ = family_of_type(student.model_type).measures(student)
    body = depth * (HIDDEN * hidden + SCORE * heads * length) * (1.0 if recipe.training.dropout else 0.25)
    logits = student.vocab_size * rows_of_logits(recipe, tokens, taught)
    return logits * LOGIT + tokens * body if device.type == "cpu" else tokens * body * GPU


def compiles(training: Training, saved: float, device: torch.device) -> bool:
    """Collective: whether the step's passes between matrix products are compiled. saved: seconds of the whole run."""
    if training.compile == "off" or (training.compile == "auto" and saved < MIN_SAVED_SECONDS):
        return False
    reasons = [reason for reason in all_gather_object(compile_unavailable_reason()) if reason]
    if reasons:
        log(
            f"torch.compile does not work here ({reasons[0]}): the step runs on torch's own operators, slower; training.compile = off is silent"
        )
    return not reasons


def choose_kernels(
    objective: Objective,
    teacher: Teacher | None,
    recipe: Recipe,
    tokens: float,
    *,
    length: int,
    stage: int,
    device: torch.device,
) -> bool:
    """Collective: compile the step where that pays in a run of `tokens` tokens a rank, and return whether; the vocabulary loss's kernel in Triton takes
    two seconds to compile and always pays."""
    saved = seconds_saved(recipe, objective.model.config, tokens, length, teacher is not None, device)
    if compiles(recipe.training, saved, device):
        compile_step(objective, teacher, device, body=compiled_layers_unavailable_reason(recipe, stage) is None)
        return True
    if recipe.training.compile != "off" and triton_unavailable_reason(device) is None:
        objective.passes = "triton"
    return False


def compile_step(
    objective: Objective, teacher: Teacher | None, device: torch.device, *, body: bool = True, passes: str = "auto"
) -> None:
    """Have the losses and, if `body`, the blocks of student and teacher compiled when they are first used; on a CPU the teacher's weights
    are packed too. passes: the vocabulary loss's kernel, "auto" is on a GPU the one in Triton (docs/PERFORMANCE.md), else torch.compile's."""
    if device.type == "cuda":
        objective.distance = torch.compile(objective.distance)
    objective.passes = passes if passes != "auto" else "triton" if device.type == "cuda" else "compiled"
    if teacher is not None and device.type == "cpu":
        prepack_linears(teacher.model)
    if body:
        for model in (objective.model, *([teacher.model] if teacher is not None else [])):
            compile_layers(model, device)


def compiled_layers_unavailable_reason(recipe: Recipe, stage: int) -> str | None:
    """Why a run with this recipe at ZeRO `stage` leaves the blocks as they are, or None."""
    if recipe.data.mode != "packed":
        return "grouped batches have many shapes, each to be compiled anew"
    return "ZeRO stage 3 gathers weights between the operators of a block" if stage == 3 else None


def compile_seconds_so_far() -> float:
    """What torch.compile has taken in this process so far, its cache's reading included."""
    import torch._dynamo  # two seconds, for those who compile

    return sum(
        torch._dynamo.utils.calculate_time_spent().get(key, 0.0)
        for key in ("entire_frame_compile", "entire_backward_compile")
    )
