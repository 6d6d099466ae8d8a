"""Test labeled examples: which columns are read as text, and which are no text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.cli import export
from ds_distill.cli.parser import build_parser
from ds_distill.exporters.task_score import load_labeled_examples
from ds_distill.tasks.catalog import TASKS, get_task
from ds_distill.tasks.columns import KNOWN, named_columns, text_columns
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder("bert", tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize(
    "name, lines, texts",
    [
        ("indexed.csv", ["idx,sentence,label", "0,a fine film,1", "1,a bad film,0"], [["a fine film", "a bad film"]]),
        (
            "named.jsonl",
            [
                '{"text": "a fine film", "label": 1, "label_text": "good"}',
                '{"text": "7", "label": 0, "label_text": "bad"}',
            ],
            [["a fine film", "7"]],
        ),
        ("pairs.tsv", ["id\tfirst\tsecond\tlabel", "3.5\tone\ttwo\t0"], [["one"], ["two"]]),
    ],
)
def test_an_index_or_a_labels_name_is_not_read_as_text(tmp_path, capsys, name, lines, texts):
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert load_labeled_examples(tmp_path / name)[0] == texts
    assert "read as text: " in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, 7])
def test_a_row_whose_text_is_none_is_said(tmp_path, text):
    (tmp_path / "dev.jsonl").write_text(
        "\n".join(json.dumps({"text": value, "label": 0}) for value in ("a film", text))
    )
    with pytest.raises(UserError, match="1 of its 2 rows lack text in text, or a label"):
        load_labeled_examples(tmp_path / "dev.jsonl")


BESIDE = {
    "id": "review-000-q",
    "idx": "7",
    "Unnamed: 0": "3",
    "source": "the morning paper",
    "guid": "a-b-c",
    "doc_id": "page one",
    "url": "http x y",
    "html": "<p>some words</p>",
    "date": "1 May 2024",
    "created": "2024-05-01T10:00:00",
    "lang": "english",
    "genre": "fiction",
    "split": "dev",
    "author": "Ann Smith",
    "label_text": "good",
    "labels": "good bad",
    "gold_label": "x y",
    "stars": "4.5",
    "year": "2024",
    "pairID": "31193n",
    "text_id": "text no 4",
    "sha256": "ab cd",
    "review_date": "in May",
    "filename": "one of many.txt",
    "tokens": None,
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KNOWN)), st.lists(st.sampled_from(sorted(BESIDE)), unique=True, max_size=5), st.randoms())
def test_what_stands_beside_texts_is_not_read(texts, beside, random):
    names = [*texts, *beside, "label"]
    random.shuffle(names)
    rows = [
        {name: BESIDE.get(name, f"{i} words of {name}") if name != "label" else i % 2 for name in names}
        for i in range(3)
    ]
    assert text_columns(rows, "--data FILE") == list(texts), "and a pair in the order in which a model reads it"


@pytest.mark.parametrize(
    "names",
    [
        ("text", "title"),
        ("review", "summary"),
        ("text", "topic"),
        ("texto", "pregunta"),
        ("source", "target"),
        ("text", "sentence"),
        ("premise", "hypothesis", "explanation"),
        ("question", "text"),
        ("sentence", "notes"),
        ("text1", "text2", "text3"),
        ("a", "c"),
        ("source", "author"),
    ],
)
def test_a_doubt_is_asked_for_with_the_columns(names):
    rows = [{"id": "review-1", "label": 1} | {name: f"words of {name}" for name in names}]
    with pytest.raises(
        UserError,
        match=f"the text may be in any of {', '.join(names)}; name the one or two columns .*: "
        f"FILE#{names[0]},{names[1]}",
    ):
        text_columns(rows, "--data FILE")


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({"review": "fine words", "id": "4"}, ["review"]),
        ({"frase1": "a b", "frase2": "c d"}, ["frase1", "frase2"]),
        ({"id": "a", "inhalt": "b c"}, ["inhalt"]),
        ({"s_b": "c d", "s_a": "a b", "date": "now"}, ["s_a", "s_b"]),
        ({"sentence": "7"}, ["sentence"]),
        ({"source": "a b"}, ["source"]),
    ],
)
def test_where_there_is_no_doubt_nothing_is_asked(columns, texts):
    assert text_columns([columns | {"label": "1"}], "--data FILE") == texts


def test_columns_may_be_named(tmp_path):
    (tmp_path / "dev#1.jsonl").write_text(json.dumps({"title": "t", "body": "b", "label": 1}))
    for given_, columns in (
        ("dev#1.jsonl", []),
        ("dev.jsonl#title", ["title"]),
        ("dev.jsonl#title,body", ["title", "body"]),
    ):
        assert named_columns(str(tmp_path / given_)) == (tmp_path / given_.split("#t")[0], columns)
    for wrong in ("dev.jsonl#", "dev.jsonl#a,b,c", "dev.jsonl#a,"):
        with pytest.raises(UserError, match="name one or two text columns after the #"):
            named_columns(str(tmp_path / wrong))
    examples = load_labeled_examples(tmp_path / "dev#1.jsonl", None, ["body", "title"])
    assert examples.texts == [["b"], ["t"]] and load_labeled_examples(
        tmp_path / "dev#1.jsonl", get_task("sst2"), ["title"]
    ).texts == [["t"]]
    with pytest.raises(UserError, match="no text in column boddy"):
        load_labeled_examples(tmp_path / "dev#1.jsonl", get_task("sst2"), ["boddy"])
    with pytest.raises(UserError, match="no column boddy; the columns are title, body, label"):
        load_labeled_examples(tmp_path / "dev#1.jsonl", None, ["boddy"])


def test_named_columns_pass_the_look_at_paths(folder, tmp_path):
    """Before torch is loaded, the file must exist; the columns after the # are no part of its name."""
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": "t", "label": 1}))
    for given_, there in (
        ("dev.jsonl", True),
        ("dev.jsonl#text", True),
        ("dev.jsonl#a,b", True),
        ("none.jsonl#text", False),
    ):
        words = [
            "export",
            "--model",
            str(folder),
            "--data",
            str(tmp_path / given_),
            "--output",
            str(tmp_path / "o"),
            "--format",
            "onnx",
        ]
        options = build_parser().parse_args(words)["export"]
        if there:
            export.check_paths(options)
        else:
            with pytest.raises(UserError, match="none.jsonl#text: no such file"):
                export.check_paths(options)


