"""Test tokenizers, packing, and prepared data on disk."""

import fcntl
import json
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, DebertaV2Tokenizer, PreTrainedTokenizerFast

from ds_distill.data import sources, token_files
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.document_hashes import hash_text
from ds_distill.data.encode import Encoder
from ds_distill.data.parts import Part
from ds_distill.data.prepare import Preparation, prepare
from ds_distill.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_wordpiece
from ds_distill.data.worker import PieceWorker
from ds_distill.utils.errors import UserError

WORDS = "the student learns what a teacher knows from soft targets and [MASK] tokens in packed blocks".split()


def some_documents(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(some_documents(200), 300, tmp_path_factory.mktemp("tokenizer") / "t")


def run(tokenizer, output, documents, **changes):
    settings = dict(sequence_length=16, heldout_fraction=0.2, seed=3) | changes
    text = output.parent / "text" / f"{output.name}.txt"
    text.parent.mkdir(exist_ok=True)
    text.write_text("\n\n".join(documents))
    return prepare([str(text)], tokenizer, output, **settings)


def sequences(folder, split):
    store = TokenDataset.open(folder, split)
    return [store.sequence(i) for i in range(len(store))]


def test_tokenizer_is_a_uncased_bert_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert again("The STUDENT")["input_ids"] == tokenizer("the student")["input_ids"]
    assert again.decode(again("teacher")["input_ids"]) == "[CLS] teacher [SEP]"
    assert (again.pad_token_id, again.mask_token_id) == (0, 4)
    assert again("zzz?")["input_ids"][1:-1].count(again.unk_token_id) >= 1


def test_tokenizer_training_is_the_same_in_every_process(tmp_path):
    # Hash seeds differ between processes, not within one, and such a text has many ties.
    code = (
        "import sys, random; from pathlib import Path; from ds_distill.data.tokenizer import *; r = random.Random(0);"
        "texts = [''.join(r.choices('abcdefgh ', k=2000)) for _ in range(5)];"
        "print(tokenizer_fingerprint(train_wordpiece(texts, 300, Path(sys.argv[1]))))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / str(i))],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for i in range(2)
    ]
    first, second = (process.communicate()[0].strip() for process in runs)
    assert first and first == second


def test_tokenizer_errors(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="at least 200"):
        train_wordpiece(["a"], 20, tmp_path / "t")
    with pytest.raises(UserError, match="no word"):
        train_wordpiece([" "], 300, tmp_path / "t")


def test_tokenizer_without_mask_token_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(tmp_path / "tokenizer.json")), unk_token="[UNK]"
    )
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="no mask token"):
        load_tokenizer(tmp_path / "bare")


