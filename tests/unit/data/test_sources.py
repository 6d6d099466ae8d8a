"""Every kind of file gives the same documents, whole and in pieces."""

import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from ds_distill.data import hub_sets, sources
from ds_distill.data.read_warnings import Findings
from ds_distill.data.readers import documents, read
from ds_distill.data.sources import corpus_identity, split_inputs
from ds_distill.utils.errors import UserError

TEXTS = ["The first document.", "A second, with a comma\nand a line end.", 'Third: "quoted" and ünïcode 中文']


def write(path, kind):
    rows = [{"id": i, "text": text, "other": "no"} for i, text in enumerate(TEXTS)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1)
        return
    if kind in ("csv", "tsv"):
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        data = stream.getvalue()
    else:
        data = "\n\n".join(TEXTS) if kind == "txt" else "\n".join(map(json.dumps, rows)) + "\n"
    data = data.encode()
    if path.suffix.lower() == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(data)
        return
    path.write_bytes(data)


FILE_FORMATS = ("txt", "jsonl", "csv", "tsv")


@pytest.mark.parametrize(
    "ending",
    [
        *FILE_FORMATS,
        "parquet",
        *(f"{kind}.{packed}" for kind in FILE_FORMATS for packed in ("gz", "zst")),
        "txt.GZ",
        "TSV",
        "tsv.GZ",
    ],
)
def test_every_kind_of_file_gives_the_same_documents(tmp_path, ending):
    path = tmp_path / f"data.{ending}"
    write(path, ending.split(".")[0].lower())
    assert list(documents([str(path)])) == TEXTS
    (piece,) = split_inputs([str(path)])
    seen = []
    list(read(piece, seen.append))
    assert seen == sorted(seen) and seen[-1] == piece.size == path.stat().st_size


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_pieces_of_a_large_file_hold_every_document_once_and_in_order(tmp_path, monkeypatch, kind):
    texts = [f"Document {i}.\nIts second line is {'long ' * (i % 50)}." for i in range(3000)]
    path = tmp_path / f"big.{kind}"
    if kind == "txt":
        path.write_text("\n\n\n".join(texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=100)
    monkeypatch.setattr(sources, "PIECE_BYTES", 10_000)
    pieces = split_inputs([str(path)])
    assert len(pieces) > 5 and sum(piece.size for piece in pieces) <= path.stat().st_size
    assert [d.text for piece in pieces for d in read(piece)] == texts


def test_blank_lines_separate_documents_and_bad_utf8_is_marked(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n\n  \n\nthree \xff\r\n\r\nfour")
    parsed = list(read(split_inputs([str(tmp_path / "a.txt")])[0]))
    assert [(d.text, d.bad_utf8) for d in parsed] == [("one\ntwo", False), ("three \ufffd", True), ("four", False)]


def test_a_file_of_lines_without_blank_ones_is_cut_into_pieces_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 1000)
    monkeypatch.setattr(sources, "PIECE_BYTES", 20_000)
    lines = [f"line {i} of a file that has no blank one" for i in range(10_000)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    pieces = split_inputs([str(tmp_path / "lines.txt")])
    assert len(pieces) > 5
    assert "\n".join(d.text for piece in pieces for d in read(piece)).split("\n") == lines
    (tmp_path / "one.txt").write_text("word " * 100_000)  # has not one line end
    assert len(split_inputs([str(tmp_path / "one.txt")])) == 1


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_parts_of_a_long_document_say_that_they_belong_together(tmp_path, monkeypatch, name):
    """Also where a text file is divided into pieces: a document of up to 40 parts is in one of them."""
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 100)
    monkeypatch.setattr(sources, "PIECE_BYTES", 1000)
    texts = [
        " ".join(f"d{number}" for _ in range(length)) for number, length in enumerate([5, 900, 20, 350, 60, 7, 800])
    ]
    data = "\n\n".join(texts) if name == "a.txt" else "".join(json.dumps(text) + "\n" for text in texts)
    (tmp_path / name).write_text(data)
    pieces = split_inputs([str(tmp_path / name)])
    assert len(pieces) > 2
    seen = []
    for piece in pieces:
        for document in read(piece):
            seen += [document.text] if not document.continues else []
            assert set(document.text.split()) == set(seen[-1].split()) and document.cut == (
                len(texts[len(seen) - 1]) > 100
            )
    assert len(seen) == len(texts)


def test_a_text_file_of_lines_alone_is_remarked_on_and_is_several_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 1000)
    (tmp_path / "lines.txt").write_text("a line\n" * 20_000)
    findings = Findings()
    (piece,) = split_inputs([str(tmp_path / "lines.txt")])
    assert sum(not document.continues for document in read(piece, findings=findings)) == 4  # of 40,000 bytes each
    assert (
        "no blank line in its first 64 KiB, so every 0.04 MB of its lines are one document" in findings.sentences()[0]
    )


