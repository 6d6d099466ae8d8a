"""Test the copies of examples and of questions, and the questions made of a corpus."""

import json

import numpy as np
import pytest

from ds_distill.augment import CLOZE, FILE
from ds_distill.augment.copies import OTHER_PAIR, WORDS, copy_examples
from ds_distill.augment.questions import OTHER_PARAGRAPH, copy_questions, make_cloze_questions
from ds_distill.augment.words import WordProposer
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune.augmented import read_augmented
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import load_data
from ds_distill.jobs import augment as job
from ds_distill.models.loading import load_masked_lm
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.own_task import find_task
from ds_distill.tasks.squad import Question
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def proposer(folder):
    return WordProposer(load_masked_lm(str(folder)), load_tokenizer(folder))


TEXTS = [f"the river and a town of the hills {i}" for i in range(40)]
OTHERS = [f"a town of the river and the hills {i}" for i in range(40)]


def test_copies_of_pairs_are_rewritten_and_some_are_paired_anew(proposer):
    task = get_task("rte")
    rows = list(copy_examples(task, [TEXTS, OTHERS], 0, proposer, 5, 1))
    assert rows == list(copy_examples(task, [TEXTS, OTHERS], 0, proposer, 5, 1))
    assert rows != list(copy_examples(task, [TEXTS, OTHERS], 0, proposer, 5, 2))
    assert 0.15 < np.mean([row["how"] == OTHER_PAIR for row in rows]) < 0.35 and "label" not in rows[0]
    for row in rows:
        source, number = row["source"], int(row["texts"]["sentence2"].split()[-1])
        assert int(row["texts"]["sentence1"].split()[-1]) == source and 1 <= row["copy"] <= 5
        assert (row["how"] == OTHER_PAIR) == (number != source)
        assert (row["texts"]["sentence1"], row["texts"]["sentence2"]) != (TEXTS[source], OTHERS[source])
    alone = list(copy_examples(task, [TEXTS[:1], OTHERS[:1]], 0, proposer, 20, 1))
    assert {row["how"] for row in alone} == {WORDS}, "there is no other pair"
    one_text = list(copy_examples(get_task("sst2"), [TEXTS], 0, proposer, 2, 1))
    assert {row["how"] for row in one_text} == {WORDS} and set(one_text[0]["texts"]) == {"sentence"}
    assert not list(copy_examples(get_task("sst2"), [["12 + 3", ""]], 0, proposer, 2, 1)), "equal to their sources"


def test_copies_of_labeled_words_have_as_many_words(proposer, tmp_path):
    """Also where words hold spaces, or nothing but spaces, as lists in JSON may."""
    for split in ("train", "dev"):
        (tmp_path / f"{split}.conll").write_text("Ada B-person\n")
    task = find_task("ner", str(tmp_path))
    sentences = [["the", "town of", "the river", "", " ", "hills"], ["12", "+"], ["a", "river"]]
    rows = list(copy_examples(task, [sentences], 7, proposer, 6, 1))
    assert {row["source"] for row in rows} == {7, 9} and all(row["how"] == WORDS for row in rows)
    for row in rows:
        made, (sentence,) = sentences[row["source"] - 7], row["texts"].values()
        assert [word.count(" ") for word in sentence] == [word.count(" ") for word in made] and sentence != made
        assert [word for word in sentence if not word.strip()] == [word for word in made if not word.strip()]


