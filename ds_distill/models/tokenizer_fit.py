"""Whether a tokenizer and the model beside it belong together."""

from __future__ import annotations

import codecs
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ds_distill.errors import UserError


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, given: str) -> None:
    """Raise UserError, beginning with `given` (the option and the folder), where the tokenizer has ids for which the model has no embedding, with the
    cause where the tokenizer's own folder tells it.

    The largest id counts, not the number of tokens: ids may have gaps.
    """
    ids = tokenizer.get_vocab()
    beyond = sorted((name for name, number in ids.items() if number >= config.vocab_size), key=ids.get)
    if not beyond:
        return
    said = f"{given}: its tokenizer has {max(ids.values()) + 1} tokens, the model {config.vocab_size}"
    if cause := _fault_of_vocab_txt(Path(tokenizer.name_or_path), [name for name in beyond if name in tokenizer.all_special_tokens]):
        raise UserError(f"{said}: {cause}")
    shown = ", ".join(beyond[:4]) + (" …" if len(beyond) > 4 else "")
    if set(beyond) <= tokenizer.get_added_vocab().keys():
        raise UserError(f"{said}: {shown} were added; call model.resize_token_embeddings(len(tokenizer)), train the new rows and save the model again, "
                        "or take the added tokens out of the tokenizer")  # fmt: skip
    raise UserError(f"{said}: {shown} are beyond it, so it is another model's; save the model's own tokenizer in its folder")


def _fault_of_vocab_txt(folder: Path, special: list[str]) -> str | None:
    """What is wrong with a vocab.txt that is all that a folder has of a tokenizer. special: its special tokens that the model does not know."""
    lines = folder / "vocab.txt"
    if (folder / "tokenizer.json").is_file() or not lines.is_file():
        return None
    if lines.read_bytes().startswith(codecs.BOM_UTF8):
        return "vocab.txt begins with a byte-order mark, which makes its first line another token; save it as UTF-8 without one"
    return f"vocab.txt lacks {', '.join(special)}; put it back into the line of the id that the model learned it by" if special else None