def test_the_ends_of_a_text_may_be_called_bos_and_eos(tokenizer, tmp_path):
    """As Gemma's are, whose tokenizer mmBERT has."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ends = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    others = {"mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **ends, **others).save_pretrained(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert (loaded.cls_token_id, loaded.sep_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    backend.post_processor = None
    PreTrainedTokenizerFast(tokenizer_object=backend, **ends, **others).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="no cls token"):
        load_tokenizer(tmp_path / "bare")


def test_packing_gives_the_token_stream_back(tokenizer, tmp_path):
    documents = some_documents(2500)  # several batches, several writes
    manifest = run(tokenizer, tmp_path / "d", documents)
    streams = {}
    for split in ("train", "heldout"):
        store, blocks = TokenDataset.open(tmp_path / "d", split), sequences(tmp_path / "d", split)
        lengths = np.array([len(ids) for ids in blocks])
        assert (lengths[:-1] == 16).all() and lengths.sum() == manifest["real_tokens"][split]
        assert (store.lengths(np.arange(len(store))) == lengths).all()
        special = tokenizer.all_special_ids
        assert store.maskable(np.arange(len(store))).tolist() == [int((~np.isin(ids, special)).sum()) for ids in blocks]
        assert all(ids[0] == manifest["cls_id"] and ids[-1] == manifest["sep_id"] for ids in blocks)
        streams[split] = [int(i) for ids in blocks for i in ids[1:-1]]
        if split == "train":
            assert (store.token_counts == np.bincount(np.concatenate(blocks), minlength=len(tokenizer))).all()
    # Every document is in one split, whole and in order.
    expected = {"train": [], "heldout": []}
    for text in documents:
        # "[MASK]" in a text is ordinary text: [ mask ].
        ids = tokenizer(text.replace("[MASK]", "[ MASK ]"), add_special_tokens=False)["input_ids"]
        side = expected["heldout" if (hash_text(3, text) >> 11) / 2**53 < 0.2 else "train"]
        side.extend(([manifest["sep_id"]] if len(side) % 14 else []) + ids)
    assert streams == expected
    assert tokenizer.mask_token_id not in streams["train"]
    assert 0.15 < manifest["documents"]["heldout"] / 2500 < 0.25


def test_pieces_and_workers_do_not_change_the_result(tokenizer, tmp_path, monkeypatch):
    documents = some_documents(2500)
    whole = run(tokenizer, tmp_path / "whole", documents)
    monkeypatch.setattr(sources, "PIECE_BYTES", 40_000)
    one, three = (run(tokenizer, tmp_path / "text" / ".." / "d", documents, workers=workers) for workers in (1, 3))
    assert one == three and len(sources.split_inputs([str(tmp_path / "text" / "d.txt")])) > 5
    assert one["documents"] == whole["documents"] and one["blocks"]["heldout"] - whole["blocks"]["heldout"] in (
        -1,
        0,
        1,
    )
    short = [ids for ids in sequences(tmp_path / "d", "train") if len(ids) < 16]
    assert len(short) <= 1  # the remainders of the pieces are packed together
    ordinary = [
        np.bincount(np.concatenate(sequences(tmp_path / name, "train")), minlength=300)[5:] for name in ("whole", "d")
    ]
    assert (ordinary[0] == ordinary[1]).all()


@pytest.mark.promise("An interrupted prepare leaves nothing that looks finished, and resumes")
def test_an_interrupted_call_goes_on_with_the_pieces_that_are_done(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 10_000)
    documents = some_documents(1500)
    expected = run(tokenizer, tmp_path / "a", documents, workers=1)
    done = []

    def stop_at_the_third(self, piece, folder, tick):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(folder)
        return work(self, piece, folder, tick)

    work = PieceWorker.__call__
    monkeypatch.setattr(PieceWorker, "__call__", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "b", documents, workers=1)
    assert not (tmp_path / "b").exists()  # nothing that looks finished
    stamps = {folder: folder.stat().st_ino for folder in done}
    again = []
    monkeypatch.setattr(
        PieceWorker,
        "__call__",
        lambda self, piece, folder, tick: (again.append(folder), work(self, piece, folder, tick)),
    )
    text = tmp_path / "text" / "b.txt"
    stamp = text.stat().st_mtime_ns
    manifest = prepare(
        [str(text)], tokenizer, tmp_path / "b", sequence_length=16, heldout_fraction=0.2, seed=3, workers=1
    )
    assert text.stat().st_mtime_ns == stamp and not set(again) & set(stamps) and len(again) > 3
    assert manifest["fingerprint"] == expected["fingerprint"]
    assert not list(tmp_path.glob(".*"))
    # An assembly that is interrupted starts again from all pieces.
    stop = mock.patch.object(token_files, "_append_rows", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), stop:
        run(tokenizer, tmp_path / "c", documents, workers=1)
    assert not (tmp_path / "c").exists()
    again.clear()
    text = tmp_path / "text" / "c.txt"
    prepare([str(text)], tokenizer, tmp_path / "c", sequence_length=16, heldout_fraction=0.2, seed=3, workers=1)
    assert (
        not again and sequences(tmp_path / "c", "train")[7].tolist() == sequences(tmp_path / "a", "train")[7].tolist()
    )
    assert not list(tmp_path.glob(".*"))
    # A call with other settings does not use these pieces.
    done.clear()
    monkeypatch.setattr(PieceWorker, "__call__", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "b", documents, workers=1, seed=5)
    monkeypatch.setattr(PieceWorker, "__call__", work)
    assert run(tokenizer, tmp_path / "b", documents, workers=1)["fingerprint"] == expected["fingerprint"]


def test_two_calls_on_one_folder(tokenizer, tmp_path):
    building = tmp_path / ".d.building"
    building.mkdir()
    with (building / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another process; wait"):
            run(tokenizer, tmp_path / "d", some_documents(9))


def test_lines_sequences_are_lines(tokenizer, tmp_path):
    lines = [" ".join(["teacher"] * n) for n in (3, 9, 10, 30, 62, 63, 200)] + ["the " * 5 + "日" * 1 + " 日" * 10]
    manifest = run(
        tokenizer, tmp_path / "d", ["\n".join(lines)], mode="lines", sequence_length=64, heldout_fraction=0.0
    )
    rows = sequences(tmp_path / "d", "train")
    one = tokenizer("teacher", add_special_tokens=False)["input_ids"]
    assert len(one) == 1
    # 200 = 62 + 62 + 62 + 14. Three and nine words are too short, and one line has too many unknown words.
    assert [len(ids) for ids in rows] == [12, 32, 64, 64, 64, 64, 64, 16]
    assert (
        manifest["found"]["sequences_too_short"] == 3 and manifest["found"]["sequences_unknown"] == 1
    )  # and the last word of 63
    assert all(ids[0] == manifest["cls_id"] and ids[-1] == manifest["sep_id"] for ids in rows)


def test_what_was_found_is_counted(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 2000)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_bytes(
        b"teacher student\n\n"
        + b"soft targets " * 400
        + b"\n\nbad \xff utf8 in a document of some words here and there"
    )
    (folder / "b.jsonl").write_text(
        '{"text": ""}\n{"text": "the same"}\n{"text": "the same"}\n{"text": "  "}\n{"text": null}\n'
    )
    manifest = prepare(
        [str(folder)], tokenizer, tmp_path / "d", sequence_length=16, heldout_fraction=0.1, seed=0, workers=1
    )
    counts = manifest["found"]
    assert (counts["empty"], counts["duplicate"], counts["bad_utf8"], counts["cut"], counts["short"]) == (3, 1, 1, 3, 3)
    assert sum(manifest["documents"].values()) == 1 + 3 + 1 + 2
    assert sum(source["documents"] for source in manifest["sources"]) == 7
    assert 0 < manifest["unknown_share"] < 0.5


def pieces_of(texts: list[str]) -> list[str]:
    """Return characters, and whole words as they stand after a space."""
    return sorted({x for text in texts for word in text.split() for x in (*word, "\u2581", f"\u2581{word}")})


@pytest.mark.parametrize("kind", ["wordpiece", "bytelevel", "unigram", "deberta"])
def test_remembered_words_give_the_librarys_ids(kind):
    texts = [
        "Plain words, again words; words!",
        "tab\tand  two spaces\nline\r\nend ",
        " leading and trailing ",
        "\x1c odd \x1f\x00 con\x0ctrol\x0b \x85",
        "naïve café e\u0301 中文字 日本 ½ ﬁ ﷺ ... don't U.S.A. 3.14 a_b [MASK] <mask> </s>",
        "ümlaut ÜMLAUT İ ß ſ \u200b zero\u200bwidth \u3000wide",
        "\u00a0no break ´ acute",
        "a\u00a0b c\u2003 d\u3000e \u2028f",
        "",
        "   ",
        "🙂🙂 emoji",
        "word" * 300,
    ]
    corpus = [" ".join(WORDS), *texts] * 20
    if kind == "wordpiece":
        tokenizer = Tokenizer(
            models.WordPiece(
                {"[UNK]": 0}
                | {
                    c: i
                    for i, c in enumerate(
                        sorted({x for w in WORDS for x in (w, *w, *("##" + c for c in w))} | set("!\"'.,;[]<>/_3.14½")),
                        1,
                    )
                },
                unk_token="[UNK]",
            )
        )
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    elif kind == "bytelevel":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            corpus, trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
        )
    elif kind == "deberta":
        tokenizer = DebertaV2Tokenizer(
            vocab=[("[UNK]", 0.0), *((piece, -len(piece) / 9) for piece in pieces_of(corpus))]
        ).backend_tokenizer
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        tokenizer.train_from_iterator(
            corpus,
            trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
        )
    encoder = Encoder(tokenizer)
    for _ in range(2):
        assert [ids.tolist() for ids in encoder(texts)] == [
            e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)
        ]
    assert encoder.caches_words, [
        t for t in texts if encoder._by_word([t])[0].tolist() != tokenizer.encode(t, add_special_tokens=False).ids
    ]
    tokenizer.add_tokens(["new york"])
    assert not Encoder(tokenizer).caches_words
    # A tokenizer that looks across spaces is not mistaken for one that does not.
    crossing = Tokenizer(
        models.BPE(vocab={"a": 0, " ": 1, "b": 2, "a ": 3, "a b": 4}, merges=[("a", " "), ("a ", "b")])
    )
    encoder = Encoder(crossing)
    assert [ids.tolist() for ids in encoder(["a b", "b a b"])] == [[4], [2, 1, 4]] and not encoder.caches_words


def test_special_tokens_that_a_text_spells_out_are_left_out(tmp_path):
    """XLM-R's <s> and <mask> are pieces of its own vocabulary, so a page with <s>…</s> in it would add separators."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [
        (word, -float(i)) for i, word in enumerate([*special, "▁", *(f"▁{word}" for word in WORDS), *"<>/smaskpd"])
    ]
    backend = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    text = " ".join(WORDS)
    plain = run(tokenizer, tmp_path / "plain", [text] * 9)
    marked = run(tokenizer, tmp_path / "marked", [text.replace(" ", " <s></s><pad> <mask> ", 1)] * 9)
    for split in ("train", "heldout"):
        for ids in sequences(tmp_path / "marked", split):
            assert set(ids[1:-1]).isdisjoint({0, 1, 4}), "a </s> between documents is ours"
    assert marked["found"]["special"] == 4 * 9 and plain["found"]["special"] == 0