@pytest.mark.parametrize(
    "name, text, words",
    [
        (
            "d.csv",
            'label,sentence\n1,fine\n0,"an unclosed quote\n1,more\n',
            "row 2 .*a quote that is opened there is never closed",
        ),
        ("d.csv", 'label,sentence\n1,"He said \\"x\\" twice"\n', "row 1 .*there is text after a closing quote"),
        ("d.csv", "label,sentence\n" + '0,"open\n' + "1,row\n" * 30 + '0,close"\n', "continues over 31 more rows"),
        ("d.csv", "label,sentence,sentence\n1,a,b\n", "line 2: more than one column is named 'sentence'"),
        ("d.csv", "label,label,sentence\n1,0,b\n", "line 2: more than one column is named 'label'"),
        (
            "d.jsonl",
            '{"label": 1, "sentence": "a", "sentence": "b"}\n',
            "line 1: more than one column is named 'sentence'",
        ),
        ("d.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7340\n", "a Git LFS pointer"),
        ("d.parquet", "\nversion https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7340\n", "a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("task", ["sst2", None])
def test_rows_that_would_be_lost_or_taken_for_others_are_refused(tmp_path, name, text, words, task):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        load_labeled_examples(tmp_path / name, TASKS[task] if task else None)


def test_columns_of_one_name_and_one_value_are_one(tmp_path):
    (tmp_path / "D.CSV").write_text("label,sentence,note,note,sentence\n1,a,x,y,a\n")
    assert load_labeled_examples(tmp_path / "D.CSV", TASKS["sst2"]).texts == [["a"]]


def test_half_a_character_is_replaced(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"sentence": "\\ud83d hi \\ud83d\\ude42", "label": 1}\n')
    assert (
        load_labeled_examples(tmp_path / "d.jsonl", TASKS["sst2"]).texts
        == load_labeled_examples(tmp_path / "d.jsonl").texts
        == [["\ufffd hi 🙂"]]
    )


def test_quotes_around_a_tsv_files_texts_are_said(tmp_path, capsys):
    (tmp_path / "d.tsv").write_text('sentence\tlabel\n"a text"\t1\nanother\t0\n')
    assert load_labeled_examples(tmp_path / "d.tsv", TASKS["sst2"]).texts == [['"a text"', "another"]], "as GLUE's own"
    assert "1 of 3 rows have quotes around a field" in capsys.readouterr().err
