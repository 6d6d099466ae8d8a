"""SQuAD: spans and answers on contexts longer than a model reads."""

import json

import numpy as np
import pytest

from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.errors import UserError
from ds_distill.export.compare import SAMPLE
from ds_distill.finetune.squad import Question, answers_of, read_squad, spans_of, squad_scores

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


def test_the_official_file_and_its_mistakes(tmp_path):
    def write(answers, **more):
        entry = {"id": "x1", "question": "Who?", "answers": answers} | more
        article = {"title": "T", "paragraphs": [{"context": "Ann ran.", "qas": [entry]}]}
        (tmp_path / "train.json").write_text(json.dumps({"version": "2", "data": [article]}))
        return read_squad(tmp_path / "train.json")

    assert write([{"text": "Ann", "answer_start": 0}])[0].golds == ["Ann"]
    assert write([], is_impossible=True)[0].answers == ()
    with pytest.raises(UserError, match="paragraph 1, question 'x1'.*'Ann' is not at character 4 .* there is 'ran'"):
        write([{"text": "Ann", "answer_start": 4}])
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(UserError, match="not SQuAD's JSON"):
        read_squad(tmp_path / "train.json")