def test_manifest_is_reproducible_and_complete(tokenizer, tmp_path):
    documents = some_documents(50)
    first = run(tokenizer, tmp_path / "a", documents)
    assert first == json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert run(tokenizer, tmp_path / "b", documents)["fingerprint"] == first["fingerprint"]
    assert first["dtype"] == "uint16" and first["tokenizer_fingerprint"] == tokenizer_fingerprint(tokenizer)
    assert run(tokenizer, tmp_path / "c", documents, seed=4)["fingerprint"] != first["fingerprint"]
    assert load_tokenizer(tmp_path / "a" / "tokenizer")("the")["input_ids"] == tokenizer("the")["input_ids"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "text"]  # nothing half-built is left
    run(tokenizer, tmp_path / "a", some_documents(30))  # replaces
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["fingerprint"] != first["fingerprint"]


def test_a_single_document_still_gives_both_splits_a_sequence(tokenizer, tmp_path):
    for seed in range(8):  # the hash can put it on either side
        manifest = run(tokenizer, tmp_path / str(seed), [" ".join(WORDS * 4)], seed=seed, heldout_fraction=0.5)
        assert min(manifest["blocks"].values()) >= 1
        train = sequences(tmp_path / str(seed), "train")
        counts = TokenDataset.open(tmp_path / str(seed)).token_counts
        assert (counts == np.bincount(np.concatenate(train), minlength=len(counts))).all()
    assert run(tokenizer, tmp_path / "none", some_documents(9), heldout_fraction=0.0)["blocks"]["heldout"] == 0
    assert len(TokenDataset.open(tmp_path / "none", "heldout")) == 0
    assert run(tokenizer, tmp_path / "all", some_documents(9), heldout_fraction=1.0)["blocks"]["train"] == 0