def test_half_a_surrogate_pair_is_replaced_and_marked(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "cut emoji \\ud83d here"}\n{"text": "whole \\ud83d\\ude42"}\n')
    parsed = list(read(split_inputs([str(tmp_path / "a.jsonl")])[0]))
    assert [(d.text, d.bad_utf8) for d in parsed] == [("cut emoji \ufffd here", True), ("whole 🙂", False)]


@pytest.mark.parametrize("name", ["a.txt.xz", "b.bin", "c.TXT"])
def test_what_is_not_text_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x00\x01 binary")
    with pytest.raises(UserError, match=f"{name}: not text"):
        split_inputs([str(tmp_path / name)])


def test_a_huge_document_is_cut_between_words_and_loses_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 1000)
    words = [f"wörd{i}" for i in range(20_000)]
    for text in (" ".join(words), "\n".join(" ".join(words[i : i + 12]) for i in range(0, len(words), 12))):
        (tmp_path / "huge.txt").write_text(text)
        parsed = list(read(split_inputs([str(tmp_path / "huge.txt")])[0]))
        assert (
            len(parsed) > 100
            and all(len(d.text) <= 1000 and not d.bad_utf8 for d in parsed)
            and all(d.cut for d in parsed[:-1])
        )
        assert " ".join(d.text for d in parsed).split() == words


def test_folders_patterns_columns(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "notes.md").write_text("m")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    with gzip.open(tmp_path / "deep" / "c.txt.gz", "wt") as file:
        file.write("c1\n\nc2\n")
    (tmp_path / "deep" / "rows.jsonl").write_text('{"text": "t", "body": "b1"}\n{"text": "u", "body": null}\n')
    assert list(documents([str(tmp_path)])) == ["b", "c1", "c2", "t", "u"]
    assert list(documents([str(tmp_path / "*.md"), str(tmp_path / "b.txt")])) == ["m", "b"]
    assert list(documents([f"{tmp_path / 'deep' / 'rows.jsonl'}#body"])) == ["b1"]
    assert [piece.source for piece in split_inputs([str(tmp_path / "b.txt"), str(tmp_path / "deep")])] == [0, 1, 1]


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_data_sets_load_from_a_folder_too(tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    for name, part in (("train-0", TEXTS[:2]), ("train-1", TEXTS[2:]), ("validation-0", ["held out"])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in part))
    pieces = split_inputs([f"hf:{folder}"], streaming=streaming)
    assert len(pieces) == (2 if streaming else 1)
    assert sorted(d.text for piece in pieces for d in read(piece)) == sorted(TEXTS)
    assert [
        d.text for piece in split_inputs([f"hf:{folder}@validation#text"], streaming=streaming) for d in read(piece)
    ] == ["held out"]
    with pytest.raises(UserError, match="no column 'body'; the columns are text, n"):
        split_inputs([f"hf:{folder}#body"], streaming=streaming)
    with pytest.raises(UserError, match=r"@nosuch: cannot be loaded"):
        split_inputs([f"hf:{folder}@nosuch"], streaming=streaming)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_hub_data_set_is_resolved_once_for_all_pieces_and_processes(tmp_path, monkeypatch, streaming):
    import datasets

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "set" / f"train-{number}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    calls, load = [], datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **named: calls.append(words) or load(*words, **named))
    pieces = split_inputs([f"hf:{tmp_path / 'set'}"], streaming=streaming)
    assert sorted(d.text for piece in pieces for d in read(piece)) == sorted(TEXTS) and len(calls) == 1
    packed = hub_sets.pack_hub_sets({(piece.path, piece.streaming) for piece in pieces})
    monkeypatch.setattr(hub_sets, "_opened", {})  # as in a worker's process
    hub_sets.unpack_hub_sets(packed)
    assert sorted(d.text for piece in pieces for d in read(piece)) == sorted(TEXTS) and len(calls) == 1


