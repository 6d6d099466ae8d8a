"""The inputs of a model: texts as rows of tokens, and rows of unequal length as one array."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from ds_distill.models.families import INPUTS


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[list[str]], length: int
) -> tuple[dict[str, list[list[int]]], int]:
    """Return the token lists of texts, or of pairs of texts, by name of the input, and how many rows were cut.

    Args:
        tokenizer: It cuts at its truncation side. Its folder's other settings for inputs and
            lengths are ignored.
        texts: One or two columns.
        length: The most tokens of a row, special tokens included.
    """
    encoded = tokenizer(
        *texts, truncation=True, max_length=length, return_token_type_ids=True, return_attention_mask=True
    )
    return {name: encoded[name] for name in INPUTS}, sum(bool(encoding.overflowing) for encoding in encoded.encodings)


def pad_right(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, np.ndarray]:
    """Return the rows' values by name, int64 [rows, longest].

    input_ids are filled up with `pad_id`, everything else with 0. The tokenizer's own `pad` uses
    the side that its folder names. On the left, the absolute positions of a row would depend on the
    rows beside it, and so would the model's outputs.
    """
    width = max(len(row["input_ids"]) for row in rows)
    padded = {name: np.full((len(rows), width), pad_id if name == "input_ids" else 0, np.int64) for name in rows[0]}
    for name, values in padded.items():
        for line, row in zip(values, rows, strict=True):
            line[: len(row[name])] = row[name]
    return padded
