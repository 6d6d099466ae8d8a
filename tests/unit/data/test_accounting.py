"""Characters in the input equal characters tokenized plus characters lost to a named cause.

Large losses are reported.
"""

import gzip
import io
import json
import re
import unicodedata
from csv import writer as csv_writer

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from ds_distill.data import sources
from ds_distill.data.accounting import CAUSES
from ds_distill.data.encode import Encoder
from ds_distill.data.prepare import prepare
from ds_distill.data.readers import read
from ds_distill.data.sources import split_inputs
from ds_distill.data.unencoded import Loss
from ds_distill.utils.errors import UserError

MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), MARKS, strict=True))
# These are known and unknown letters, composed and decomposed accents, controls, all kinds of white space,
# several scripts, the spelling of special tokens, and a broken byte.
ODD = [
    *"abcxyzé <=>.,!\t\n\r\v\f",
    "e\u0301",
    "\u0338",
    "\u0323",
    "Å",
    "ﬁ",
    "ẛ̣",
    "한",
    "각",
    "\u1100\u1161",
    "中",
    "ไ",
    "ั",
    "हि",
    "🙂",
    "👨‍👩‍👧",
    "\x00",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u200b",
    "\u2028",
    "\ufeff",
    "\ufffd",
    "\ue000",
    " <s> ",
    "</s>",
    "[MASK]",
    "ab" * 60,
    "İ",
    "ß",
    "ﷺ",
    "｡ﾞ",
    "\u0600",
]
TEXTS = st.lists(st.sampled_from(ODD), max_size=30).map("".join)


def wordpiece(normalizer=None):
    letters = "abcdeghi.,!<=>中" + unicodedata.normalize("NFD", "각")
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *dict.fromkeys(letters),
        *(f"##{c}" for c in "abcde"),
        "≮",
        "≠",
    ]
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


def unigram(*steps):
    pieces = [(name, 0.0) for name in MARKS] + [("▁", -2.0), *((c, -3.0) for c in "abcdeghi.,!<=>é中")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.Sequence(list(steps))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)


def bytes_or_letters(byte_level, unknown="<unk>", removes=None):
    backend = Tokenizer(models.BPE(unk_token=unknown))
    splits = pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.WhitespaceSplit()
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(removes, "removed"), splits]) if removes else splits
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else list("abcdeghi.,!<=>é中")
    backend.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)


