"""Test how --corpus and --tokens give the length of an epoch."""

import pytest
import yaml

from ds_distill.estimate.corpora import BYTES_PER_TOKEN, CORPORA, parse_tokens, size_of_corpus
from ds_distill.utils.errors import UserError
from tests.start import ROOT


def test_known_corpora_add_up_and_say_where_their_sizes_come_from():
    together = size_of_corpus(["Wikipedia+bookcorpus"])
    assert together == size_of_corpus(["wikipedia", "bookcorpus"])
    assert together.tokens == CORPORA["wikipedia"].tokens + CORPORA["bookcorpus"].tokens
    assert together.title == "English Wikipedia and BookCorpus"
    assert CORPORA["wikipedia"].source in together.source and ", estimated" in together.source
    assert ", counted" in size_of_corpus(["fineweb-edu-10bt"]).source


def test_the_inputs_of_the_published_recipe_are_known():
    corpus = yaml.safe_load((ROOT / "ds_configs" / "distilbert_base.yaml").read_text())["corpus"]
    assert size_of_corpus(corpus).tokens == CORPORA["wikipedia"].tokens + CORPORA["bookcorpusopen"].tokens
    assert size_of_corpus([f"{corpus[0]}@train#text"]) == size_of_corpus(["wikipedia"])
    assert size_of_corpus(["hf:wikimedia/wikipedia:20231101.de"]) is None


def test_another_split_is_of_unknown_size():
    for split in ("validation", "train[:1%]"):
        assert size_of_corpus([f"hf:allenai/c4:en@{split}"]) is None
    assert size_of_corpus(["hf:allenai/c4:en@train"]) == size_of_corpus(["c4"])


def test_each_input_is_read_as_often_as_its_weight_says():
    wikipedia, books = CORPORA["wikipedia"].tokens, CORPORA["bookcorpus"].tokens
    assert size_of_corpus(["wikipedia", "bookcorpus"], [1, 4]).tokens == wikipedia + 4 * books
    assert size_of_corpus(["wikipedia+bookcorpus", "1GB"], [2, 0]).tokens == 2 * (wikipedia + books)


def test_a_size_of_text_becomes_tokens():
    assert size_of_corpus(["4.6GB"]).tokens == round(4.6e9 / BYTES_PER_TOKEN) == 10**9


def test_other_inputs_have_no_known_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikipeda").mkdir()
    for inputs in ([], ["elsewhere/text.txt"], ["text.jsonl"], ["*.txt"], ["wikipeda"], ["wikipedia", "books.txt"]):
        assert size_of_corpus(inputs) is None, inputs


@pytest.mark.parametrize("given", ["wikipeda", "wikipedia+wikipeda", "16 PB"])
def test_an_unknown_name_is_answered_with_the_known_ones(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        size_of_corpus([given])
    assert ", ".join(CORPORA) in str(error.value) and "--tokens" in str(error.value)
    assert ("did you mean wikipedia?" in str(error.value)) == ("wikipeda" in given)


def test_tokens_are_a_number_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {parse_tokens(text).tokens for text in ("3.2B", "3.2e9", "3_200_000_000")} == {3_200_000_000}
    assert parse_tokens("prepared") is None
    (tmp_path / "2024").mkdir()
    assert parse_tokens("2024") is None
    with pytest.raises(UserError, match="--tokens 0: must be above 0"):
        parse_tokens("0")
    with pytest.raises(UserError, match="--tokens 0.5: is not a whole number"):
        parse_tokens("0.5")
