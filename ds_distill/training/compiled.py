"""torch.compile: whether it works here, and whether a run is long enough to earn back what it costs."""

import functools
import importlib.util

import torch

from ds_distill.console import say
from ds_distill.recipe import Recipe, Training
from ds_distill.training.kernels import has_compiler
from ds_distill.training.ranks import from_every_rank

# Rows of logits a rank × vocabulary from which compiling pays. On two CPU cores 12 s at first, against 6.5 ns a logit (docs/PERFORMANCE.md),
# 20 s here. A GPU's is a guess, not measured.
PAYS = {"cpu": 3e9, "cuda": 1e12}


@functools.cache
def why_no_compile() -> str | None:
    """Why torch.compile does not work here, or None.  Compiles two lines to see: seconds, from its cache less."""
    if not has_compiler():
        return "no C++ compiler"
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        with torch.no_grad():
            torch.compile(lambda x: (x + 1).sum())(torch.zeros(64, device="cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:  # compilers fail in as many ways as there are
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return None


def rows_of_logits(recipe: Recipe, tokens: float, taught: bool) -> float:
    """How many of `tokens` are projected on the vocabulary for a loss."""
    return tokens if taught and recipe.losses.kl_on == "all" else tokens * recipe.data.mask_probability


def compiles(training: Training, rows: float, vocabulary: int, device: torch.device) -> bool:
    """Collective: whether the step's passes between matrix products are compiled. rows: of logits, on this rank, in the whole run."""
    if training.compile == "off" or (training.compile == "auto" and rows * vocabulary < PAYS[device.type]):
        return False
    reasons = [reason for reason in from_every_rank(why_no_compile()) if reason]
    if reasons:
        say(f"torch.compile does not work here ({reasons[0]}): the step runs on torch's own operators, slower; training.compile = off is silent")
    return not reasons
