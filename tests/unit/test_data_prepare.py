"""Tokenizers, packing, and prepared data on disk."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from ds_distill.data.prepare import prepare
from ds_distill.data.store import TokenStore
from ds_distill.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_wordpiece
from ds_distill.errors import UserError

WORDS = "the student learns what a teacher knows from soft targets and [MASK] tokens in packed blocks".split()


def some_documents(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(some_documents(200), 300, tmp_path_factory.mktemp("tokenizer") / "t")


def run(tokenizer, output, documents, **changes):
    settings = dict(sequence_length=16, heldout_fraction=0.2, seed=3, source="test") | changes
    return prepare(documents, tokenizer, output, **settings)


def test_tokenizer_is_a_uncased_bert_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert again("The STUDENT")["input_ids"] == tokenizer("the student")["input_ids"]
    assert again.decode(again("teacher")["input_ids"]) == "[CLS] teacher [SEP]"
    assert (again.pad_token_id, again.mask_token_id) == (0, 4)
    assert again("zzz?")["input_ids"][1:-1].count(again.unk_token_id) >= 1


def test_tokenizer_training_is_the_same_in_every_process(tmp_path):
    # Hash seeds differ between processes, not within one; ties in such a text are many.
    code = ("import sys, random; from pathlib import Path; from ds_distill.data.tokenizer import *; r = random.Random(0);"
            "texts = [''.join(r.choices('abcdefgh ', k=2000)) for _ in range(5)];"
            "print(tokenizer_fingerprint(train_wordpiece(texts, 300, Path(sys.argv[1]))))")
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / str(i))], stdout=subprocess.PIPE, text=True,
                             env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) for i in range(2)]
    first, second = (process.communicate()[0].strip() for process in runs)
    assert first and first == second


def test_tokenizer_errors(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="at least 200"):
        train_wordpiece(["a"], 20, tmp_path / "t")
    with pytest.raises(UserError, match="no word"):
        train_wordpiece([" "], 300, tmp_path / "t")


def test_tokenizer_without_mask_token_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(tmp_path / "tokenizer.json")), unk_token="[UNK]")
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="no mask token"):
        load_tokenizer(tmp_path / "bare")


def test_packing_gives_the_token_stream_back(tokenizer, tmp_path):
    documents = some_documents(2500)  # several batches, several writes
    manifest = run(tokenizer, tmp_path / "d", documents)
    streams = {}
    for split in ("train", "heldout"):
        store = TokenStore.open(tmp_path / "d", split)
        blocks = np.asarray(store.blocks)
        lengths = store.lengths(np.arange(len(blocks)))
        assert (lengths[:-1] == 16).all() and lengths.sum() == manifest["real_tokens"][split] == (blocks != manifest["pad_id"]).sum()
        assert (blocks[:, 0] == manifest["cls_id"]).all()
        assert all(block[n - 1] == manifest["sep_id"] for block, n in zip(blocks, lengths, strict=True))
        streams[split] = [int(i) for block, n in zip(blocks, lengths, strict=True) for i in block[1 : n - 1]]
        if split == "train":
            expected = np.bincount(blocks.ravel(), minlength=len(tokenizer))
            expected[manifest["pad_id"]] = 0
            assert (store.token_counts == expected).all()
    # Every document is in one split, whole and in order.
    expected = {"train": [], "heldout": []}
    from ds_distill.data.prepare import _unit_hash

    for text in documents:
        # "[MASK]" in a text is text: [ mask ]
        ids = tokenizer(text.replace("[MASK]", "[ MASK ]"), add_special_tokens=False)["input_ids"]
        side = expected["heldout" if _unit_hash(3, text) < 0.2 else "train"]
        side.extend(([manifest["sep_id"]] if side else []) + ids)
    assert streams == expected
    assert tokenizer.mask_token_id not in streams["train"]
    assert 0.15 < manifest["documents"]["heldout"] / 2500 < 0.25


def test_manifest_is_reproducible_and_complete(tokenizer, tmp_path):
    documents = some_documents(50)
    first, second = run(tokenizer, tmp_path / "a", documents), run(tokenizer, tmp_path / "b", iter(documents))
    assert first == second == json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert first["dtype"] == "uint16" and first["tokenizer_fingerprint"] == tokenizer_fingerprint(tokenizer)
    assert run(tokenizer, tmp_path / "c", documents, seed=4)["fingerprint"] != first["fingerprint"]
    assert load_tokenizer(tmp_path / "a" / "tokenizer")("the")["input_ids"] == tokenizer("the")["input_ids"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing half-built is left
    run(tokenizer, tmp_path / "a", some_documents(30))  # replaces
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["fingerprint"] != first["fingerprint"]


def test_a_single_document_still_gives_both_splits_a_block(tokenizer, tmp_path):
    for number, seed in enumerate(range(8)):  # the hash puts it on either side
        manifest = run(tokenizer, tmp_path / str(number), [" ".join(WORDS * 4)], seed=seed, heldout_fraction=0.5)
        assert min(manifest["blocks"].values()) >= 1
        for split in ("train", "heldout"):
            store = TokenStore.open(tmp_path / str(number), split)
            assert (store.lengths(np.arange(len(store.blocks))) == (store.blocks != 0).sum(1)).all()
    assert run(tokenizer, tmp_path / "none", some_documents(9), heldout_fraction=0.0)["blocks"]["heldout"] == 0
    assert TokenStore.open(tmp_path / "none", "heldout").blocks.shape == (0, 16)


def test_prepare_errors_leave_nothing(tokenizer, tmp_path):
    for documents in ([], [" ", ""]):
        with pytest.raises(UserError, match="corpus is empty"):
            run(tokenizer, tmp_path / "d", documents)
    with pytest.raises(UserError, match="sequence_length = 2"):
        run(tokenizer, tmp_path / "d", ["a"], sequence_length=2)
    with pytest.raises(UserError, match="heldout_fraction = 1.5"):
        run(tokenizer, tmp_path / "d", ["a"], heldout_fraction=1.5)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="not prepared data"):
        run(tokenizer, tmp_path, ["a"])


def test_store_names_what_is_missing_or_cut(tokenizer, tmp_path):
    with pytest.raises(UserError, match="manifest.json is missing"):
        TokenStore.open(tmp_path)
    run(tokenizer, tmp_path / "d", some_documents(50))
    file = tmp_path / "d" / "train.bin"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"train.bin: expected {size:,} bytes .*found {size - 2:,} bytes"):
        TokenStore.open(tmp_path / "d")
    file.unlink()
    with pytest.raises(UserError, match="the file is missing"):
        TokenStore.open(tmp_path / "d")
    with pytest.raises(UserError, match="no split named"):
        TokenStore.open(tmp_path / "d", "dev")
