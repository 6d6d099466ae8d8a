"""Test the text column of rows.

A value that is no text, no row or no csv is named with its place. Anything else is read to the last
character.
"""

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_distill.data import csv_rows, rows, sources
from ds_distill.data.parquet_pages import largest_page
from ds_distill.data.read_warnings import Findings
from ds_distill.data.readers import documents, read
from ds_distill.data.sources import split_inputs
from ds_distill.utils.errors import UserError


def texts(path, data, findings=None):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [d.text for piece in split_inputs([str(path)]) for d in read(piece, findings=findings)]


@pytest.mark.parametrize(
    "name, data, message",
    [
        (
            "a.csv",
            "text\nit is a, b, c\n",
            r"a\.csv, row 1 \(line 2\): 3 fields, but the header has 1 \(text\); a field that contains a comma must "
            r"be quoted",
        ),
        ("a.csv", "id,text\n1,fine\n2,it is a, b\n", r"row 2 \(line 3\): 3 fields, but the header has 2 \(id, text\)"),
        (
            "a.tsv",
            "id\ttext\n1\tfine\tmore\n",
            r"row 1 \(line 2\): 3 fields.*a field that contains a tab must be quoted",
        ),
        (
            "a.csv",
            'id,text\n1,"he said \\"so\\", and left"\n',
            r"row 1 \(line 2\): there is text after a closing quote; write a literal quote",
        ),
        ("a.csv", 'id,text\n1,"said \\", and"\n', r"row 1 \(line 2\): .*a quote"),
        (
            "a.csv",
            'id,text\n1,fine\n2,"open\n3,fine\n4,fine\n',
            r"row 2 \(line 3\): a quote that is opened there is never closed",
        ),
        (
            "a.tsv",
            'id\ttext\n1\t"open\n2\tb\n3\tc\n4\tclosed"\n5\tx\n',
            r"row 1 \(line 2\): a field that begins with a quote continues over 3 more rows",
        ),
        ("a.tsv", '"id\ttext\n1\ta\n2\tb\n', r"a quote that is opened there is never closed"),
        ("a.tsv", 'id\ttext\n1\t"Yes" she said\n', r"row 1 \(line 2\): there is text after a closing quote"),
        (
            "a.csv",
            "id,text\n1,first line\nsecond line\n",
            r"row 2 \(line 3\): 1 fields, but the header has 2 \(id, text\); a field that contains a line break must "
            r"be quoted",
        ),
        ("a.csv", "text,text\na,b\n", r"a\.csv: 2 columns are named 'text'"),
        ("a.csv", "id;text\n1;one\n", r"no column 'text'; the columns are id;text"),
        (
            "a.jsonl",
            '{"text": "one"}\n{"text": ["two"]}\n',
            r"jsonl, line 2: column 'text' contains a list, not text; make it one string .*a\.jsonl#COL",
        ),
        ("a.jsonl", '{"text": {"en": "one"}}\n', r"line 1: column 'text' contains an object, not text"),
        ("a.jsonl", '{"text": 5}\n', r"line 1: column 'text' contains a number, not text"),
        ("a.jsonl", '{"text": true}\n', r"line 1: column 'text' contains true or false, not text"),
        (
            "a.json",
            '{\n  "text": "one"\n}\n',
            r"a\.json, line 1: a JSON value that spans several lines; one object per line is expected: jq -c '\.' ",
        ),
        ("a.json", '[\n  {"text": "one"}\n]\n', r"a JSON value that spans several lines.*jq -c '\.\[\]' "),
    ],
)
def test_what_is_no_row_of_text_is_named_with_its_place(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message) as error:
        texts(tmp_path / name, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, data, expected",
    [
        ("a.csv", "id,text,,\n1,one,,\n2,two,,,\n", ["one", "two"]),  # a spreadsheet writes empty cells like this
        ("a.csv", 'id,text\n1, "with a space"\n2,"x" ,\n3,"y"  \n', ['"with a space"', "x", "y"]),
        ("a.csv", 'id,text\n\n1,"two\nlines, and ""quotes"""\n\n', ['two\nlines, and "quotes"']),
        ("a.csv", "id,text,note\n1,one\n2,two,x\n", ["one", "two"]),
        ("a.csv", 'text\r\n"a\r\nb"\r\n', ["a\r\nb"]),
        ("a.csv", "a,b\n", []),
        ("a.csv", "", []),
        ("a.tsv", 'id\ttext\n1\ta "quoted" word\n2\t"a ""quoted"" word"\n', ['a "quoted" word', 'a "quoted" word']),
        ("a.tsv", 'id\ttext\n1\t"two\nlines"\n', ["two\nlines"]),
        ("a.jsonl", '{"text": "one"}\n\n{"text": null}\n{"text": NaN}\n"two"\n', ["one", "", "", "two"]),
    ],
)
def test_what_was_read_rightly_is_read_as_ever(tmp_path, name, data, expected):
    assert texts(tmp_path / name, data) == expected


