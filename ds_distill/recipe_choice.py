"""The losses of a distillation whose user has chosen neither a recipe nor losses.

The paper's losses and weights were chosen for billions of tokens. After a few million, KL over the masked tokens and a
heavy cosine loss kept more of a teacher's task scores, in less time (docs/results/retention.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds_distill.config.renamed import read_identity
from ds_distill.data.sources import split_inputs
from ds_distill.data.token_files import read_manifest
from ds_distill.estimate.corpora import BYTES_PER_TOKEN
from ds_distill.recipe import Data, Losses, Recipe
from ds_distill.run_folder import RunFolder
from ds_distill.utils.console import log_once
from ds_distill.utils.files import read_json_object

FEW_TOKENS = 50_000_000  # the longest run measured had 6.5 million; between that and the paper's billions, nothing was


def choose_losses(
    recipe: Recipe, *, corpus: Sequence[str | Path], tokens: str | Path | None, output: str | Path
) -> Losses:
    """Return the losses that the evidence favors for as many tokens as a distillation reads, and log the choice.

    A run that is in the output folder already keeps its losses.

    Args:
        recipe: The length of the run, and how its texts are read.
        corpus: The texts.
        tokens: The folder of prepared tokens, or None.
        output: The run's folder.
    """
    kl_tokens = _read_kl_tokens(RunFolder(Path(output)).identity)
    if kl_tokens is not None:
        return _choose(few=kl_tokens != Losses().kl_tokens)
    training = recipe.training
    if training.max_tokens:
        return losses_for(training.max_tokens)
    per_epoch = _prepared_tokens(tokens) if tokens else _estimate_tokens(corpus, recipe.data)
    return losses_for(training.epochs * per_epoch)


def losses_for(count: float) -> Losses:
    """Return the losses that the evidence favors for so many tokens, and log the choice."""
    return _choose(few=count < FEW_TOKENS)


def _choose(*, few: bool) -> Losses:
    losses, where, why = (
        (Recipe.load("few_tokens").losses, "KL at masked tokens", "as for few tokens")
        if few
        else (Losses(), "KL", "as DistilBERT's")
    )
    log_once("losses", f"losses: {losses.kl:g} {where} + {losses.mlm:g} masked LM + {losses.cosine:g} cosine, {why}")
    return losses


def _read_kl_tokens(identity: Path) -> str | None:
    """Return losses.kl_tokens of the run in a folder; None where there is no run."""
    try:
        settings = read_identity(read_json_object(identity))
    except (OSError, ValueError):
        return None
    return settings.get("losses.kl_tokens")


def _prepared_tokens(folder: str | Path) -> int:
    return read_manifest(Path(folder))["real_tokens"]["train"]


def _estimate_tokens(corpus: Sequence[str | Path], data: Data) -> float:
    """Return how many tokens the texts have, by their sizes; data sets of the Hub count as many."""
    if any(str(source).startswith("hf:") for source in corpus):
        return FEW_TOKENS
    pieces = split_inputs([str(source) for source in corpus], column=data.column, streaming=data.streaming)
    return sum(piece.size for piece in pieces) / BYTES_PER_TOKEN
