"""A tokenizer and the model beside it: whether they belong together, and what the one must know of the other."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ds_distill.models.families import INPUTS, family_of_type, inputs_of
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    offered: Iterable[str] = INPUTS,
    length: int | None = None,
) -> None:
    """Have `tokenizer`, in place, give the inputs that the model's forward takes, cut to the model's positions, and pad on the right.

    A tokenizer that came with a teacher, or from elsewhere, may give token types that the student's forward refuses (transformers 4 does; 5 swallows
    them), or promise more tokens than there are positions, which `truncation=True` goes by. Padding on the left would move a text's tokens to other
    positions, and so change the answer with the texts beside it. The side on which it cuts stays.

    Args:
        tokenizer: changed in place; saved with the model, it says the same wherever the folder is loaded.
        model: any head.
        offered: the inputs to choose from.
        length: the most tokens that the model was trained on, where a text is to be cut to them; None for what the tokenizer says.
    """
    positions = family_of_type(model.config.model_type).positions(model.config)
    limit = length or tokenizer.model_max_length
    tokenizer.model_max_length = int(min(limit, positions)) if limit and limit > 0 else positions
    tokenizer.model_input_names = inputs_of(model, offered)
    tokenizer.padding_side = "right"


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, given: str) -> None:
    """Raise UserError, beginning with `given` (the option and the folder), where the tokenizer has ids for which the model has no embedding, with the
    cause where the tokenizer's own folder tells it.

    The largest id counts, not the number of tokens: ids may have gaps.
    """
    ids, lacking = tokenizer.get_vocab(), _absent_from_vocab_txt(tokenizer)
    beyond = sorted((name for name, number in ids.items() if number >= config.vocab_size), key=ids.get)
    if not beyond:
        for name in lacking:
            log(
                f"warning: {given}: its vocab.txt lacks {name}, which is counted as token {ids[name]}; was the model trained so?"
            )
        return
    said = f"{given}: its tokenizer has {max(ids.values()) + 1} tokens, the model {config.vocab_size}"
    if lacking and (Path(tokenizer.name_or_path) / "vocab.txt").read_bytes().startswith(codecs.BOM_UTF8):
        raise UserError(
            f"{said}: vocab.txt begins with a byte-order mark, which makes its first line another token; save it as UTF-8 without one"
        )
    if lacking:
        raise UserError(
            f"{said}: vocab.txt lacks {', '.join(lacking)}; put it back into the line of the id that the model learned it by"
        )
    shown = ", ".join(beyond[:4]) + (" …" if len(beyond) > 4 else "")
    if set(beyond) <= tokenizer.get_added_vocab().keys():
        raise UserError(
            f"{said}: {shown} were added; call model.resize_token_embeddings(len(tokenizer)), train the new rows and save the model again, "
            "or take the added tokens out of the tokenizer"
        )
    raise UserError(
        f"{said}: {shown} are beyond it, so it is another model's; save the model's own tokenizer in its folder"
    )


def _absent_from_vocab_txt(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens that the tokenizer had to add, where a vocab.txt without them is all that its folder has."""
    folder = Path(tokenizer.name_or_path)
    if not (folder / "vocab.txt").is_file() or any(
        (folder / name).is_file() for name in ("tokenizer.json", "added_tokens.json")
    ):
        return []
    written = (folder / "vocab.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return [token for token in tokenizer.all_special_tokens if token not in map(str.rstrip, written)]