FIELDS = st.text(st.sampled_from([*"ab ,\t\"\n\r;'\\", "é", "中", "\u2028"]), max_size=12)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS), max_size=6),
    delimiter=st.sampled_from(",\t"),
    ends=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_a_csv_writer_writes_comes_back(tmp_path, rows, delimiter, ends, quoting):
    """The rows come back, or an error names a tsv field that looks like rows swallowed by an open quote."""
    if (
        quoting == csv.QUOTE_MINIMAL
    ):  # the library's writer leaves a lone carriage return unquoted, which ends a row for every reader
        rows = [(first.replace("\r", " "), text.replace("\r", " ")) for first, text in rows]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=ends).writerows([("id", "text"), *rows])
    findings = Findings()
    try:
        actual = texts(tmp_path / ("a.csv" if delimiter == "," else "a.tsv"), stream.getvalue(), findings)
    except UserError as error:
        assert delimiter == "\t" and "continues over" in str(error)
        return
    assert actual == [text.strip() for _, text in rows]
    assert findings.characters["read"] == sum(len(text) for _, text in rows)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.text(st.sampled_from([*'ab,"\n\\'])).map(lambda text: f"id,text\n{text}"))
def test_any_csv_is_read_whole_or_answered(tmp_path, data):
    try:
        actual = texts(tmp_path / "a.csv", data)
    except UserError as error:
        assert "a.csv, " in str(error)
        return
    letters = sum(data.split("\n", 1)[1].count(letter) for letter in "ab")
    ids = [row[0] for row in list(csv.reader(io.StringIO(data, newline="")))[1:] if row]
    assert sum(text.count(letter) for text in [*actual, *ids] for letter in "ab") == letters


def test_an_open_quote_that_another_closes_is_remarked_on(tmp_path):
    findings = Findings()
    rows = "".join(f"{i},words, as it were\n" for i in range(300))
    texts(tmp_path / "a.csv", f'id,text\n1,"open\n{rows}300,closed"\n', findings)
    [(times, sentence)] = findings.remarks.values()
    assert (
        times == 1 and "row 1 (line 2): one field contains 301 line breaks; check that its quote is closed" in sentence
    )
    findings = Findings()
    texts(tmp_path / "b.csv", "id,text,note\n" + "1,one\n" * 3, findings)
    [(times, sentence)] = findings.remarks.values()
    assert times == 3 and "row 1 (line 2): 2 fields, but the header has 3" in sentence


@pytest.mark.parametrize(
    "kind, what",
    [
        (pyarrow.list_(pyarrow.string()), "lists"),
        (pyarrow.struct([("a", pyarrow.string())]), "objects"),
        (pyarrow.int64(), "int64 values"),
        (pyarrow.float32(), "float values"),
        (pyarrow.bool_(), "bool values"),
        (pyarrow.map_(pyarrow.string(), pyarrow.string()), "objects"),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_column_that_is_no_text_is_said_before_anything_is_read(tmp_path, kind, what, ending):
    path = tmp_path / f"a.{ending}"
    table = pyarrow.table({"text": pyarrow.array([None], kind)})
    if ending == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=rf"a\.{ending}: column 'text' contains {what}, not text"):
        split_inputs([str(path)])


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "binary", "large_binary", "binary_view"])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_strings_and_bytes_of_every_arrow_type_are_text(tmp_path, kind, ending):
    path, values = tmp_path / f"a.{ending}", ["one é", None, "two"]
    array = pyarrow.array(
        [v if v is None or "binary" not in kind else v.encode() for v in values], getattr(pyarrow, kind)()
    )
    write_arrow(path, pyarrow.table({"text": array}))
    assert [d.text for piece in split_inputs([str(path)]) for d in read(piece)] == ["one é", "", "two"]
    write_arrow(path, pyarrow.table({"text": pyarrow.array(["a", "b", "a"]).dictionary_encode()}))
    assert list(documents([str(path)])) == ["a", "b", "a"]


