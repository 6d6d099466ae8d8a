"""Checks that a tokenizer fits the model beside it, and the adjustment of the tokenizer to the model."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ds_distill.models.families import INPUTS, get_family_by_type, get_input_names
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    offered: Iterable[str] = INPUTS,
    length: int | None = None,
) -> None:
    """Make `tokenizer`, in place, return the inputs of the model's forward, cut to its positions, padded on the right.

    A tokenizer that came with a teacher, or from elsewhere, may return token types that the
    student's forward refuses (transformers 4 refuses them; 5 ignores them). It may also promise
    more tokens than there are positions, and `truncation=True` relies on that number. Padding on
    the left would move a text's tokens to other positions, so the answer would depend on the texts
    beside it. The side on which the tokenizer cuts stays.

    Args:
        tokenizer: Changed in place. Saved with the model, it behaves the same wherever the folder
            is loaded.
        model: A model with any head.
        offered: The inputs to choose from.
        length: The most tokens that the model was trained on, where a text is to be cut to them.
            None uses the tokenizer's own limit.
    """
    positions = get_family_by_type(model.config.model_type).positions(model.config)
    limit = length or tokenizer.model_max_length
    tokenizer.model_max_length = int(min(limit, positions)) if limit and limit > 0 else positions
    tokenizer.model_input_names = get_input_names(model, offered)
    tokenizer.padding_side = "right"


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, given: str) -> None:
    """Raise UserError where the tokenizer has ids for which the model has no embedding.

    The largest id counts, not the number of tokens, because ids may have gaps. The error begins
    with `given` (the option and the folder), and states the cause where the tokenizer's own folder
    shows it.
    """
    ids, lacking = tokenizer.get_vocab(), _absent_from_vocab_txt(tokenizer)
    beyond = sorted((name for name, number in ids.items() if number >= config.vocab_size), key=ids.__getitem__)
    if not beyond:
        for name in lacking:
            log(
                f"warning: {given}: its vocab.txt lacks {name}, so the tokenizer appends it as token {ids[name]}; "
                "check that the model was trained like this"
            )
        return
    prefix = f"{given}: its tokenizer has {max(ids.values()) + 1} tokens, but the model has {config.vocab_size}"
    if lacking and (Path(tokenizer.name_or_path) / "vocab.txt").read_bytes().startswith(codecs.BOM_UTF8):
        raise UserError(
            f"{prefix}: vocab.txt begins with a byte-order mark, which makes its first line another token; "
            "save it as UTF-8 without one"
        )
    if lacking:
        raise UserError(
            f"{prefix}: vocab.txt lacks {', '.join(lacking)}; "
            "put it back on the line of the id under which the model learned it"
        )
    shown = ", ".join(beyond[:4]) + (" …" if len(beyond) > 4 else "")
    if set(beyond) <= tokenizer.get_added_vocab().keys():
        raise UserError(
            f"{prefix}: {shown} were added; call model.resize_token_embeddings(len(tokenizer)), train the new rows and "
            "save the model again, or remove the added tokens from the tokenizer"
        )
    raise UserError(
        f"{prefix}: {shown} have ids beyond that, so it belongs to another model; "
        "save the model's own tokenizer in the folder"
    )


def _absent_from_vocab_txt(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return special tokens that the tokenizer had to add, where its folder has only a vocab.txt without them."""
    folder = Path(tokenizer.name_or_path)
    if not (folder / "vocab.txt").is_file() or any(
        (folder / name).is_file() for name in ("tokenizer.json", "added_tokens.json")
    ):
        return []
    written = (folder / "vocab.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return [token for token in tokenizer.all_special_tokens if token not in map(str.rstrip, written)]