TOKENIZERS = {
    "bert": wordpiece,
    "bert that composes": lambda: wordpiece(normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "bert that replaces pairs": lambda: wordpiece(normalizers.Replace("<a", "b")),
    "unigram": lambda: unigram(normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")),
    "unigram that decomposes": lambda: unigram(normalizers.NFD()),
    "unigram that replaces over spaces": lambda: unigram(normalizers.Replace(Regex(r"a\s+b"), "c")),
    "unigram that prepends": lambda: unigram(normalizers.Prepend("a")),
    "byte-level": lambda: bytes_or_letters(True),
    "letters": lambda: bytes_or_letters(False),
    "letters, none unknown": lambda: bytes_or_letters(False, None),
    "letters, marks removed": lambda: bytes_or_letters(False, "<unk>", ","),
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_remembered_words_are_the_librarys_and_so_are_the_losses(tokenizers, name, texts):
    """Whatever a normalizer does across words, the ids are the library's, and a word's losses are those of its text."""
    tokenizer = tokenizers[name]
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder = Encoder(backend, tokenizer.unk_token_id, ())
    whole = Encoder(backend, tokenizer.unk_token_id, ())
    whole.caches_words = False
    for _ in range(2):
        actual, expected = encoder.encode(texts), whole.encode(texts)
        assert [ids.tolist() for ids in actual.ids] == [
            e.ids for e in backend.encode_batch(texts, add_special_tokens=False)
        ]
        assert (actual.lost == expected.lost).all(), (texts, actual.lost, expected.lost)
        assert (actual.lost.sum(1) <= [len(text) for text in texts]).all()


def test_which_tokenizers_remember_words(tokenizers):
    caches_words = {
        name: Encoder(Tokenizer.from_str(t.backend_tokenizer.to_str())).caches_words for name, t in tokenizers.items()
    }
    assert [name for name, yes in caches_words.items() if yes] == [
        "bert",
        "bert that composes",
        "unigram",
        "unigram that decomposes",
        "byte-level",
        "letters",
        "letters, none unknown",
        "letters, marks removed",
    ]


def lost(tokenizer, text):
    encoded = Encoder(
        Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), tokenizer.unk_token_id, tokenizer.all_special_ids
    ).encode([text])
    return {cause.name.lower(): int(n) for cause, n in zip(Loss, encoded.lost[0], strict=True) if n}


def test_each_character_is_lost_to_the_cause_that_it_is_lost_to(tokenizers):
    bert, letters = tokenizers["bert"], tokenizers["letters, none unknown"]
    assert lost(bert, "abc a.b, abé cafe\u0301") == {
        "unknown": 3 + 1,
        "removed": 1,
    }  # café has an f, which the vocabulary lacks
    assert lost(bert, "abc xyz zé 中国") == {"unknown": 3 + 2 + 1}
    assert lost(bert, f"{'ab' * 50} {'ab' * 51}") == {"too_long": 102}
    assert lost(bert, "각" * 40 + " 각") == {"too_long": 40, "unknown": 1}  # each decomposes into three letters
    assert lost(bert, "a\x00b\u200bc \ufffda \ufffd") == {"removed": 2, "not_utf8": 2}
    assert lost(bert, "x\u200bz\ufffd") == {"unknown": 2, "removed": 1, "not_utf8": 1}
    assert lost(tokenizers["unigram"], "ab <s> b</s>") == {"special_tokens": 7}
    assert lost(tokenizers["unigram"], "abz b zz ze\u0301") == {"unknown": 4}
    assert lost(tokenizers["byte-level"], "xyz 中国 \x00 🙂") == {}
    assert lost(letters, "abz zz 国 a") == {"unknown": 4}  # without an unknown token, they vanish without a trace
    assert lost(tokenizers["letters, marks removed"], "ab, a,, z") == {"unknown": 3 + 1}


def test_marks_that_a_normalizer_composes_are_not_lost():
    backend = Tokenizer(models.BPE(vocab={"é": 0, "a": 1}, merges=[]))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFC(), pre_tokenizers.WhitespaceSplit()
    texts = [
        "ae\u0301a",
        "e\u0301\u0323 ae\u0301",
        "az\u0301",
    ]  # the vocabulary has no letter with both marks and no z with a mark
    assert Encoder(backend).encode(texts).lost.sum(1).tolist() == [0, 3, 2]


# --- prepare ---------------------------------------------------------------------------------------------------------


def write(folder, number, kind, texts):
    """Write a file of the texts in one format; return how many characters it holds for a reader."""
    if kind == "txt":
        # in so short a file, more than one NUL would mean that it is no text
        data = "\n\n".join(texts).replace("\0", "").encode() + b" caf\xe9 \xff"
        (folder / f"{number}.txt").write_bytes(data)
        return len(data.decode(errors="surrogateescape"))
    if kind == "parquet":
        pyarrow.parquet.write_table(
            pyarrow.table({"text": pyarrow.array([*texts, None], pyarrow.string())}), folder / f"{number}.parquet"
        )
    elif kind == "csv":
        texts = [text.replace("\0", "") for text in texts]
        stream = io.StringIO(newline="")
        rows = csv_writer(stream)
        rows.writerows([("id", "text"), *enumerate(texts)])
        (folder / f"{number}.csv").write_text(stream.getvalue(), newline="")
    else:
        data = "".join(json.dumps({"text": text}) + "\n" for text in [*texts, None])
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(data.encode()))
    return sum(map(len, texts))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(
        st.tuples(st.sampled_from(["txt", "jsonl", "csv", "parquet"]), st.lists(TEXTS, max_size=4)),
        min_size=1,
        max_size=3,
    ),
    name=st.sampled_from(["bert", "unigram", "byte-level", "letters, none unknown"]),
    mode=st.sampled_from(["packed", "lines"]),
    cut=st.sampled_from([20, 100_000]),
)
def test_characters_in_are_characters_tokenized_and_characters_lost(
    tokenizers, tmp_path_factory, files, name, mode, cut
):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in").mkdir()
    total = sum(write(folder / "in", number, kind, texts) for number, (kind, texts) in enumerate(files))
    (folder / "in" / "more.txt").write_text("ab " * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "DOCUMENT_CHARACTERS", cut)
        patch.setattr(sources, "PIECE_BYTES", 40)
        manifest = prepare(
            [str(folder / "in")],
            tokenizers[name],
            folder / "out",
            mode=mode,
            sequence_length=16,
            heldout_fraction=0.2,
            seed=0,
            workers=1,
        )
        documents = [d.text for piece in split_inputs([str(folder / "in")]) for d in read(piece)]
    counts = manifest["characters"]
    assert counts.pop("read") == total + 120 == sum(counts.values()) and min(counts.values()) >= 0
    assert list(counts) == ["tokenized", *CAUSES]
    outside = total + 120 - sum(map(len, documents))
    assert (
        counts["between_documents"] == outside + (sum(text.count("\n") for text in documents) if mode == "lines" else 0)
        or mode == "lines"
    )
    if mode == "packed":
        losses = (
            Encoder(
                Tokenizer.from_str(tokenizers[name].backend_tokenizer.to_str()),
                tokenizers[name].unk_token_id,
                tokenizers[name].all_special_ids,
            )
            .encode(documents)
            .lost.sum(0)
        )
        assert [counts[cause.name.lower()] for cause in Loss if cause != Loss.REMOVED] == [
            losses[cause] for cause in Loss if cause != Loss.REMOVED
        ]
        # White space that no token stands for is only in documents without any tokens.
        assert losses[Loss.REMOVED] <= counts["removed"] <= losses[Loss.REMOVED] + sum(map(len, documents))