def test_copies_of_questions_may_ask_about_a_paragraph_nearby(proposer):
    contexts = [f"paragraph {i}" for i in range(30)]
    questions = [Question(str(i), "the river and a town", contexts[i // 2], ()) for i in range(60)]
    places = {context: number for number, context in enumerate(contexts)}
    rows = list(copy_questions(questions, contexts, places, 0, proposer, 4, 1))
    moved = [row for row in rows if row["how"] == OTHER_PARAGRAPH]
    assert 0.15 < len(moved) / len(rows) < 0.35
    for row in rows:
        distance = abs(places[row["texts"]["context"]] - int(row["source"]) // 2)
        assert distance <= 5 and (distance > 0) == (row["how"] == OTHER_PARAGRAPH)
    alone = [Question("0", "12?", "a", ())]
    assert not list(copy_questions(alone, ["a"], {"a": 0}, 0, proposer, 9, 1))


def test_cloze_questions_are_sentences_with_a_gap():
    sentence = "The town of {} lies near the great river in the hills of the north."
    names = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon"]
    paragraph = " ".join(sentence.format(name) for name in names)
    documents = [f"Title\n{paragraph}\nShort line.", paragraph]
    (first, second) = make_cloze_questions(documents, 3)
    assert [first, second] == list(make_cloze_questions(documents, 3)) and first != second
    for row in (first, second):
        assert row["texts"]["context"] == paragraph and row["how"] == CLOZE
        kept = row["texts"]["question"].split()
        words = next(words for name in names if len(set(kept) - set(words := sentence.format(name).split())) == 0)
        gap = len(words) - len(kept)
        assert 1 <= gap <= 5
        assert any(kept == words[:at] + words[at + gap :] for at in range(len(kept) + 1))


def test_the_file_is_the_same_after_an_interruption(folder, tmp_path, monkeypatch):
    data = tmp_path / "sst2"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence": text, "label": i % 2} for i, text in enumerate(TEXTS)]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(job, "EXAMPLES", 16)
    task = get_task("sst2")
    whole = job.augment(task, str(folder), tmp_path / "whole", data=str(data), copies=2)
    write, made = job._write, []

    def interrupted(output, name, rows):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return write(output, name, rows)

    monkeypatch.setattr(job, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.augment(task, str(folder), tmp_path / "resumed", data=str(data), copies=2)
    made.clear()
    monkeypatch.setattr(job, "_write", write)
    kept = (tmp_path / "resumed" / "parts" / "000000000.jsonl").stat().st_mtime_ns
    job.augment(task, str(folder), tmp_path / "resumed", data=str(data), copies=2)
    files = [tmp_path / name / FILE for name in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes() and kept
    lines = files[0].read_text().splitlines()
    assert len(lines) == whole["rows"] == sum(whole["how"].values()) and not (tmp_path / "whole" / "parts").exists()


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x1c", "\r", "\f"])
def test_a_text_may_hold_any_end_of_a_line(folder, tmp_path, end):
    data, task = tmp_path / "sst2", get_task("sst2")
    data.mkdir()
    rows = [{"sentence": f"the river{end}and a town {i}", "label": i % 2} for i in range(8)]
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = job.augment(task, str(folder), tmp_path / "made", data=str(data), copies=2)
    read = read_augmented(tmp_path / "made", load_data(task, str(data)), [FinetuneConfig()])
    assert len(read) == made["rows"] > 0 and all(end in row["texts"]["sentence"] for row in read)


def test_a_corpus_is_known_by_its_content(folder, tmp_path):
    data, sentence = tmp_path / "squad", "The town of {} lies near the great river in the hills of the north."
    data.mkdir()
    question = {"question": "the river?", "context": "a town", "answers": {"text": ["town"], "answer_start": [2]}}
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text(json.dumps(question | {"id": split}))
    text = " ".join(sentence.format(name) for name in ("Alpha", "Beta", "Gamma", "Delta", "Epsilon"))
    for name, content in (("one", text), ("two", text), ("other", text + " More."), ("short", "A title.")):
        (tmp_path / f"{name}.txt").write_text(content)

    def make(name, output="made"):
        corpus = [str(tmp_path / f"{name}.txt")]
        return job.augment(
            get_task("squad"), str(folder), tmp_path / output, data=str(data), copies=0, corpus=corpus, cloze=1
        )

    assert make("one") == make("two") | {"file": str(tmp_path / "made" / FILE)} and make("one")["how"] == {CLOZE: 1}
    with pytest.raises(UserError, match="made holds another run .corpus was"):
        make("other")
    (tmp_path / "made").rename(tmp_path / "moved")
    assert make("one", "moved")["file"] == str(tmp_path / "moved" / FILE)
    with pytest.raises(UserError, match="--cloze 1: the corpus yields 0 questions, made of lines of 60 to 250 words"):
        make("short", "none")