def test_prepare_errors_leave_nothing(tokenizer, tmp_path):
    for documents in ([], [" ", ""]):
        with pytest.raises(UserError, match="corpus is empty"):
            run(tokenizer, tmp_path / "d", documents)
    with pytest.raises(UserError, match="sequence_length = 2"):
        run(tokenizer, tmp_path / "d", ["a"], sequence_length=2)
    with pytest.raises(UserError, match="heldout_fraction = 1.5"):
        run(tokenizer, tmp_path / "d", ["a"], heldout_fraction=1.5)
    assert not (tmp_path / "d").exists()
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="not prepared data"):
        run(tokenizer, tmp_path, ["a"])
    with pytest.raises(UserError, match="data.mode = packt: must be packed or lines"):
        run(tokenizer, tmp_path / "d", ["a"], mode="packt")


def test_a_folder_that_cannot_be_replaced_is_told_first(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for given in (".", tmp_path / "here"):
        with pytest.raises(UserError, match="here|\\.: the current folder, which the finished folder cannot replace"):
            prepare(["nowhere.txt"], tokenizer, given, sequence_length=32, heldout_fraction=0.0, seed=0)
    with pytest.raises(UserError, match=r"/proc: a mount point, .* choose a folder in it, such as /proc/tokens"):
        prepare(["nowhere.txt"], tokenizer, "/proc", sequence_length=32, heldout_fraction=0.0, seed=0)


def test_a_link_to_a_folder_stays_one(tokenizer, tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "tokens").symlink_to(tmp_path / "large disk")
    for _ in range(2):
        run(tokenizer, tmp_path / "tokens", some_documents(9))
        assert (tmp_path / "tokens").is_symlink() and (tmp_path / "large disk" / "manifest.json").is_file()


@pytest.mark.promise("A damaged token file is named, with the place")
def test_store_names_what_is_missing_or_cut(tokenizer, tmp_path):
    with pytest.raises(UserError, match="manifest.json is missing"):
        TokenDataset.open(tmp_path)
    run(tokenizer, tmp_path / "d", some_documents(50))
    file = next((tmp_path / "d").glob("train-*.bin"))
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{file.name}: expected {size:,} bytes, but the file has {size - 2:,} bytes"):
        TokenDataset.open(tmp_path / "d")
    file.unlink()
    with pytest.raises(UserError, match="the file is missing"):
        TokenDataset.open(tmp_path / "d")
    with pytest.raises(UserError, match="no split named"):
        TokenDataset.open(tmp_path / "d", "dev")


@pytest.mark.promise("No document is both trained on and held out, however long it is")
def test_a_long_document_is_on_one_side_and_its_copy_is_found(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 300)
    words = [word for word in WORDS if word != "[MASK]"]
    documents = [f"{word} {other} {' '.join(words * 20)}" for word in words for other in words]
    documents.append(documents[5])
    manifest = run(tokenizer, tmp_path / "d", documents, heldout_fraction=0.5)
    assert manifest["found"]["duplicate"] == 1 and manifest["found"]["cut"] > 4 * len(documents)
    for split, half in (("heldout", 0), ("train", 1)):
        first_parts = [text[:300].rsplit(" ", 1)[0] for text in documents]
        whole = [text for text, part in zip(documents, first_parts, strict=True) if hash_text(3, part) >> 63 == half]
        expected = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in whole)
        stream = np.concatenate([ids[1:-1] for ids in sequences(tmp_path / "d", split)])
        assert np.count_nonzero(stream != manifest["sep_id"]) == expected > 0


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.promise("Parts of a corpus that many hosts prepare at once are, byte for byte, what one call makes")
def test_parts_that_are_prepared_apart_are_what_one_call_makes(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 10_000)
    (tmp_path / "a.txt").write_text("\n\n".join(some_documents(1500)))
    inputs, settings = [str(tmp_path / "a.txt")], {"sequence_length": 16, "heldout_fraction": 0.2, "seed": 3}
    expected = prepare(inputs, tokenizer, tmp_path / "one", workers=1, **settings)

    def preparation(**changes):
        return Preparation(inputs, tokenizer, tmp_path / "many", **(settings | changes))

    with pytest.raises(UserError, match=r"no part of it has been prepared; run prepare with --part 1/N"):
        preparation().assemble()
    pieces = len(preparation().pieces)
    total = 0
    for number in (3, 1, 4):
        done = preparation().run_part(Part(number, 4), 1)
        total += done["pieces"]
        assert (
            done["pieces_unhashed"] == 0 and done["pieces_left"] == pieces - total and not (tmp_path / "many").exists()
        )
    with pytest.raises(
        UserError, match=rf"{done['pieces_left']} of {pieces} pieces are missing; run prepare with --part 2/4, then"
    ):
        preparation().assemble()
    with pytest.raises(UserError, match=r"parts of other text, or with other settings, lie in .*\.many\.building"):
        preparation(seed=4).run_part(Part(2, 4), 1)
    with (tmp_path / ".many.building" / "lock").open() as lock:  # another host prepares a part
        fcntl.flock(lock, fcntl.LOCK_SH)
        stamps = [file.stat().st_mtime_ns for file in sorted(tmp_path.glob(".many.building/piece-*/report.json"))]
        assert preparation().run_part(Part(1, 1), 1)["pieces_left"] == 0
        for call in (preparation().assemble, preparation().run):
            with pytest.raises(UserError, match="in use by another process; wait"):
                call()
    finished = sorted(file.stat().st_mtime_ns for file in tmp_path.glob(".many.building/piece-*/report.json"))
    assert len(finished) == pieces and sorted(stamps) == finished[: len(stamps)]  # no piece was made twice
    assert preparation().assemble() == expected
    assert files(tmp_path / "many") == files(tmp_path / "one") and not (tmp_path / ".many.building").exists()