def remarks(tokenizer, tmp_path, data, name="a.txt", **settings):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    options = {"mode": "packed", "sequence_length": 16, "heldout_fraction": 0.0, "seed": 0, "workers": 1} | settings
    return prepare([str(tmp_path / name)], tokenizer, tmp_path / "out", **options)["remarks"]


GOOD = "a b c d e g h i a b c d e g\n" * 15 + "\n"  # lines of 16 tokens, with [CLS] and [SEP]


@pytest.mark.parametrize(
    "name, bad, much, mode, message",
    [
        (
            "bert",
            b"caf\xe9\n\n",
            1,
            "packed",
            r"a\.txt contain bytes that are not valid UTF-8, .* like WINDOWS-1252; convert it: iconv -f WINDOWS-1252 "
            r"-t UTF-8 .*a\.txt > NEW",
        ),
        (
            "bert",
            "xyz\n\n",
            10,
            "packed",
            r"in words that are not in the tokenizer's vocabulary, such as 'xyz'; check that the tokenizer was "
            r"made for this "
            "language",
        ),
        (
            "bert",
            f"{'abc' * 50}\n\n",
            1,
            "packed",
            r"in words longer than the tokenizer accepts, such as 'abcabcabcabcabcabcab'…; .*spaces between",
        ),
        (
            "bert",
            "a\u0301b\n\n",
            20,
            "packed",
            r"removed by the tokenizer's normalizer, such as U\+0301: control characters, or accents",
        ),
        (
            "unigram",
            "a <s> b\n\n",
            5,
            "packed",
            r"spell out special tokens, such as '<s>', and are ignored; remove them",
        ),
        (
            "bert",
            "abc abc\n\n",
            10,
            "lines",
            r"in lines of fewer than 12 tokens, which data\.mode = lines drops; data\.mode = packed keeps them",
        ),
        (
            "bert",
            "x y z x y z x y z x y z x y z x y z abc\n\n",
            2,
            "lines",
            r"in lines in which at least half of the tokens are unknown",
        ),
        ("bert", "a\ufffda\n\n", 30, "packed", r"replace bytes that are not valid UTF-8"),
    ],
)
def test_a_cause_that_takes_more_than_a_percent_is_said_once_and_a_trace_is_not(
    tokenizers, tmp_path, name, bad, much, mode, message
):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    [line] = [
        line
        for line in remarks(tokenizers[name], tmp_path, GOOD.encode() * 3 + bad * much, mode=mode)
        if "do not know" not in line
    ][-1:]
    assert re.search(message, line) and " % of " in line and "\n" not in line
    assert remarks(tokenizers[name], tmp_path, GOOD.encode() * 300 + bad, mode=mode) == []


