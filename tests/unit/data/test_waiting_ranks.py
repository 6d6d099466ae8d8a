"""Test what is said of a corpus that many ranks would wait for."""

import re
import shlex

import pytest

from ds_distill.cli.parser import build_parser
from ds_distill.data.sources import split_inputs
from ds_distill.data.waiting_ranks import check_waiting_ranks, corpus_bytes
from ds_distill.recipe import Data, Recipe
from ds_distill.utils.errors import UserError

RECIPE = Recipe(Data(mode="lines", sequence_length=64, drop_duplicates=True))


@pytest.mark.parametrize(
    "size, hosts, ranks, answer",
    [
        (5e8, 64, 512, None),
        (9e12, 1, 1, None),
        (5e9, 64, 512, "said"),
        (9e12, 1, 8, "said"),
        (2e10, 2, 16, "refused"),
        (None, 2, 16, "said"),
    ],
)
def test_ranks_do_not_wait_for_hours_without_a_word(capsys, size, hosts, ranks, answer):
    try:
        check_waiting_ranks(["a b/*.txt", "c.jsonl#body"], size and int(size), hosts, ranks, "the teacher", RECIPE)
        said = capsys.readouterr().err
        assert bool(said) == (answer == "said")
    except UserError as error:
        said = str(error)
        assert answer == "refused" and "20.0 GB of text are prepared by one host, and 2 hosts would wait" in said
    if said:
        command = re.search(r"ds-distill (prepare .*), then give --tokens TOKENS", said)[1]
        options = build_parser().parse_args(shlex.split(command)).prepare
        assert options.corpus == ["a b/*.txt", "c.jsonl#body"] and options.tokenizer == "the teacher"
        assert (options.data.mode, options.data.sequence_length, options.data.drop_duplicates) == ("lines", 64, True)


def test_a_data_set_of_the_hub_counts_by_what_it_tells(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("some text")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "one"}\n')
    given = [str(tmp_path / "a.txt"), f"hf:{folder}"]
    assert corpus_bytes(split_inputs(given[:1])) == 9
    assert corpus_bytes(split_inputs(given, streaming=True)) is None
    assert corpus_bytes(split_inputs(given, streaming=False)) > 9
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features: [{name: text, dtype: string}]\n"
        "  splits: [{name: train, num_bytes: 50000000000, num_examples: 1}]\n---\n"
    )
    assert corpus_bytes(split_inputs(given, streaming=True)) == 50_000_000_009
