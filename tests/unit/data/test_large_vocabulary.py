"""Test vocabularies of the size of the largest multilingual encoders: Unigram, and byte-level BPE."""

import itertools
from string import ascii_lowercase

import numpy as np
import pytest
from transformers import DebertaV2Tokenizer, RobertaTokenizer

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.prepare import prepare
from ds_distill.data.tokenizer import load_tokenizer, vocabulary_size

SIZE = 256_000


def unigram():
    """Build a tokenizer whose pieces are words w0, w1, ...; the mask comes last, beyond them, as DeBERTa has it."""
    marks = [(mark, 0.0) for mark in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    words = [(f"\u2581w{number}", -5.0) for number in range(SIZE - 1 - len(marks))]
    tokenizer = DebertaV2Tokenizer(vocab=[*marks, *words], model_max_length=512)
    return tokenizer, lambda number: f"w{number - 4}", SIZE - 1


def byte_bpe():
    """Build a tokenizer whose merges give all pairs of letters, then words of four letters that follow a space."""
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(RobertaTokenizer(vocab={}, merges=[]).backend_tokenizer.pre_tokenizer.alphabet())
    pairs = ["".join(two) for two in itertools.product(ascii_lowercase, repeat=2)]
    spaced = [f"\u0120{pair}" for pair in pairs]  # the sign that byte-level BPE writes a space as
    known = [*marks, *letters, *pairs, *spaced]
    words = list(itertools.islice(itertools.product(spaced, pairs), SIZE - len(known)))
    merges = [*(tuple(pair) for pair in pairs), *(("\u0120", pair) for pair in pairs), *words]
    vocabulary = {piece: number for number, piece in enumerate([*known, *map("".join, words)])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=512)
    pieces = list(vocabulary)
    return tokenizer, lambda number: pieces[number].removeprefix("\u0120"), 4


@pytest.mark.parametrize("build", [unigram, byte_bpe])
def test_256000_pieces_are_loaded_and_make_tokens(build, tmp_path):
    made, word, mask = build()
    made.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert vocabulary_size(tokenizer) == SIZE and tokenizer.mask_token_id == mask
    rare, last = range(70_000, 70_200), SIZE - 2
    (tmp_path / "text.txt").write_text("\n\n".join(f"{word(last)} {word(number)} {word(last)}" for number in rare))
    settings = {"sequence_length": 16, "heldout_fraction": 0.1, "seed": 0, "workers": 1}
    manifest = prepare([str(tmp_path / "text.txt")], tokenizer, tmp_path / "out", **settings)
    assert manifest["vocab_size"] == SIZE
    ids = []
    for part in ("train", "heldout"):
        store = TokenDataset.open(tmp_path / "out", part)
        ids += [store.sequence(number) for number in range(len(store))]
    ids = np.concatenate(ids)
    assert ids.dtype == np.uint32 and {*rare, last} <= {*ids} and tokenizer.unk_token_id not in ids