def test_one_bad_file_of_many_is_said(tokenizers, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.txt").write_text(GOOD * 300)
    (tmp_path / "in" / "bad.txt").write_bytes("Все люди рождаются свободными и равными\n\n".encode("koi8-r"))
    manifest = prepare(
        [str(tmp_path / "in")],
        tokenizers["byte-level"],
        tmp_path / "out",
        sequence_length=16,
        heldout_fraction=0.0,
        seed=0,
        workers=1,
    )
    [line] = manifest["remarks"]
    assert "(most in " in line and "bad.txt)" in line and "KOI8-R" in line


@pytest.mark.parametrize(
    "data, message",
    [
        (b"abc abc\rbad\rabc\rabc", "lone carriage returns do not count as line breaks"),
        (b"abc abc\fbad\fabc", "form feeds do not count as line breaks"),
        ("abc\u2028bad\u2028abc".encode(), r"U\+2028 do not count as line breaks"),
        ("abc\n\u200b\nbad".encode(), "contain zero-width characters"),
        (b'{"text": "abc"}\n{"text": "bad"}\n', "JSON objects are read as plain text"),
    ],
)
def test_what_makes_one_document_of_many_is_said(tokenizers, tmp_path, data, message):
    assert any(re.search(message, line) for line in remarks(tokenizers["byte-level"], tmp_path, data))


def test_plain_files_are_read_in_silence(tokenizers, tmp_path):
    for data in (
        b"abc",
        b"abc\r\n\r\nbad\r\n",
        b"abc\nbad\nabc\n",
        b"abc\f\n\nbad\f\n\nabc",
        "\ufeffabc\n\nbad".encode(),
        b"{abc}\n\n{bad}",
    ):
        assert remarks(tokenizers["byte-level"], tmp_path, data) == []


def test_empty_rows_and_empty_files_are_said(tokenizers, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": null}\n{"text": NaN}\n{"text": ""}\n' + '{"text": "abc"}\n' * 7)
    (tmp_path / "in" / "b.txt").touch()
    (tmp_path / "in" / "c.txt.gz").write_bytes(gzip.compress(b""))
    manifest = prepare(
        [str(tmp_path / "in")],
        tokenizers["bert"],
        tmp_path / "out",
        sequence_length=16,
        heldout_fraction=0.0,
        seed=0,
        workers=1,
    )
    rows, files = manifest["remarks"]
    assert (
        "30 % of the rows of" in rows
        and "contain no text" in rows
        and "b.txt: the file is empty (1 more like it)" in files
    )
    assert manifest["found"]["empty"] == 3


def test_a_corpus_without_a_token_is_answered_with_the_reason(tokenizers, tmp_path):
    with pytest.raises(UserError, match=r"the corpus is empty, .*; 100 % of the rows of .*a\.jsonl contain no text"):
        remarks(tokenizers["bert"], tmp_path, '{"text": null}\n{"text": null}\n', "a.jsonl")