def write_arrow(path, table):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def test_bytes_that_are_no_utf_8_are_marked_in_a_column_too(tmp_path):
    """They are written as bytes, or as strings by a writer that does not check."""
    data = pyarrow.array([b"caf\xe9 au lait", b"fine"], pyarrow.binary())
    unchecked = pyarrow.Array.from_buffers(pyarrow.string(), len(data), data.buffers())
    for name, array in (("a", data), ("b", unchecked)):
        write_arrow(tmp_path / f"{name}.arrow", pyarrow.table({"text": array}))
        parsed = [d for piece in split_inputs([str(tmp_path / f"{name}.arrow")]) for d in read(piece)]
        assert [(d.text, d.bad_utf8) for d in parsed] == [("caf\ufffd au lait", True), ("fine", False)]


@pytest.mark.parametrize("data", [b'{"text": "caf\xe9"}\n', b'{"text": "caf\\ud83d"}\n'])
def test_half_characters_are_one_lost_character(tmp_path, data):
    findings = Findings()
    assert texts(tmp_path / "a.jsonl", data, findings) == ["caf\ufffd"] and findings.characters["read"] == 4


def test_a_hub_data_set_of_lists_is_answered(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": ["a", "b"]}) + "\n")
    with pytest.raises(UserError, match="row 1 of part 1: column 'text' contains a list, not text"):
        list(documents([f"hf:{tmp_path / 'set'}"]))


def swallowing(header: str, row: str, delimiter: str, opens: str, closes: str, between: int) -> str:
    """Return a file in which a quote that one row opens is closed by another, `between` rows later."""
    lines = [row.format(delimiter=delimiter, number=number, text=f"text {number}") for number in range(between + 40)]
    lines[10] = row.format(delimiter=delimiter, number=10, text=opens)
    lines[11 + between] = row.format(delimiter=delimiter, number=11 + between, text=closes)
    return "\n".join([header.replace(",", delimiter), *lines]) + "\n"


@pytest.mark.parametrize(
    "header, row",
    [
        ("text,id", "{text}{delimiter}{number}"),
        ("id,text", "{number}{delimiter}{text}"),
        ("a,text,id", "x{delimiter}{text}{delimiter}{number}"),
    ],
)
@pytest.mark.parametrize("delimiter, between", [("\t", 130), ("\t", 5), (",", 130), (",", 30)])
def test_rows_that_a_quote_has_swallowed_are_refused(tmp_path, header, row, delimiter, between):
    file = tmp_path / ("t.tsv" if delimiter == "\t" else "t.csv")
    file.write_text(swallowing(header, row, delimiter, '"open', 'closed"', between))
    with pytest.raises(
        UserError,
        match=rf"{file.name}, row 11 \(line 12\): "
        rf"a field that begins with a quote continues over {between + 1} more rows",
    ):
        list(documents([str(file)]))


def test_a_swallowing_quote_in_one_column_is_remarked_on(tmp_path):
    (tmp_path / "t.csv").write_text(swallowing("text", "{text}", ",", '"open', 'closed"', 30))
    findings = Findings()
    texts = [text for piece in split_inputs([str(tmp_path / "t.csv")]) for text in read(piece, findings=findings)]
    assert len(texts) < 50 and "one field contains 31 line breaks" in findings.remarks["quotes"][1]


def test_texts_of_many_lines_are_no_swallowed_rows(tmp_path):
    verses = [
        f"It is an ancient Mariner, {n}\nAnd he stoppeth one of three.\nBy thy long beard\n\nand glittering eye,"
        for n in range(50)
    ]
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "text"], *enumerate(verses)])
    findings = Findings()
    assert [
        d.text for piece in split_inputs([str(tmp_path / "t.csv")]) for d in read(piece, findings=findings)
    ] == verses
    assert not findings.remarks


