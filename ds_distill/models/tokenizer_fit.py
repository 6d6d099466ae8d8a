"""Whether a tokenizer and the model beside it belong together."""

from __future__ import annotations

import codecs
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ds_distill.console import say
from ds_distill.errors import UserError


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, given: str) -> None:
    """Raise UserError, beginning with `given` (the option and the folder), where the tokenizer has ids for which the model has no embedding, with the
    cause where the tokenizer's own folder tells it.

    The largest id counts, not the number of tokens: ids may have gaps.
    """
    ids, lacking = tokenizer.get_vocab(), _absent_from_vocab_txt(tokenizer)
    beyond = sorted((name for name, number in ids.items() if number >= config.vocab_size), key=ids.get)
    if not beyond:
        for name in lacking:
            say(f"warning: {given}: its vocab.txt lacks {name}, which is counted as token {ids[name]}; was the model trained so?")
        return
    said = f"{given}: its tokenizer has {max(ids.values()) + 1} tokens, the model {config.vocab_size}"
    if lacking and (Path(tokenizer.name_or_path) / "vocab.txt").read_bytes().startswith(codecs.BOM_UTF8):
        raise UserError(f"{said}: vocab.txt begins with a byte-order mark, which makes its first line another token; save it as UTF-8 without one")
    if lacking:
        raise UserError(f"{said}: vocab.txt lacks {', '.join(lacking)}; put it back into the line of the id that the model learned it by")
    shown = ", ".join(beyond[:4]) + (" …" if len(beyond) > 4 else "")
    if set(beyond) <= tokenizer.get_added_vocab().keys():
        raise UserError(f"{said}: {shown} were added; call model.resize_token_embeddings(len(tokenizer)), train the new rows and save the model again, "
                        "or take the added tokens out of the tokenizer")  # fmt: skip
    raise UserError(f"{said}: {shown} are beyond it, so it is another model's; save the model's own tokenizer in its folder")


def _absent_from_vocab_txt(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens that the tokenizer had to add, where a vocab.txt without them is all that its folder has."""
    folder = Path(tokenizer.name_or_path)
    if not (folder / "vocab.txt").is_file() or any((folder / name).is_file() for name in ("tokenizer.json", "added_tokens.json")):
        return []
    written = (folder / "vocab.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return [token for token in tokenizer.all_special_tokens if token not in map(str.rstrip, written)]
