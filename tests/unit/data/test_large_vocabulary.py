"""Test a vocabulary of the size of the largest multilingual encoders."""

import numpy as np
from transformers import DebertaV2Tokenizer

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.prepare import prepare
from ds_distill.data.tokenizer import load_tokenizer, vocabulary_size


def test_a_unigram_of_256000_pieces_is_loaded_and_makes_tokens(tmp_path):
    """Its pieces are words; the mask comes last, beyond the pieces, as DeBERTa has it."""
    marks = [(mark, 0.0) for mark in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    words = [(f"\u2581w{number}", -5.0) for number in range(256_000 - 1 - len(marks))]
    DebertaV2Tokenizer(vocab=[*marks, *words], model_max_length=512).save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert vocabulary_size(tokenizer) == 256_000 and tokenizer.mask_token_id == 255_999
    (tmp_path / "text.txt").write_text("\n\n".join(f"w0 w{number} w255994" for number in range(70_000, 70_200)))
    settings = {"sequence_length": 16, "heldout_fraction": 0.1, "seed": 0, "workers": 1}
    manifest = prepare([str(tmp_path / "text.txt")], tokenizer, tmp_path / "out", **settings)
    store = TokenDataset.open(tmp_path / "out", "train")
    ids = np.concatenate([store.sequence(number) for number in range(len(store))])
    assert manifest["vocab_size"] == 256_000 and ids.dtype == np.uint32
    assert {0, 255_994} <= {*(ids[ids > 3] - 4)} and ids.max() == 255_998 and 3 not in ids
