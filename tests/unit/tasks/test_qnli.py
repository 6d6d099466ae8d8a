"""Test QNLI made from SQuAD: its sentences, its labels and its negatives, against definitions in plain words."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_distill.cli import make_qnli
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.examples import load_examples
from ds_distill.tasks.qnli import HOLDS, LACKS, make_pairs, split_sentences
from ds_distill.tasks.squad import Question
from ds_distill.utils.errors import UserError


def sentences_of(text, answers=()):
    return [text[start:end] for start, end in split_sentences(text, answers)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('He said "Go!" Then he left.  3 men stayed.', ['He said "Go!"', "Then he left.", "3 men stayed."]),
        ("Dr. J. R. Smith of the U.S. Army came. It rained.", ["Dr. J. R. Smith of the U.S. Army came.", "It rained."]),
        ("It grew by 3.5 m. per year, e.g. Here.", ["It grew by 3.5 m. per year, e.g. Here."]),
        ("Title\nA line of text\ngoes on (see no. 4).\n\n", ["Title", "A line of text\ngoes on (see no. 4)."]),
        ("World War I. Then came peace (1918). ", ["World War I.", "Then came peace (1918)."]),
        ("  ", []),
    ],
)
def test_sentences_by_hand(text, sentences):
    assert sentences_of(text) == sentences


def test_no_sentence_ends_in_an_answer():
    text = "She sang Hey. You there in 2001. It sold."
    assert sentences_of(text, [("Hey. You", 9)]) == ["She sang Hey. You there in 2001.", "It sold."]


PIECES = st.lists(st.sampled_from(["A", "b.", "C!", "U.S.", '"D."', "\n", " ", "  ", "1", "(e)", "?"]), max_size=12)


@given(PIECES, st.integers(0, 30), st.integers(1, 9))
def test_sentences_hold_all_text_once_and_answers_whole(pieces, first, length):
    text = "".join(pieces)
    answer = text[first : first + length]
    sentences = split_sentences(text, [(answer, first)] if answer.strip() else [])
    covered = [place for start, end in sentences for place in range(start, end)]
    assert len(covered) == len({*covered}) and {i for i, c in enumerate(text) if not c.isspace()} <= {*covered}
    assert all(text[start:end].strip() == text[start:end] != "" for start, end in sentences)
    if answer.strip():
        begin, stop = first + len(answer) - len(answer.lstrip()), first + len(answer.rstrip())
        assert sum(start <= begin and stop <= end for start, end in sentences) == 1


CONTEXT = (
    "The river is long. Its source lies in the high hills. Ships carry coal down the river to the sea. A fish swims."
)


def ask(name, question, answer, context=CONTEXT):
    return Question(name, question, context, ((answer, context.index(answer)),) if answer else ())


def test_each_question_gives_its_sentence_and_the_one_most_like_it():
    questions = [
        ask("1", "Where does the source of the long river lie?", "in the high hills"),
        ask("2", "What do ships carry down the river?", "coal"),
        ask("3", "What is blue?", "The sky", "The sky is blue."),  # no other sentence
        ask("4", "What is red?", None),
    ]
    pairs, left_out = make_pairs(questions)
    assert left_out == {"questions without an answer": 1, "questions without a sentence that lacks the answer": 1}
    holding = {(pair.id, pair.sentence) for pair in pairs if pair.label == HOLDS}
    assert holding == {
        ("1", "Its source lies in the high hills."),
        ("2", "Ships carry coal down the river to the sea."),
        ("3", "The sky is blue."),
    }
    lacking = {(pair.id, pair.sentence) for pair in pairs if pair.label == LACKS}
    # "long" and "river" of the first question are in the first sentence. For the third, the question with the most
    # words in common with another sentence gives one more.
    assert {("1", "The river is long."), ("2", "The river is long.")} < lacking and len(lacking) == len(holding)
    assert lacking - {("1", "The river is long."), ("2", "The river is long.")} == {
        ("1", "Ships carry coal down the river to the sea.")
    }
    assert make_pairs(questions) == (pairs, left_out)


WORDS = st.lists(st.sampled_from(["one", "two", "ton", "the"]), min_size=1, max_size=4)


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS, st.integers(0, 3))
def test_no_sentence_that_is_said_to_lack_an_answer_has_its_words(sentences, answer, place):
    """Whole words count, in any case, without articles, as SQuAD's script compares them."""
    texts = [f"{' '.join(words).capitalize()}." for words in sentences]
    holding = f"Yes, {' '.join(answer)}."
    texts.insert(place % (len(texts) + 1), holding)
    pairs, _ = make_pairs([ask("1", "One two?", " ".join(answer), " ".join(texts))])
    wanted = [word for word in answer if word != "the"]
    for pair in pairs:
        if pair.label == LACKS:
            words = [word for word in pair.sentence.lower().rstrip(".").split() if word != "the"]
            assert pair.sentence != holding
            assert not wanted or all(words[i : i + len(wanted)] != wanted for i in range(len(words)))