def test_two_processes_that_do_the_same_piece_leave_it_whole(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(some_documents(50)))
    preparation = Preparation(
        [str(tmp_path / "a.txt")], tokenizer, tmp_path / "d", sequence_length=16, heldout_fraction=0.2, seed=3
    )
    worker, other = PieceWorker(preparation.spec), PieceWorker(preparation.spec)
    folder, piece = tmp_path / "piece-00000", preparation.pieces[0]
    worker(piece, folder, lambda read: other(piece, folder) if not folder.is_dir() else None)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == ["piece-00000"]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/3", "1/2/3"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r"must be I/N, such as 1/8 to 8/8"):
        Part.parse(text)


@pytest.mark.promise("Duplicates that are dropped are counted, and the first of each stays")
def test_duplicates_are_dropped_in_any_number_of_parts(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 4_000)
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 200)
    first = some_documents(300)
    random = np.random.default_rng(1)
    documents = [*first, *(first[i] for i in random.permutation(300)[:200]), *some_documents(20, seed=2)]
    rows = [*documents, "", "", "\x00", "new"]  # rows without text are no duplicates
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in rows))
    (tmp_path / "unique.jsonl").write_text("".join(json.dumps(text) + "\n" for text in dict.fromkeys(rows)))
    settings = {"sequence_length": 16, "heldout_fraction": 0.2, "seed": 3}

    def preparation(name, **changes):
        return Preparation([str(tmp_path / "a.jsonl")], tokenizer, tmp_path / name, **settings, **changes)

    unique = prepare([str(tmp_path / "unique.jsonl")], tokenizer, tmp_path / "unique", workers=1, **settings)
    manifest = preparation("d", drop_duplicates=True).run(1)
    assert manifest["documents"] == unique["documents"]
    streams = [np.concatenate([ids[1:-1] for ids in sequences(tmp_path / name, "train")]) for name in ("d", "unique")]
    special = [manifest["sep_id"]]
    assert sorted(streams[0][~np.isin(streams[0], special)]) == sorted(streams[1][~np.isin(streams[1], special)])
    found, characters = manifest["found"], manifest["characters"]
    dropped = [text for number, text in enumerate(rows) if text in rows[:number] and text]
    assert found["duplicates_dropped"] == len(dropped) == 200 and found["duplicate"] == 0 and found["empty"] == 3
    assert 0 <= sum(map(len, dropped)) - characters["duplicates"] < 4 * len(dropped)  # white space where text is cut
    assert 2 * characters["read"] == sum(characters.values())
    assert "of the characters of" in manifest["remarks"][0] and "occurred before" in manifest["remarks"][0]
    assert preparation("plain").run(1)["found"]["duplicate"] == len(dropped)
    # in parts: the documents' hashes first
    pieces = len(preparation("parts").pieces)
    left = [preparation("parts", drop_duplicates=True).run_part(Part(number, 3), 1) for number in (1, 2, 3)]
    assert [done["pieces_unhashed"] > 0 for done in left] == [True, True, False]
    assert left[0]["pieces_left"] == pieces and left[2]["pieces_left"] == pieces - left[2]["pieces"]
    with pytest.raises(UserError, match="run prepare with --part 1/3, --part 2/3, then --assemble"):
        preparation("parts", drop_duplicates=True).assemble()
    for number in (2, 1):
        preparation("parts", drop_duplicates=True).run_part(Part(number, 3), 1)
    assert preparation("parts", drop_duplicates=True).assemble() == manifest
    assert files(tmp_path / "parts") == files(tmp_path / "d")
