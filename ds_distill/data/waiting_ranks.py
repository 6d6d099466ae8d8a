"""The ranks of a job wait while the first of them prepares a corpus; beyond some size that is refused."""

from __future__ import annotations

import shlex

from ds_distill.data.hub_sets import hub_bytes
from ds_distill.data.sources import WorkUnit
from ds_distill.recipe import Recipe
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError

# the settings that are decided when a corpus is prepared
_FIXED = ("mode", "sequence_length", "heldout_fraction", "drop_duplicates", "column")
WARNED_BYTES, REFUSED_BYTES = 10**9, 10 * 10**9


def check_waiting_ranks(
    corpus: list[str],
    size: int | None,
    hosts: int,
    ranks: int,
    tokenizer: str,
    recipe: Recipe,
    option: str = "--corpus",
) -> None:
    """Log that ranks wait for the preparation of a corpus, or refuse it where hosts would wait for hours.

    Args:
        corpus: The inputs.
        size: Their bytes; None where they are not known.
        hosts: Number of hosts of the job.
        ranks: Number of its ranks.
        tokenizer: The folder of the tokenizer.
        recipe: The recipe.
        option: The option that gave `corpus`.

    Raises:
        UserError: If the job has several hosts, and the corpus is larger than REFUSED_BYTES.
    """
    if ranks == 1 or size is not None and size <= WARNED_BYTES:
        return
    settings = {f"data.{key}": getattr(recipe.data, key) for key in _FIXED}
    words = ["ds-distill", "prepare", "--tokenizer", tokenizer, "--corpus", *corpus]
    for key, value in (settings | {"training.seed": recipe.training.seed}).items():
        words += [f"--{key}", str(value).lower() if isinstance(value, bool) else str(value)]
    remedy = f"{shlex.join(words)} --output TOKENS"
    remedy += ", then give --tokens TOKENS" if option == "--corpus" else ""
    text = "a text of unknown size is" if size is None else f"{size / 1e9:,.1f} GB of text are"
    what = f"{option}: {text} prepared by one host"
    if hosts > 1 and size is not None and size > REFUSED_BYTES:
        raise UserError(f"{what}, and {hosts} hosts would wait for it; prepare them first: {remedy}")
    log(f"{what}, and {ranks} ranks wait for it; it costs less to prepare them first: {remedy}")


def corpus_bytes(pieces: list[WorkUnit]) -> int | None:
    """Return the bytes of a corpus; None where a data set of the Hub does not tell its own."""
    hub_sets = [hub_bytes(*key) for key in {(piece.path, piece.streaming) for piece in pieces if piece.kind == "hub"}]
    known = [size for size in hub_sets if size is not None]
    return None if len(known) < len(hub_sets) else sum(known) + sum(piece.size for piece in pieces)