def test_the_files_are_those_of_the_task(tmp_path):
    squad = tmp_path / "squad"
    squad.mkdir()
    for split, name in (("train", "train-v1.1.json"), ("validation", "dev-v1.1.json")):
        question = {"id": f"{split}1", "question": "What do ships carry?"}
        question["answers"] = [{"text": "coal", "answer_start": CONTEXT.index("coal")}]
        paragraph = {"context": f"{CONTEXT} So it is in {split}.", "qas": [question]}
        (squad / name).write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    options = SimpleNamespace(squad=str(squad), output=str(tmp_path / "qnli"))
    make_qnli.check(options)
    make_qnli.check_paths(options)
    summary = make_qnli.run(options)
    assert summary["train"] == {
        "questions": 1,
        "examples": 2,
        "entailment": 1,
        "not_entailment": 1,
        "left_out": {},
    }
    examples = load_examples(get_task("qnli"), "validation", str(tmp_path / "qnli"))
    assert sorted(zip(*examples.texts, examples.labels, strict=True))[0] == (
        "What do ships carry?",
        "Ships carry coal down the river to the sea.",
        0,
    )
    assert "validation" in make_qnli.closing(options, summary)
    before = (tmp_path / "qnli" / "train.jsonl").read_bytes()
    make_qnli.run(options)
    assert (tmp_path / "qnli" / "train.jsonl").read_bytes() == before
    # as after an interruption
    (tmp_path / "qnli" / "validation.jsonl").rename(tmp_path / "qnli" / "validation.partial")
    make_qnli.run(options)
    for name, text, message in (
        ("train.jsonl", "mine", "has another train.jsonl, which would be lost; choose another folder, or remove it"),
        ("dev.tsv", "mine", "has dev.tsv, beside which no other files of QNLI may be; choose another folder, or"),
        ("run.json", "{}", "holds a run; choose another folder"),
    ):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=message):
            make_qnli.run(SimpleNamespace(squad=str(squad), output=str(folder)))
        assert [file.read_text() for file in folder.iterdir()] == [text]
    short = json.dumps(
        {
            "data": [
                {
                    "paragraphs": [
                        {"context": "One.", "qas": [question | {"answers": [{"text": "One", "answer_start": 0}]}]}
                    ]
                }
            ]
        }
    )
    (tmp_path / "short").mkdir()
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / "short" / name).write_text(short)
    with pytest.raises(UserError, match="each sentence in train holds the answer to its question; give questions on"):
        make_qnli.run(SimpleNamespace(squad=str(tmp_path / "short"), output=str(tmp_path / "none")))
    with pytest.raises(UserError, match="--squad .*nowhere: exactly one file"):
        make_qnli.check_paths(SimpleNamespace(squad=str(tmp_path / "nowhere"), output=str(tmp_path / "new")))
    with pytest.raises(UserError, match="the folder of --squad; choose another folder"):
        make_qnli.check(SimpleNamespace(squad=str(squad), output=str(squad)))