def test_a_key_that_stands_twice_in_one_object_is_refused_where_its_values_differ(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "text": "a", "id": 1, "id": 2}\n')
    assert list(documents([str(tmp_path / "t.jsonl")])) == ["a"]
    (tmp_path / "t.jsonl").write_text('{"text": "a", "text": "b"}\n')
    with pytest.raises(UserError, match="line 1: 'text' is given more than once"):
        list(documents([str(tmp_path / "t.jsonl")]))


def test_rows_of_any_length_are_read_or_counted(tmp_path, monkeypatch):
    """What is too long is skipped, with its characters; its neighbors are not."""
    monkeypatch.setattr(sources, "LONGEST_ROW", 100)
    values = ["short", "é" * 200, "last"]
    write_arrow(tmp_path / "a.parquet", pyarrow.table({"text": values}))
    write_arrow(tmp_path / "b.arrow", pyarrow.table({"text": pyarrow.array(values).dictionary_encode()}))
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in values]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n" + lines[1])
    for name, count, characters in (("a.parquet", 1, 200), ("b.arrow", 1, 200), ("c.jsonl", 2, len(lines[1]) * 2 + 1)):
        findings = Findings()
        assert texts(tmp_path / name, (tmp_path / name).read_bytes(), findings) == ["short", "last"]
        assert (
            findings.characters
            == {
                "read": 9 + characters,
                "long_rows": characters,
                "between_documents": 0,
            }
            and findings.remarks["long rows"][0] == count
        )
    assert "c.jsonl, line 2: a row of 213 characters is skipped" in findings.sentences()[0]
    with pytest.raises(UserError, match=r"line 1: a JSON array; one JSON object per line"):
        texts(tmp_path / "d.json", b'[{"text": "' + b"a" * 200)


@pytest.mark.parametrize("row", ["x" * 200, '"' + "x\n" * 200])
def test_a_row_of_a_csv_that_does_not_end_is_refused(tmp_path, monkeypatch, row):
    monkeypatch.setattr(csv_rows, "LONGEST_ROW", 100)
    with pytest.raises(UserError, match=r"t\.csv, row 2 \(line 3\): a row of more than .* an unclosed quote"):
        texts(tmp_path / "t.csv", f"text\nfine\n{row}\n".encode())


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_largest_page_is_found_in_the_headers(tmp_path, version, compression):
    column = pyarrow.array([f"{number:05d}" * 20 for number in range(3000)] + ["x" * 70_000])
    pyarrow.parquet.write_table(
        pyarrow.table({"text": column}),
        tmp_path / "t.parquet",
        data_page_version=version,
        data_page_size=5_000,
        write_batch_size=10,
        compression=compression,
        use_dictionary=False,
    )
    chunk = pyarrow.parquet.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0).column(0)
    first, length = chunk.data_page_offset, chunk.total_compressed_size
    with (tmp_path / "t.parquet").open("rb") as stream:
        assert 70_000 < largest_page(stream, first, first + length) < 76_000
        for start in (0, first + 1, first + length):
            with pytest.raises(ValueError, match="no page header at byte"):
                largest_page(stream, start, start + length)


def test_rows_of_a_page_that_is_too_large_are_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_LARGEST_PAGE", 1000)
    table = pyarrow.table({"text": ["kept"] * 2 + ["x" * 2000] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    findings = Findings()
    assert texts(tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes(), findings) == ["kept"] * 2
    assert findings.remarks["long rows"][0] == 2 and findings.characters["long_rows"] > 2000
    assert "row group 1: its 2 rows are skipped" in findings.sentences()[0]


def test_the_pages_that_are_measured_are_those_of_the_column(tmp_path, monkeypatch):
    """A struct before it has a leaf of the same name."""
    long, texts = "x" * 100_000, ["some words", "more words"]
    table = pyarrow.table({"meta": [{"text": long}, {"text": "y"}], "text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="none")
    monkeypatch.setattr(rows, "_LARGEST_PAGE", 50_000)
    findings = Findings()
    [piece] = split_inputs([str(tmp_path / "a.parquet")])
    assert [document.text for document in read(piece, findings=findings)] == texts and not findings.sentences()
