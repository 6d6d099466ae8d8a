"""Test vocabularies whose ids need more than 16 bits: Unigram, and byte-level BPE.

The quick tests have more pieces than 16 bits can number, the long ones as many as the largest multilingual encoders.
"""

import itertools
from string import ascii_lowercase

import numpy as np
import pytest
from transformers import DebertaV2Tokenizer, RobertaTokenizer

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.prepare import prepare
from ds_distill.data.tokenizer import load_tokenizer, vocabulary_size


def unigram(size: int):
    """Build a tokenizer whose pieces are words w0, w1, ...; the mask comes last, beyond them, as DeBERTa has it."""
    marks = [(mark, 0.0) for mark in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    words = [(f"\u2581w{number}", -5.0) for number in range(size - 1 - len(marks))]
    tokenizer = DebertaV2Tokenizer(vocab=[*marks, *words], model_max_length=512)
    return tokenizer, lambda number: f"w{number - 4}", size - 1


def byte_bpe(size: int):
    """Build a tokenizer whose merges give all pairs of letters, then words of four letters that follow a space."""
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(RobertaTokenizer(vocab={}, merges=[]).backend_tokenizer.pre_tokenizer.alphabet())
    pairs = ["".join(two) for two in itertools.product(ascii_lowercase, repeat=2)]
    spaced = [f"\u0120{pair}" for pair in pairs]  # the sign that byte-level BPE writes a space as
    known = [*marks, *letters, *pairs, *spaced]
    words = list(itertools.islice(itertools.product(spaced, pairs), size - len(known)))
    merges = [*(tuple(pair) for pair in pairs), *(("\u0120", pair) for pair in pairs), *words]
    vocabulary = {piece: number for number, piece in enumerate([*known, *map("".join, words)])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=512)
    pieces = list(vocabulary)
    return tokenizer, lambda number: pieces[number].removeprefix("\u0120"), 4


@pytest.mark.parametrize("size", [80_000, pytest.param(256_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("build", [unigram, byte_bpe])
def test_many_pieces_are_loaded_and_make_tokens(build, size, tmp_path):
    made, word, mask = build(size)
    made.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert vocabulary_size(tokenizer) == size and tokenizer.mask_token_id == mask
    rare, last = range(70_000, 70_200), size - 2
    (tmp_path / "text.txt").write_text("\n\n".join(f"{word(last)} {word(number)} {word(last)}" for number in rare))
    settings = {"sequence_length": 16, "heldout_fraction": 0.1, "seed": 0, "workers": 1}
    manifest = prepare([str(tmp_path / "text.txt")], tokenizer, tmp_path / "out", **settings)
    assert manifest["vocab_size"] == size
    ids = []
    for part in ("train", "heldout"):
        store = TokenDataset.open(tmp_path / "out", part)
        ids += [store.sequence(number) for number in range(len(store))]
    ids = np.concatenate(ids)
    assert ids.dtype == np.uint32 and {*rare, last} <= {*ids} and tokenizer.unk_token_id not in ids
