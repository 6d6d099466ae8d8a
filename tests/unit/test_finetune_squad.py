"""SQuAD: spans and answers on contexts longer than a model reads."""

import json

import numpy as np
import pytest

from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.errors import UserError
from ds_distill.export.compare import SAMPLE
from ds_distill.tasks.catalog import task_of
from ds_distill.tasks.squad import Question, answers_of, load_questions, spans_of, squad_scores

CONTEXT = " ".join(SAMPLE.read_text().split()[:150])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(SAMPLE.read_text().splitlines(), 400, tmp_path_factory.mktemp("tokenizer"))


def question(text: str | None, id: str = "q", ask: str = "what is it?") -> Question:
    return Question(id, ask, CONTEXT, ((text, CONTEXT.index(text)),) if text else ())


def test_every_token_of_the_context_is_in_a_span_and_answers_are_found(tokenizer):
    asked = [question("a small village near the coast"), question(None)]
    spans = spans_of(asked, tokenizer, length=64, stride=16)
    assert len(spans.question) > 4 and max(map(len, spans.inputs["input_ids"])) <= 64
    first = [spans.offsets[row] for row, number in enumerate(spans.question) if number == 0]
    covered = {character for offsets in first for pair in offsets if pair for character in range(*pair)}
    assert all(i in covered for i, character in enumerate(CONTEXT) if not character.isspace())
    text = asked[0].golds[0]
    found = 0
    for row, number in enumerate(spans.question):
        start, end = spans.starts[row], spans.ends[row]
        if (start, end) == (0, 0):
            continue
        assert number == 0
        assert CONTEXT[spans.offsets[row][start][0] : spans.offsets[row][end][1]] == text
        found += 1
    assert found >= 1


def perfect(spans, noise=0.0):
    g = np.random.default_rng(0)
    starts, ends = [], []
    for row, ids in enumerate(spans.inputs["input_ids"]):
        for out, place in ((starts, spans.starts[row]), (ends, spans.ends[row])):
            out.append(g.normal(size=len(ids)) * noise)
            out[-1][place] += 10
    return starts, ends


def test_a_perfect_model_scores_everything(tokenizer):
    asked = [question(CONTEXT[start : start + 25].strip().split(" ", 1)[1].rsplit(" ", 1)[0], str(start)) for start in (0, 100, 300, 500)]
    asked = [Question(q.id, q.question, q.context, ((q.golds[0], CONTEXT.index(q.golds[0])),)) for q in asked]
    spans = spans_of(asked, tokenizer, length=64, stride=16)
    answers = answers_of(asked, spans, *perfect(spans, 0.1))
    assert [answer.text for answer in answers] == [q.golds[0] for q in asked]
    assert squad_scores(asked, answers) == {"f1": 1.0, "exact_match": 1.0}
    assert all(len(answer.best) <= 20 and answer.best == sorted(answer.best, key=lambda pair: -pair[0]) for answer in answers)


def test_nothing_is_answered_where_nothing_is_best(tokenizer):
    asked = [question("near", "a"), question(None, "b")]
    spans = spans_of(asked, tokenizer, length=64, stride=16)
    answers = answers_of(asked, spans, *perfect(spans, 0.1))
    assert answers[0].odds_of_nothing < answers[1].odds_of_nothing
    found = squad_scores(asked, answers)
    assert found["f1"] == found["exact_match"] == 1.0 and found["has_answer_f1"] == found["no_answer_f1"] == 1.0


def test_an_answer_never_ends_before_it_starts_nor_outside_the_context(tokenizer):
    asked = [question("the", "a")]
    spans = spans_of(asked, tokenizer, length=64, stride=16)
    starts, ends = [np.zeros(len(ids)) for ids in spans.inputs["input_ids"]], [np.zeros(len(ids)) for ids in spans.inputs["input_ids"]]
    for start, end in zip(starts, ends, strict=True):
        start[-2], end[1] = 50, 50  # the last real token starts, a token of the question ends
    [answer] = answers_of(asked, spans, starts, ends)
    assert answer.best and all(text in CONTEXT and text for _, text in answer.best)


def test_long_questions_are_cut_and_no_room_is_said(tokenizer):
    asked = [question("near", ask="what is " * 90)]
    spans = spans_of(asked, tokenizer, length=128, stride=16)
    assert all(sum(pair is None for pair in offsets) <= 64 + 3 for offsets in spans.offsets) and any(start for start in spans.starts)
    assert {len(ids) for ids in spans.inputs["token_type_ids"]} == {len(ids) for ids in spans.inputs["input_ids"]}
    with pytest.raises(UserError, match="20 tokens leave no room"):
        spans_of(asked, tokenizer, length=20)


def test_the_official_file_and_its_mistakes(tmp_path):
    def write(answers, task="squad_v2", **more):
        entry = {"id": "x1", "question": "Who?", "answers": answers} | more
        article = {"title": "T", "paragraphs": [{"context": "Ann ran.", "qas": [entry]}]}
        (tmp_path / "train.json").write_text(json.dumps({"version": "2", "data": [article]}))
        return load_questions(task_of(task), "train", str(tmp_path))

    assert write([{"text": "Ann", "answer_start": 0}])[0].golds == ["Ann"]
    assert write([], is_impossible=True)[0].answers == ()
    with pytest.raises(UserError, match="'T', paragraph 1, question 'x1'.*'Ann' is not at character 4 .* there is 'ran'"):
        write([{"text": "Ann", "answer_start": 4}])
    for answers, more, words in (([], {"task": "squad"}, "use --task squad_v2"), ([{"text": "Ann"}], {}, "'answer_start' is missing"),
                                 ([{"text": "Ann", "answer_start": "0"}], {}, "needs a text and its first character"),
                                 ([{"text": "", "answer_start": 0}], {}, "'' at character 0; .* an empty list of each"),
                                 ([{"text": "ran", "answer_start": -4}], {}, "'ran' at character -4"),
                                 ("Ann", {}, "answers is 'Ann'; it needs"),
                                 ([], {"question": None}, "question or context is no text")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            write(answers, **more)
    for text in ("[]", "{", json.dumps({"data": [{"title": "T"}]}), json.dumps({"data": [{"paragraphs": [{"qas": []}]}]})):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(UserError, match="train.json: (not SQuAD's JSON|no questions)"):
            load_questions(task_of("squad"), "train", str(tmp_path))


def test_the_hubs_columns_are_read_too(tmp_path):
    row = {"id": "7", "title": "T", "context": "Ann ran.", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}}
    (tmp_path / "validation.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"answers": {"text": ["ran"], "answer_start": [1]}}))
    with pytest.raises(UserError, match="validation.jsonl, line 2, question '7'"):
        load_questions(task_of("squad"), "validation", str(tmp_path))
    (tmp_path / "validation.csv").write_text("id,question,context,answers")
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(UserError, match="validation.csv: answers are lists, which .csv has not"):
        load_questions(task_of("squad"), "validation", str(tmp_path))
    (tmp_path / "validation.csv").unlink()
    (tmp_path / "validation.jsonl").write_text(json.dumps(row))
    assert load_questions(task_of("squad"), "validation", str(tmp_path)) == [Question("7", "Who?", "Ann ran.", (("Ann", 0),))]
