"""Labelled examples: which columns are read as text, and what is no text."""

import json

import pytest

from ds_distill.errors import UserError
from ds_distill.export.dev import labelled


@pytest.mark.parametrize("name, lines, texts", [
    ("indexed.csv", ["idx,sentence,label", "0,a fine film,1", "1,a bad film,0"], [["a fine film", "a bad film"]]),
    ("named.jsonl", ['{"text": "a fine film", "label": 1, "label_text": "good"}', '{"text": "7", "label": 0, "label_text": "bad"}'],
     [["a fine film", "7"]]),
    ("pairs.tsv", ["id\tfirst\tsecond\tlabel", "3.5\tone\ttwo\t0"], [["one"], ["two"]]),
])  # fmt: skip
def test_an_index_or_a_labels_name_is_not_read_as_text(tmp_path, capsys, name, lines, texts):
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert labelled(tmp_path / name)[0] == texts
    assert "read as text: " in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, 7])
def test_a_row_whose_text_is_none_is_said(tmp_path, text):
    (tmp_path / "dev.jsonl").write_text("\n".join(json.dumps({"text": value, "label": 0}) for value in ("a film", text)))
    with pytest.raises(UserError, match="1 of its 2 rows lack one of text"):
        labelled(tmp_path / "dev.jsonl")