def test_what_is_missing_is_named_at_the_call(tmp_path):
    for given in (tmp_path / "none.txt", tmp_path / "*.nothing", tmp_path):
        with pytest.raises(UserError, match=str(tmp_path)):
            documents([str(given)])
    with pytest.raises(UserError, match="name at least one"):
        documents([])
    with pytest.raises(UserError, match="write hf:NAME"):
        documents(["hf:"])


def test_damage_is_named_with_its_place(tmp_path):
    path = tmp_path / "broken.txt.gz"
    path.write_bytes(gzip.compress(b"words " * 1000)[:30])
    with pytest.raises(UserError, match="broken.txt.gz: cannot be read"):
        list(documents([str(path)]))
    for name, data, message in (
        ("a.jsonl", '{"text": "x"}\n{"text": ', "a.jsonl, line 2: not JSON"),
        ("b.jsonl", '{"body": "x"}\n', "no column 'text'; the columns are body"),
        ("f.jsonl", '[{"text": "x"}]\n', "f.jsonl, line 1: a JSON array; one JSON object per line"),
        ("c.csv", "a,b\n1,2\n", "no column 'text'; the columns are a, b"),
        ("d.parquet", "PAR", "d.parquet: cannot be read"),
        ("e.txt.zst", "no zstd", "e.txt.zst: cannot be read"),
    ):
        (tmp_path / name).write_text(data)
        with pytest.raises(UserError, match=message):
            list(documents([str(tmp_path / name)]))


def test_the_column_tells_one_corpus_from_another(tmp_path):
    write(tmp_path / "data.jsonl", "jsonl")
    (tmp_path / "data.txt").write_text("text")
    identities = {}
    for column in ("text", "other"):
        inputs = [str(tmp_path / "data.jsonl"), str(tmp_path / "data.txt"), f"{tmp_path / 'data.jsonl'}#text"]
        identities[column] = [entry[2:] for entry in corpus_identity(inputs, split_inputs(inputs, column=column))]
    assert identities == {"text": [[], [], []], "other": [["other"], [], []]}


def test_a_folder_is_read_with_its_links_and_without_what_is_hidden(tmp_path):
    """DIR means the same as DIR/**/*.txt, and a link back up is not followed forever."""
    real, corpus = tmp_path / "elsewhere", tmp_path / "corpus.tsv.d"
    for folder in (real, corpus / "sub", corpus / ".ipynb_checkpoints"):
        folder.mkdir(parents=True)
    (real / "linked.txt").write_text("by a link")
    (corpus / "sub" / "a.csv").write_text("id,text\n1,in a folder\n")  # comma-separated, whatever the folder is called
    (corpus / "sub" / "._a.txt").write_bytes(bytes(9))
    (corpus / ".ipynb_checkpoints" / "b.txt").write_text("hidden")
    (corpus / "wiki").symlink_to(real)
    (real / "up").symlink_to(corpus)
    assert sorted(documents([str(corpus)])) == ["by a link", "in a folder"]


def test_a_line_of_brackets_is_no_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ' + "[" * 200_000)
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: not JSON"):
        list(documents([str(tmp_path / "a.jsonl")]))
